"""embedding: every path against the table itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelworks import paths
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.ops.embedding import embedding

from ._family_cases import (
    FLOATS,
    LAYOUTS,
    SIZES,
    assert_compiles_and_exports,
    assert_same,
    assert_threads_agree,
    draw,
    laid_out,
)

DTYPES = (*FLOATS, torch.float64, torch.int32)


def _ids(*shape: int, rows: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randint(rows, shape, generator=torch.Generator().manual_seed(rows)).to(dtype)


@settings(deadline=None, max_examples=80)
@given(
    shape=st.lists(SIZES, min_size=0, max_size=3),
    rows=SIZES,
    width=SIZES,
    dtype=st.sampled_from(DTYPES),
    ids=st.sampled_from((torch.int32, torch.int64)),
    layout=st.sampled_from(LAYOUTS),
)
def test_the_rows_are_those_of_the_table(
    shape: list[int], rows: int, width: int, dtype: torch.dtype, ids: torch.dtype, layout: str
) -> None:
    table = laid_out(draw(rows, width, dtype=dtype, edges=(0.0, float("nan"), float("inf"))), layout)
    chosen = _ids(*shape, rows=rows, dtype=ids)
    assert_same(embedding(chosen, table).double(), reference.embedding(chosen, table))


def test_the_metal_kernel_gives_the_same() -> None:
    table, chosen = draw(9, 24), _ids(2, 5, rows=9)
    with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
        got = embedding(chosen, table)
    assert recorded.of("embedding", "steel") == 1
    assert_same(got, table[chosen])


def test_nothing_has_a_result() -> None:
    for path in ("vendor", "steel"):
        with paths.simulate_metal(), paths.use(path):
            assert embedding(_ids(0, rows=3), draw(3, 4)).shape == (0, 4)
            assert embedding(_ids(2, rows=3), draw(3, 0)).shape == (2, 0)


def test_the_gradient_is_the_sum_over_the_uses_of_a_row_and_none_for_padding() -> None:
    table = draw(4, 3, dtype=torch.float64).requires_grad_()
    chosen = torch.tensor([0, 2, 2, 1])
    assert torch.autograd.gradcheck(lambda t: embedding(chosen, t), [table])
    embedding(chosen, table, padding_idx=-3).sum().backward()
    assert table.grad is not None
    assert table.grad[:, 0].tolist() == [1.0, 0.0, 2.0, 0.0]


def test_torchs_own_checks_of_the_operator_pass() -> None:
    for arguments in (
        (_ids(2, 3, rows=5), draw(5, 4), None),
        (_ids(2, rows=5, dtype=torch.int32), draw(5, 4), 1),
    ):
        torch.library.opcheck(torch.ops.steelworks.embedding.default, arguments)


def test_compile_and_export_give_the_same() -> None:
    assert_compiles_and_exports(embedding, _ids(2, 3, rows=5), draw(5, 4))


def test_many_threads_at_once_get_what_one_gets() -> None:
    assert_threads_agree(embedding, [(_ids(n, rows=5), draw(5, 4, seed=n)) for n in (1, 3, 8)])


@pytest.mark.parametrize("path", ["vendor", "steel"])
@pytest.mark.parametrize("wrong", [5, -1])
def test_an_id_that_the_table_does_not_have_is_refused_whatever_was_called_before(
    path: str, wrong: int
) -> None:
    table = draw(5, 4)
    with paths.simulate_metal(), paths.use(path):
        embedding(torch.tensor([0, 1]), table)
        with pytest.raises(InvalidInputError, match=rf"ids go from {min(wrong, 0)} to .*rows 0 to 4"):
            embedding(torch.tensor([0, wrong]), table)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((torch.zeros(2), torch.ones(3, 4)), "input is torch.float32; int32 or int64"),
        ((torch.zeros(2, dtype=torch.int64), torch.ones(3)), r"weight has shape \(3,\).*\(rows, width\)"),
        ((torch.zeros(2, dtype=torch.int64), torch.ones(3, 4), 3), "padding_idx is 3.*0 to 2"),
        ((torch.zeros(2, dtype=torch.int64, device="meta"), torch.ones(3, 4)), "'cpu'.*'meta'"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(arguments: tuple[object, ...], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        embedding(*arguments)  # type: ignore[arg-type]
