"""Rows of a table by ids, exactly, in checking mode under four schedules."""

from __future__ import annotations

import pytest
import torch
from _cases import DTYPES, assert_equal, embedded, padded_rows, run_checked

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.metal.embedding import embedding

#: Around a packet (4), and around what a threadgroup takes of a row.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 63, 65, 127, 128, 129, 384, 1023, 1025)
INT64, INT32 = torch.int64, torch.int32


def _table(rows: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    made = torch.Generator().manual_seed(rows * 31 + width)
    return torch.randn(rows, width, generator=made).to(dtype)


def _ids(count: int, rows: int, dtype: torch.dtype = INT64) -> torch.Tensor:
    return torch.randint(rows, (count,), generator=torch.Generator().manual_seed(count)).to(dtype)


def _check(ids: torch.Tensor, table: torch.Tensor, case: object, check: bool | None = False) -> torch.Tensor:
    got = run_checked("embedding", lambda: embedding(ids, table, check=check), case)
    assert_equal("embedding", got, reference.embedding(ids, table).to(table.dtype), case)
    return got


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_of_any_width_are_fetched(width: int) -> None:
    for count in (1, 2, 7, 65):
        for rows in (1, 11):
            _check(_ids(count, rows), _table(rows, width), f"{count} of {rows} rows of {width}", check=None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ids", [INT32, INT64])
def test_every_dtype_of_ids_and_table_is_taken(dtype: torch.dtype, ids: torch.dtype) -> None:
    for count, width in ((1, 1), (5, 8), (9, 33), (130, 5)):
        _check(_ids(count, 13, ids), _table(13, width, dtype), f"{count} rows of {width} {dtype} by {ids}")


@pytest.mark.parametrize("ids", [INT32, INT64])
def test_an_id_that_the_table_does_not_have_gives_nan_and_reads_nothing(ids: torch.dtype) -> None:
    info = torch.iinfo(ids)
    values = [0, 10, 11, 12, -1, -11, 2**30, info.max, info.min, 5, info.max - 10, info.min + 3]
    if ids == INT64:
        values += [2**32, 2**32 + 3, -(2**32) + 1]
    for width in (1, 4, 9, 40):
        got = _check(
            torch.tensor(values, dtype=ids), embedded(_table(11, width)), f"wild {ids}, width {width}"
        )
        inside = torch.tensor([0 <= v < 11 for v in values])
        assert torch.equal(got.isnan().any(1), ~inside)


def test_ids_may_have_any_shape_and_strides() -> None:
    table = _table(11, 10)
    for shape in ((), (1,), (3, 4), (2, 3, 2), (1, 1, 5)):
        ids = _ids(24, 11)[: torch.Size(shape).numel()].reshape(shape)
        assert _check(ids, table, f"ids of shape {shape}").shape == (*shape, 10)
    ids = _ids(24, 11).reshape(4, 6)
    _check(ids.t(), table, "ids transposed")
    _check(ids[:, ::2], table, "every other id")
    _check(ids[1:, 2:], table, "ids at an offset")
    _check(ids[:1].expand(3, 6), table, "ids repeated")


def test_the_table_may_be_a_view() -> None:
    for width in (3, 8, 33):
        table = _table(9, width)
        ids = _ids(20, 9)
        _check(ids, padded_rows(table), f"rows apart, {width}")
        _check(ids, embedded(table), f"at an offset, {width}")
        _check(ids, table.t().contiguous().t(), f"transposed, {width}")
        _check(_ids(20, 4), _table(9, width)[1::2], f"every other row, {width}")
        _check(ids, table[:1].expand(9, width), f"one row repeated, {width}")


def test_special_values_are_copied_as_they_are() -> None:
    table = torch.tensor([[float("nan"), float("inf"), -float("inf"), -0.0, 1e-40, 3.4e38]])
    got = _check(torch.zeros(3, dtype=INT64), table, "special values")
    assert torch.equal(got.view(torch.int32), table.view(torch.int32).expand(3, 6))


def test_empty_ids_and_tables_have_an_empty_result() -> None:
    assert embedding(torch.empty(0, dtype=INT64), _table(3, 4)).shape == (0, 4)
    assert embedding(torch.empty(2, 0, dtype=INT32), _table(3, 4)).shape == (2, 0, 4)
    assert embedding(_ids(3, 2), torch.empty(2, 0)).shape == (3, 0)
    got = _check(torch.tensor([0, 1]), torch.empty(0, 4), "a table without rows")
    assert bool(got.isnan().all())


def test_device_bytes_are_the_least_possible_but_for_ids() -> None:
    for count, width in ((7, 3), (20, 16), (5, 129)):
        with metalsim.options(check=True) as session:
            embedding(_ids(count, 9), _table(9, width))
        packets = -(-width // 4)  # a thread for each reads the id
        assert session.counters.device_read == 4 * count * width + 8 * count * packets
        assert session.counters.device_written == 4 * count * width


def test_ids_on_the_cpu_are_checked_unless_told_otherwise() -> None:
    table = _table(4, 3)
    with pytest.raises(InvalidInputError, match="ids go from -1 to 2; the table has rows 0 to 3"):
        embedding(torch.tensor([2, -1]), table)
    with pytest.raises(InvalidInputError, match="ids go from 4 to 4"):
        embedding(torch.tensor([4]), table)


@pytest.mark.parametrize(
    ("ids", "table", "said"),
    [
        (torch.zeros(2), torch.ones(3, 3), "int32 or int64"),
        (torch.zeros(2, dtype=torch.int16), torch.ones(3, 3), "int32 or int64"),
        (torch.zeros(2, dtype=INT64), torch.ones(3, 3, dtype=torch.int32), "float32, float16 or bfloat16"),
        (torch.zeros(2, dtype=INT64), torch.ones(3), "(rows, width)"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(
    ids: torch.Tensor, table: torch.Tensor, said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said.replace("(", r"\(").replace(")", r"\)")):
        embedding(ids, table)
