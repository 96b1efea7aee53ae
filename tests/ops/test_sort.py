"""sort: every path against torch's stable sort in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelworks import paths
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.ops.sort import sort

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

DTYPES = (*FLOATS, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool)


def _check(
    x: torch.Tensor, dim: int, descending: bool, got: tuple[torch.Tensor, torch.Tensor], case: object
) -> None:
    values, indices = got
    want = reference.sort(x, dim, descending=descending)
    assert_same(indices, want, case)
    assert_same(values, torch.gather(x, dim, want) if x.dim() else x, case)


@settings(deadline=None, max_examples=100)
@given(
    shape=st.lists(SIZES, min_size=1, max_size=3),
    dim=st.integers(-3, 2),
    dtype=st.sampled_from(DTYPES),
    descending=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    edges=st.booleans(),
)
def test_the_order_is_that_of_a_stable_sort(
    shape: list[int], dim: int, dtype: torch.dtype, descending: bool, layout: str, edges: bool
) -> None:
    dim = dim % len(shape)
    x = laid_out(draw(*shape, dtype=dtype, edges=EDGES if edges else ()), layout)
    _check(x, dim, descending, sort(x, dim, descending), (shape, dim, dtype, descending, layout, edges))


def test_the_metal_kernels_give_the_same() -> None:
    for x in (draw(3, 200, edges=EDGES), draw(40, 5, dtype=torch.int64).t()):
        for descending in (True, False):
            with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
                got = sort(x, -1, descending)
            assert recorded.of("sort", "steel") == 1
            _check(x, -1, descending, got, "metal")


def test_what_no_kernel_takes_goes_to_the_vendor() -> None:
    x = draw(3, 20, dtype=torch.uint8)
    with paths.simulate_metal(), paths.use("steel"):
        _check(x, 1, False, sort(x), "uint8")


def test_scalars_and_nothing_have_a_result() -> None:
    for path in ("vendor", "steel"):
        with paths.simulate_metal(), paths.use(path):
            assert [t.item() for t in sort(torch.tensor(3.0))] == [3.0, 0]
            assert [t.shape for t in sort(torch.ones(0, 4), 0)] == [(0, 4), (0, 4)]


def test_the_gradient_goes_back_to_where_an_element_was() -> None:
    assert torch.autograd.gradcheck(lambda t: sort(t)[0], [draw(3, 6, dtype=torch.float64).requires_grad_()])


def test_torchs_own_checks_of_the_operator_pass() -> None:
    for arguments in ((draw(3, 20), -1, True), (draw(4, 5, 6, dtype=torch.int64), 1, False)):
        torch.library.opcheck(torch.ops.steelworks.sort.default, arguments)


def test_compile_and_export_give_the_same() -> None:
    assert_compiles_and_exports(lambda x: sort(x, 0, True), draw(7, 4))


def test_many_threads_at_once_get_what_one_gets() -> None:
    assert_threads_agree(sort, [(draw(n, 40, seed=n), -1, down) for n in (1, 4) for down in (True, False)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((torch.ones(3, 4), 2), "dim is 2.*-2 to 1"),
        ((torch.ones(3, dtype=torch.complex64),), "torch.complex64.*no order"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(arguments: tuple[object, ...], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        sort(*arguments)  # type: ignore[arg-type]
