"""Running sums, products and extremes against float64, in checking mode under four schedules."""

from __future__ import annotations

import math

import pytest
import torch
from _cases import assert_close, assert_equal, embedded, padded_rows, run_checked

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.metal.scan import cummax, cummin, cumprod, cumsum

INF, NAN = math.inf, math.nan
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SUMS = {"cumsum": cumsum, "cumprod": cumprod}
EXTREMES = {"cummax": cummax, "cummin": cummin}
OPERATIONS = (*SUMS, *EXTREMES)
#: Limits of the forms, one less and one more, and primes.
LENGTHS = (1, 2, 3, 4, 5, 31, 32, 33, 127, 128, 129, 257, 511, 512, 513, 1021, 4097)
#: From here on several threadgroups share a row, and several threads a column.
SPLIT_ROWS, SPLIT_COLUMNS = 2 * 8192, 2 * 64


def _draw(*shape: int, dtype: torch.dtype = F32, near_one: bool = False) -> torch.Tensor:
    made = torch.Generator().manual_seed(sum((i + 1) * n for i, n in enumerate(shape)))
    if dtype == torch.bool:
        return torch.rand(shape, generator=made) < 0.5
    if not dtype.is_floating_point:
        least = 0 if dtype == torch.uint8 else -100
        return torch.randint(least, 101, shape, generator=made).to(dtype)
    x = torch.randn(shape, generator=made)
    if near_one:  # products neither overflow nor vanish
        sign = torch.where(torch.rand(shape, generator=made) < 0.3, -1.0, 1.0)
        return (torch.exp(x / math.sqrt(max(shape))) * sign).to(dtype)
    return (x * 3).to(dtype)


def _input(operation: str, *shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    x = _draw(*shape, dtype=dtype, near_one=operation == "cumprod")
    return x.round() if operation in EXTREMES and dtype.is_floating_point else x  # with ties


def _check(
    operation: str, x: torch.Tensor, dim: int, case: object, *, exclusive: bool = False
) -> torch.Tensor:
    case = f"{operation} of {case}{', exclusive' if exclusive else ''}"
    want, places = reference.scan(operation, x, dim, exclusive=exclusive)
    if operation in EXTREMES:
        results: list[torch.Tensor] = []

        def run() -> torch.Tensor:
            values, indices = EXTREMES[operation](x, dim, exclusive=exclusive)
            results[:] = [values, indices]
            both = [part.contiguous().reshape(-1).view(torch.uint8) for part in results]
            return torch.cat(both)

        run_checked("scan", run, case)
        assert places is not None
        assert_equal("scan", results[1], places, f"{case}, indices")
        assert_equal("scan", results[0], want.to(x.dtype), f"{case}, values")
        return results[0]
    got = run_checked("scan", lambda: SUMS[operation](x, dim, exclusive=exclusive), case)
    assert got.is_contiguous(), case
    if not x.is_floating_point():
        assert_equal("scan", got, want, case)
        return got
    assert got.dtype == x.dtype, case
    size, _ = reference.scan(operation, x.abs(), dim, exclusive=exclusive)
    length = x.shape[dim] if x.dim() else 1
    assert_close("scan", got, want, case, terms=length, magnitude=size.nan_to_num(0.0, 0.0, 0.0))
    return got


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("exclusive", [False, True])
def test_rows_of_any_length_match_the_reference(operation: str, exclusive: bool) -> None:
    for length in LENGTHS:
        for rows in (1, 11) if length < 600 else (2,):
            _check(operation, _input(operation, rows, length), -1, f"{rows}x{length}", exclusive=exclusive)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("exclusive", [False, True])
def test_columns_match_the_reference(operation: str, exclusive: bool) -> None:
    for outer, length, inner in (
        (1, 1, 5), (1, 2, 31), (1, 7, 32), (1, 31, 33), (3, 5, 7), (2, 100, 40), (5, 3, 11), (2, 9, 300),
    ):  # fmt: skip
        x = _input(operation, outer, length, inner)
        _check(operation, x, 1, f"{outer}x{length}x{inner} along 1", exclusive=exclusive)


@pytest.mark.parametrize("operation", ["cumsum", "cummax"])
def test_long_rows_are_shared_by_several_threadgroups(operation: str) -> None:
    shapes = [(1, SPLIT_ROWS + 1)]
    if operation == "cumsum":
        shapes += [(1, SPLIT_ROWS - 1), (1, SPLIT_ROWS), (2, SPLIT_ROWS + 4001)]
    for rows, length in shapes:
        x = _input(operation, rows, length)
        with metalsim.options() as session:
            {**SUMS, **EXTREMES}[operation](x, -1)
        assert len(session.launches) == (1 if length < SPLIT_ROWS else 3)
        _check(operation, x, -1, f"{rows}x{length}")
        if operation == "cummax":
            _check(operation, x, -1, f"{rows}x{length}", exclusive=True)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_long_columns_are_shared_by_several_threads(operation: str) -> None:
    for length in (SPLIT_COLUMNS - 1, SPLIT_COLUMNS, SPLIT_COLUMNS + 1, 1031):
        for inner in (3, 33):
            x = _input(operation, 1, length, inner)
            for exclusive in (False, True):
                _check(operation, x, 1, f"1x{length}x{inner} along 1", exclusive=exclusive)


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("operation", ["cumsum", "cummax"])
def test_half_and_bfloat_are_combined_in_float_and_rounded_once(operation: str, dtype: torch.dtype) -> None:
    for length in (1, 5, 33, 130, 500):
        _check(operation, _input(operation, 5, length, dtype=dtype), -1, f"5x{length} {dtype}")
    if operation == "cumsum" and dtype == F16:
        _check(operation, _draw(SPLIT_ROWS + 5, dtype=dtype), 0, f"a long row of {dtype}")


def test_a_half_sum_does_not_stop_growing() -> None:
    # In half, 2048 + 1 is 2048; in bfloat, 256 + 1 is 256. The last sums themselves are exact in both.
    for dtype, most, right in ((F16, 2048, 3048.0), (BF16, 256, 1256.0)):
        x = torch.ones(1001, dtype=dtype)
        x[0] = most
        got = _check("cumsum", x, 0, f"a {most} and 1000 ones, {dtype}")
        assert float(got[-1]) == right


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_are_combined_exactly(dtype: torch.dtype) -> None:
    for operation in ("cumsum", "cumprod") if dtype == torch.int32 else ("cumsum", "cummin"):
        for length in (1, 5, 33, 300):
            for exclusive in (False, True):
                _check(
                    operation, _draw(4, length, dtype=dtype), -1, f"4x{length} {dtype}", exclusive=exclusive
                )
    _check("cumsum", _draw(20, 6, dtype=dtype), 0, f"20x6 {dtype} along 0")


def test_integer_sums_do_not_overflow_their_dtype_and_wrap_at_64_bits() -> None:
    assert _check("cumsum", torch.full((300,), 255, dtype=torch.uint8), 0, "bytes")[-1].item() == 76500
    assert _check("cumsum", torch.tensor([2**62] * 3), 0, "longs")[-1].item() == 3 * 2**62 - 2**64


def test_extremes_of_integers_include_the_limits() -> None:
    for dtype in (torch.int64, torch.uint8):
        info = torch.iinfo(dtype)
        for values in ([info.max, 0, info.min], [info.min, 1, info.max], [info.min] * 3, [info.max] * 3):
            for exclusive in (False, True):
                _check(
                    "cummin", torch.tensor(values, dtype=dtype), 0, f"{values} {dtype}", exclusive=exclusive
                )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_special_values_are_as_in_torch(operation: str) -> None:
    rows = {
        "nan": [1.0, NAN, 5.0],
        "two nans": [0.0, NAN, 2.0, NAN, 1.0],
        "inf": [1.0, INF, 2.0],
        "both inf": [INF, 1.0, -INF],
        "-inf": [-INF, -INF, -INF],
        "+inf": [INF, INF, INF],
        "ties": [1.0, 1.0, 1.0],
        "zeros of both signs": [0.0, -0.0, 0.0],
        "denormals": [1e-40, -1e-40, 3e-40],
        "largest": [3e38, -3e38, 3e38],
    }
    for name, values in rows.items():
        for repeats in (1, 60, 250):
            if repeats > 1 and name == "largest" and operation == "cumsum":
                continue  # a partial sum may overflow, as in torch's float32
            if name == "largest" and operation == "cumprod":
                continue  # the same
            x = torch.tensor(values * repeats)
            for exclusive in (False, True):
                _check(operation, x, 0, f"{name}, {x.numel()} elements", exclusive=exclusive)
            if repeats == 60:
                _check(operation, x[:, None].expand(-1, 2).contiguous(), 0, f"{name}, columns")


def test_one_element_is_carried_from_wherever_it_is_to_the_end() -> None:
    for length in (7, 129, 600, 5000):
        for place in sorted({0, 1, length // 2, length - 1}):
            x = torch.zeros(length)
            x[place] = 1.0
            assert torch.equal(
                _check("cumsum", x, 0, f"{length}, one at {place}"), (torch.arange(length) >= place).float()
            )


@pytest.mark.parametrize("operation", ["cumsum", "cummin"])
def test_every_dimension_of_a_tensor_can_be_chosen(operation: str) -> None:
    x = _input(operation, 3, 5, 7, 6)
    for dim in range(-4, 4):
        for exclusive in (False, True):
            _check(operation, x, dim, f"{tuple(x.shape)} along {dim}", exclusive=exclusive)
    _check(operation, _input(operation, 4, 9, 1), 1, "4x9x1 along 1")


@pytest.mark.parametrize("operation", ["cumsum", "cummax"])
def test_views_are_read_in_place_and_nothing_beside_them(operation: str) -> None:
    for length in (5, 33, 300, 600):
        x = _input(operation, 6, length)
        views = {
            "at an offset": embedded(x),
            "rows apart": padded_rows(x),
            "transposed": x.t().contiguous().t(),
            "every other column": x[:, ::2],
            "every other row": x[::2],
            "one row repeated": x[:1].expand(4, length),
        }
        for name, view in views.items():
            for dim in (0, 1):
                _check(operation, view, dim, f"{name}, {length}, along {dim}")


def test_nothing_and_scalars_have_a_result() -> None:
    for operation in OPERATIONS:
        for shape in ((0, 5), (5, 0), (0,), (2, 0, 3)):
            for dim in range(len(shape)):
                _check(operation, torch.empty(shape), dim, f"{shape} along {dim}")
        for exclusive in (False, True):
            _check(operation, torch.tensor(2.5), 0, "a scalar", exclusive=exclusive)


def test_the_same_line_has_the_same_bits_as_part_of_a_larger_batch() -> None:
    x = _draw(8, 1000)
    assert torch.equal(cumsum(x, 1)[3:4], cumsum(x[3:4], 1))


def test_device_bytes_are_the_least_possible_where_a_line_is_not_shared() -> None:
    for shape, dim in (
        ((5, 7), -1),
        ((9, 100), -1),
        ((3, 1000), -1),
        ((1, 9001), 1),
        ((4, 9, 50), 1),
        ((100, 33), 0),
    ):
        x = _draw(*shape)
        with metalsim.options(check=True) as session:
            cumsum(x, dim)
        assert session.counters.device_read == session.counters.device_written == 4 * x.numel(), (shape, dim)


def test_a_shared_row_is_read_twice_and_written_once() -> None:
    x = _draw(40000)
    with metalsim.options(check=True) as session:
        cumsum(x)
    chunks = 4  # of 10,000 elements: totals are read once, each thread of a chunk reads its offset
    assert session.counters.device_written == 4 * (x.numel() + 2 * chunks)
    assert session.counters.device_read == 4 * (2 * x.numel() + chunks + chunks * 1024)


def test_a_short_row_costs_no_barrier_and_a_long_one_one_for_each_step() -> None:
    for length, barriers in ((500, 0), (600, 1), (640, 1), (4096, 1), (4097, 2)):
        with metalsim.options() as session:
            cumsum(_draw(1, length))
        assert session.counters.barriers == barriers, length


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_cannot_be_computed_is_refused_with_a_reason(operation: str) -> None:
    run = {**SUMS, **EXTREMES}[operation]
    with pytest.raises(InvalidInputError, match=f"{operation}: x is torch.float64"):
        run(torch.ones(3, dtype=torch.float64))
    with pytest.raises(InvalidInputError, match="-2 to 1"):
        run(torch.ones(3, 3), 2)
