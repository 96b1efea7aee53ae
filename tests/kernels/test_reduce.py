"""Reductions over any dimensions against float64, in checking mode under four schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from _cases import assert_close, assert_equal, embedded, padded_rows, run_checked

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.metal import _views, tuning
from steelworks.kernels.metal import reduce as family
from steelworks.kernels.metal.reduce import OPERATIONS, reduce

INF, NAN = math.inf, math.nan
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
#: Limits of the forms, one less and one more, and primes.
LENGTHS = (1, 2, 3, 4, 5, 31, 32, 33, 101, 128, 129, 511, 512, 513, 1021, 4099)
#: From here on several threadgroups share a result.
SPLIT_ROWS, SPLIT_COLUMNS = 2 * 8192, 2 * 256

Dim = int | Sequence[int] | None


def _draw(*shape: int, dtype: torch.dtype = F32, most: int = 100) -> torch.Tensor:
    made = torch.Generator().manual_seed(sum((i + 1) * n for i, n in enumerate(shape)))
    if dtype == torch.bool:
        return torch.rand(shape, generator=made) < 0.5
    if not dtype.is_floating_point:
        least = 0 if dtype == torch.uint8 else -most
        return torch.randint(least, most + 1, shape, generator=made).to(dtype)
    return (torch.randn(shape, generator=made) * 3).to(dtype)


def _check(operation: str, x: torch.Tensor, dim: Dim, case: object, *, keepdim: bool = False) -> torch.Tensor:
    got = run_checked("reduce", lambda: reduce(operation, x, dim, keepdim=keepdim), case)
    want = reference.reduce(operation, x, dim, keepdim=keepdim)
    if operation in ("sum", "mean") and x.is_floating_point():
        assert got.dtype == x.dtype, case
        size = reference.reduce(operation, x.abs(), dim, keepdim=keepdim).nan_to_num(0.0, 0.0, 0.0)
        terms = x.numel() // max(want.numel(), 1)
        assert_close("reduce", got, want, case, terms=terms, magnitude=size)
    else:
        assert_equal("reduce", got, want.to(x.dtype) if operation in ("max", "min") else want, case)
    return got


@pytest.mark.parametrize("operation", OPERATIONS)
def test_rows_of_any_length_match_the_reference(operation: str) -> None:
    for length in LENGTHS:
        for rows in (1, 37) if length < 1000 else (2,):
            _check(operation, _draw(rows, length), -1, f"{operation} of {rows}x{length}")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_columns_match_the_reference(operation: str) -> None:
    for outer, length, inner in (
        (1, 1, 5), (1, 2, 31), (1, 7, 32), (1, 31, 33), (1, 32, 65), (1, 33, 2), (3, 5, 7), (2, 100, 40), (5, 3, 11),
    ):  # fmt: skip
        _check(operation, _draw(outer, length, inner), 1, f"{operation} of {outer}x{length}x{inner} along 1")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_whole_tensor_is_reduced_in_one_pass_or_two(operation: str) -> None:
    for count in (1, 33, SPLIT_ROWS - 1, SPLIT_ROWS, SPLIT_ROWS + 1):
        _check(operation, _draw(count), None, f"{operation} of {count} elements")
    _check(operation, _draw(20, 30, 40), None, f"{operation} of 20x30x40")


@pytest.mark.parametrize("operation", ["sum", "max", "argmin", "all"])
def test_long_columns_are_shared_by_several_threadgroups(operation: str) -> None:
    for length in (SPLIT_COLUMNS - 1, SPLIT_COLUMNS, SPLIT_COLUMNS + 1, 1531):
        for inner in (3, 33) if length < 1000 else (5,):
            _check(operation, _draw(length, inner), 0, f"{operation} of {length}x{inner} along 0")


def test_long_rows_are_shared_by_several_threadgroups() -> None:
    for operation in ("sum", "argmax"):
        for rows in (2, 5):
            x = _draw(rows, 33001)
            with metalsim.options() as session:
                reduce(operation, x, -1)
            assert len(session.launches) == 2
            _check(operation, x, -1, f"{operation} of {rows}x33001")


@pytest.mark.parametrize("operation", ["sum", "mean", "max", "argmin"])
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_half_and_bfloat_are_combined_in_float(operation: str, dtype: torch.dtype) -> None:
    for length in (33, 100, 500) if operation == "sum" else (1, 5, 31, 32):
        _check(operation, _draw(5, length, dtype=dtype), -1, f"{operation} of 5x{length} {dtype}")


def test_a_half_sum_does_not_stop_growing() -> None:
    # In half, 2048 + 1 is 2048; in bfloat, 256 + 1 is 256. The sums themselves are exact in both.
    for dtype, most, right in ((F16, 2048, 3048.0), (BF16, 256, 1256.0)):
        for place in (0, 500, 1000):
            x = torch.ones(1, 1001, dtype=dtype)
            x[0, place] = most
            assert float(_check("sum", x, -1, f"1000 ones and a {most} at {place}, {dtype}")) == right


def test_every_chunk_of_a_long_row_counts_to_its_ends() -> None:
    # Whole numbers, so that the sum is exact: the bound of a sum of 33,001 terms would let one of them go.
    length = 33001
    view = _views.as_rows(torch.zeros(2, length))
    chunk, chunks = family._chunks(tuning.REDUCE_ROWS_SPLIT, view.rows, view.columns)
    assert chunks > 1
    x = torch.arange(2 * length, dtype=torch.float32).remainder(3).view(2, length)
    assert torch.equal(reduce("sum", x, -1), x.double().sum(-1).float())
    for place in sorted({0, chunk - 1, chunk, (chunks - 1) * chunk - 1, (chunks - 1) * chunk, length - 1}):
        x = torch.zeros(2, length)
        x[:, place] = 1
        assert reduce("sum", x, -1).tolist() == [1, 1], place
        assert reduce("argmax", x, -1).tolist() == [place, place]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_are_combined_exactly(dtype: torch.dtype) -> None:
    operations = {torch.int64: ("sum", "max", "argmin", "any"), torch.bool: ("sum", "all")}.get(
        dtype, ("sum", "min")
    )
    for operation in operations:
        for length in (1, 5, 31) if dtype == torch.int64 else (33, 100, 300):
            x = _draw(4, length, dtype=dtype)
            _check(operation, x, -1, f"{operation} of 4x{length} {dtype}")
    if dtype == torch.int64:
        for length in (3, 100):
            x = _draw(length, 9, dtype=dtype, most=2**40)
            for operation in ("sum", "max"):
                _check(operation, x, 0, f"{operation} of {length}x9 large {dtype} along 0")


def test_integer_sums_do_not_overflow_their_dtype_and_wrap_at_64_bits() -> None:
    assert _check("sum", torch.full((300,), 255, dtype=torch.uint8), None, "bytes").item() == 76500
    assert _check("sum", torch.full((40,), 2**31 - 1, dtype=torch.int32), None, "ints").item() == 40 * (
        2**31 - 1
    )
    assert _check("sum", torch.tensor([2**62, 2**62, 2**62]), None, "longs").item() == 3 * 2**62 - 2**64


def test_extremes_of_integers_include_the_limits() -> None:
    for dtype in (torch.int64, torch.int32, torch.uint8):
        info = torch.iinfo(dtype)
        x = torch.tensor([info.max, 0, info.min], dtype=dtype)
        for operation in ("max", "min", "argmax", "argmin"):
            _check(operation, x, 0, f"{operation} of the limits of {dtype}")
            _check(operation, x[:1], 0, f"{operation} of the upper limit of {dtype}")
            _check(operation, x[2:], 0, f"{operation} of the lower limit of {dtype}")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_special_values_are_as_in_torch(operation: str) -> None:
    rows = {
        "nan": [1.0, NAN, 5.0],
        "nan first": [NAN, 1.0, 2.0],
        "two nans": [0.0, NAN, NAN],
        "inf": [1.0, INF, -1.0],
        "both inf": [INF, -INF, 0.0],
        "-inf": [-INF, -INF, -INF],
        "ties": [2.0, 2.0, 2.0],
        "zeros of both signs": [0.0, -0.0, 0.0],
        "denormals": [1e-40, -1e-40, 3e-40],
        "largest": [3e38, -3e38, 3e38],
    }
    for name, values in rows.items():
        for repeats in (1, 20, 200, 6000) if name in ("nan", "-inf", "ties") else (1, 20, 200):
            if name == "largest" and operation in ("sum", "mean") and repeats > 1:
                continue  # a partial sum may overflow, as in torch's float32
            x = torch.tensor(values * repeats)
            _check(operation, x, 0, f"{operation} of {name}, {3 * repeats} elements")
            if repeats == 200:
                _check(
                    operation, x[:40, None].expand(-1, 2).contiguous(), 0, f"{operation} of {name}, columns"
                )


def test_one_true_or_false_element_is_found_wherever_it_is() -> None:
    for length in (1, 31, 100, 600):
        for place in {0, length // 2, length - 1}:
            x = torch.zeros(2, length)
            x[0, place] = 1e-40
            case = f"element {place} of {length}"
            assert _check("any", x, 1, case).tolist() == [True, False]
            assert _check("all", 1 - x.ceil(), 1, case).tolist() == [False, True]


def test_the_extreme_is_found_wherever_it_is() -> None:
    for length in (7, 32, 129, 513, 16400):
        for place in (0, length // 2, length - 1):
            x = torch.zeros(length)
            x[place] = 1.0
            assert _check("argmax", x, None, f"{length} elements").item() == place
            assert _check("argmin", -x, 0, f"{length} elements").item() == place


@pytest.mark.parametrize("operation", ["sum", "max", "argmax"])
def test_any_dimensions_can_be_chosen_and_kept(operation: str) -> None:
    x = _draw(3, 4, 5, 6)
    chosen: list[Dim] = [0, 1, 2, 3, -1, -2, -4, None]
    if operation != "argmax":
        chosen += [
            (0, 1),
            (1, 2),
            (2, 3),
            (0, 2),
            (1, 3),
            (0, 3),
            (0, 1, 2),
            (1, 2, 3),
            (0, 1, 3),
            (3, 0),
            (0, 1, 2, 3),
        ]
    for dim in chosen:
        for keepdim in (False, True):
            _check(operation, x, dim, f"{operation} over {dim}, keepdim {keepdim}", keepdim=keepdim)


@pytest.mark.parametrize("operation", ["sum", "max", "argmin"])
def test_views_are_read_in_place_and_nothing_beside_them(operation: str) -> None:
    for length in (5, 300, 600):
        x = _draw(6, length)
        views = {
            "at an offset": embedded(x),
            "rows apart": padded_rows(x),
            "transposed": x.t().contiguous().t(),
            "every other column": x[:, ::2],
            "every other row": x[::2],
            "one row repeated": x[:1].expand(4, length),
        }
        for name, view in views.items():
            for dim in (0, 1, None):
                _check(operation, view, dim, f"{operation} {name}, {length}, over {dim}")


def test_reductions_of_nothing_are_as_in_torch() -> None:
    x = torch.empty(3, 0, 2)
    assert reduce("sum", x, 1).tolist() == [[0.0, 0.0]] * 3
    assert bool(reduce("mean", x, 1).isnan().all())
    assert reduce("any", x).item() is False
    assert reduce("all", x).item() is True
    assert reduce("max", x, 0).shape == (0, 2)
    for operation in ("max", "min", "argmax", "argmin"):
        with pytest.raises(InvalidInputError, match="no elements along dim 1"):
            reduce(operation, x, 1)


def test_a_scalar_is_reduced_to_itself() -> None:
    for operation in OPERATIONS:
        for dim in (None, 0, -1):
            _check(operation, torch.tensor(2.5), dim, f"{operation} of a scalar over {dim}")


def test_the_same_sum_has_the_same_bits_as_part_of_a_larger_batch() -> None:
    x = _draw(8, 1000)
    assert torch.equal(reduce("sum", x, 1)[3:4], reduce("sum", x[3:4], 1))


def test_device_bytes_are_the_least_possible() -> None:
    for shape, dim in (((5, 7), -1), ((40, 100), -1), ((3, 1000), -1), ((4, 9, 50), 1), ((100, 33), 0)):
        x = _draw(*shape)
        with metalsim.options(check=True) as session:
            out = reduce("sum", x, dim)
        assert session.counters.device_read == 4 * x.numel(), (shape, dim)
        assert session.counters.device_written == 4 * out.numel(), (shape, dim)
    x = _draw(40000)
    with metalsim.options(check=True) as session:
        reduce("sum", x)
    chunks = 4  # of 10,000 elements: partial results are written and read once
    assert session.counters.device_read == 4 * (x.numel() + chunks)
    assert session.counters.device_written == 4 * (chunks + 1)


@pytest.mark.parametrize(
    ("operation", "x", "dim", "said"),
    [
        ("median", torch.ones(3), None, "allowed are sum, mean"),
        ("mean", torch.ones(3, dtype=torch.int32), None, "allowed are torch.float32"),
        ("sum", torch.ones(3, dtype=torch.float64), None, "float64"),
        ("sum", torch.ones(3, 3), 2, "-2 to 1"),
        ("sum", torch.ones(3, 3), (0, -2), "twice"),
        ("argmax", torch.ones(3, 3), (0, 1), "one dimension"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_a_reason(
    operation: str, x: torch.Tensor, dim: Dim, said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        reduce(operation, x, dim)
