"""top_k: every path against a stable sort."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelworks import paths
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.ops.topk import top_k

from ._family_cases import (
    EDGES,
    FLOATS,
    LAYOUTS,
    SIZES,
    assert_compiles_and_exports,
    assert_same,
    assert_threads_agree,
    draw,
    laid_out,
)

DTYPES = (*FLOATS, torch.float64, torch.int32, torch.int64, torch.uint8)


def _check(
    x: torch.Tensor, k: int, dim: int, largest: bool, got: tuple[torch.Tensor, torch.Tensor], case: object
) -> None:
    """The values are right, and the indices name elements of such values, each once."""
    values, indices = got
    want = torch.gather(x, dim, reference.topk(x, k, dim, largest=largest)) if x.dim() else x
    assert_same(values, want, case)
    assert indices.dtype == torch.int64
    if x.dim():
        assert_same(torch.gather(x, dim, indices), values, case)
        ordered = indices.sort(dim=dim)[0]
        assert k < 2 or bool((ordered.diff(dim=dim) > 0).all()), f"{case}: an index is there twice"


@settings(deadline=None, max_examples=100)
@given(
    shape=st.lists(SIZES, min_size=1, max_size=3),
    share=st.sampled_from((0.0, 0.2, 0.5, 1.0)),
    dim=st.integers(-3, 2),
    dtype=st.sampled_from(DTYPES),
    largest=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    edges=st.booleans(),
)
def test_the_k_best_are_those_of_a_sort(
    shape: list[int], share: float, dim: int, dtype: torch.dtype, largest: bool, layout: str, edges: bool
) -> None:
    dim = dim % len(shape)
    x = laid_out(draw(*shape, dtype=dtype, edges=EDGES if edges else ()), layout)
    k = math.ceil(share * shape[dim])
    _check(x, k, dim, largest, top_k(x, k, dim, largest), (shape, k, dim, dtype, largest, layout, edges))


def test_in_any_order_they_are_the_same() -> None:
    x = draw(7, 50)
    values, indices = top_k(x, 9, sorted=False)
    assert_same(values.sort(descending=True)[0], top_k(x, 9)[0])
    assert_same(torch.gather(x, 1, indices), values)


def test_the_metal_kernels_give_the_same_and_take_the_first_of_equals() -> None:
    for x, k in ((draw(3, 200, edges=EDGES), 7), (draw(5, 40, dtype=torch.int64), 40)):
        for largest in (True, False):
            with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
                values, indices = top_k(x, k, largest=largest)
            assert recorded.of("top_k", "steel") == 1
            assert_same(indices, reference.topk(x, k, largest=largest))
            assert_same(values, torch.gather(x, 1, indices))


def test_what_no_kernel_takes_goes_to_the_vendor() -> None:
    x = draw(3, 20, dtype=torch.float64)
    with paths.simulate_metal(), paths.use("steel"):
        _check(x, 4, 1, True, top_k(x, 4), "float64")


def test_scalars_and_nothing_have_a_result() -> None:
    x = torch.tensor(3.0)
    assert [t.item() for t in top_k(x, 1)] == [3.0, 0]
    for path in ("vendor", "steel"):
        with paths.simulate_metal(), paths.use(path):
            assert [t.shape for t in top_k(x, 0)] == [(0,), (0,)]
            assert [t.shape for t in top_k(torch.ones(0, 4), 2)] == [(0, 2), (0, 2)]


def test_the_gradient_goes_to_the_elements_that_were_taken() -> None:
    x = draw(3, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: top_k(t, 2)[0], [x])


def test_torchs_own_checks_of_the_operator_pass() -> None:
    for arguments in ((draw(3, 20), 5, -1, True, True), (draw(4, 5, 6), 2, 1, False, True)):
        torch.library.opcheck(torch.ops.steelworks.top_k.default, arguments)


def test_compile_and_export_give_the_same() -> None:
    assert_compiles_and_exports(lambda x: top_k(x, 3, dim=0), draw(7, 4))


def test_many_threads_at_once_get_what_one_gets() -> None:
    assert_threads_agree(top_k, [(draw(n, 40, seed=n), k) for n in (1, 4) for k in (1, 7)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((torch.ones(3, 4), 5), "k is 5.*4 elements: 0 to 4"),
        ((torch.ones(3, 4), -1), "k is -1"),
        ((torch.ones(3, 4), 1, 2), "dim is 2.*-2 to 1"),
        ((torch.ones(3, dtype=torch.bool), 1), "torch.bool.*convert"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(arguments: tuple[object, ...], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        top_k(*arguments)  # type: ignore[arg-type]
