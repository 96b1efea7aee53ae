"""softmax and log_softmax against float64, in checking mode under four schedules."""

from __future__ import annotations

import math

import pytest
import torch
from _cases import DTYPES, assert_close, embedded, padded_rows, run_checked

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.metal._launch import Variant, empty, launch
from steelworks.kernels.metal.softmax import log_softmax, softmax

INF, NAN = math.inf, math.nan
OPERATIONS = {"softmax": softmax, "log_softmax": log_softmax}
#: Limits of the row forms, one less and one more, and primes.
LENGTHS = (
    1,
    2,
    3,
    7,
    8,
    9,
    29,
    31,
    32,
    33,
    101,
    127,
    128,
    129,
    257,
    509,
    511,
    512,
    513,
    1000,
    1021,
    1025,
    2049,
)
LONG = (4095, 4096, 4097, 8191, 16384)
LOOPED = (16385, 20011)


def _draw(*shape: int, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    seed = sum((i + 1) * n for i, n in enumerate(shape))
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def _check(
    operation: str, x: torch.Tensor, dim: int, case: object, dtype: torch.dtype | None = None
) -> torch.Tensor:
    got = run_checked("softmax", lambda: OPERATIONS[operation](x, dim, dtype=dtype), case)
    assert got.dtype == (x.dtype if dtype is None else dtype), case
    assert got.is_contiguous(), case
    want = getattr(reference, operation)(x, dim)
    length = x.shape[dim] if x.dim() else 1
    if got.numel():
        # x - maximum is rounded, and what follows passes the error on.
        below = (
            (x.double() - x.double().amax(dim, keepdim=True)).abs().nan_to_num(0.0, 0.0, 0.0)
            if x.dim()
            else 0.0
        )
        if operation == "softmax":
            size = want.nan_to_num(0.0, 0.0, 0.0).abs() * (1 + below)
        else:
            size = below + 1 + math.log(length)
        assert_close("softmax", got, want, case, terms=length, magnitude=size)
    return got


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("rows", [1, 5, 37])
def test_rows_of_any_length_match_the_reference(operation: str, rows: int) -> None:
    for length in LENGTHS:
        _check(operation, _draw(rows, length), -1, f"{operation} {rows}x{length}")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_long_rows_match_the_reference(operation: str) -> None:
    for length in LONG + LOOPED:
        _check(operation, _draw(2, length), -1, f"{operation} 2x{length}")


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_half_and_bfloat_rows_are_rounded_once(dtype: torch.dtype) -> None:
    for length in (1, 3, 31, 33, 128, 129, 512, 513, 1000):
        for rows in (1, 9):
            _check("softmax", _draw(rows, length, dtype=dtype), -1, f"softmax {rows}x{length} {dtype}")
    for length in (5, 32):
        _check("log_softmax", _draw(7, length, dtype=dtype), -1, f"log_softmax 7x{length} {dtype}")


def test_the_result_may_have_a_dtype_of_its_own() -> None:
    for length in (3, 32):
        x = _draw(6, length, dtype=torch.float16)
        _check("softmax", x, -1, f"half {length} to float", torch.float32)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 17, 63, 255, 256])
def test_columns_match_the_reference(operation: str, length: int) -> None:
    for outer, inner in ((1, 2), (1, 31), (3, 32), (2, 33), (1, 65), (5, 3)):
        _check(operation, _draw(outer, length, inner), 1, f"{operation} {outer}x{length}x{inner} along 1")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_long_columns_match_the_reference(operation: str) -> None:
    for length in (257, 1024, 1025, 1531):
        for inner in (3, 33):
            _check(operation, _draw(1, length, inner), 1, f"{operation} 1x{length}x{inner} along 1")


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_half_and_bfloat_columns_are_rounded_once(dtype: torch.dtype) -> None:
    for length in (1, 9, 100):
        _check("softmax", _draw(2, length, 21, dtype=dtype), 1, f"softmax 2x{length}x21 {dtype} along 1")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_dimension_of_a_tensor_can_be_chosen(operation: str) -> None:
    x = _draw(3, 5, 7, 6)
    for dim in range(-4, 4):
        _check(operation, x, dim, f"{operation} of {tuple(x.shape)} along {dim}")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_views_are_read_in_place_and_nothing_beside_them(operation: str) -> None:
    for length in (5, 33, 100, 300, 600):
        x = _draw(6, length)
        _check(operation, embedded(x), -1, f"{operation} at an offset, {length}")
        _check(operation, padded_rows(x), -1, f"{operation} rows apart, {length}")
        _check(operation, x.t().contiguous().t(), -1, f"{operation} transposed, {length}")
        _check(operation, x[:, ::2], -1, f"{operation} every other column, {length}")
        _check(operation, x[::2], -1, f"{operation} every other row, {length}")
        _check(operation, x[:1].expand(4, length), -1, f"{operation} one row repeated, {length}")
        _check(operation, embedded(x), 0, f"{operation} at an offset along 0, {length}")
    x = _draw(2, 3, 4, 40).transpose(1, 2)
    _check(operation, x, -1, f"{operation} of a transposed 4-D tensor")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_special_values_are_as_in_torch(operation: str) -> None:
    rows = {
        "all -inf": [-INF, -INF, -INF],
        "some -inf": [-INF, 1.0, 2.0],
        "leading -inf": [-INF, -INF, -3e38],
        "+inf": [INF, 1.0, -1.0],
        "both inf": [INF, -INF, 0.0],
        "nan": [0.0, NAN, 1.0],
        "nan and -inf": [-INF, NAN, -INF],
        "zeros of both signs": [0.0, -0.0, 0.0],
        "denormals": [1e-40, -1e-40, 0.0],
        "largest": [3.4e38, -3.4e38, 3.4e38],
        "lowest": [-3.4028234663852886e38] * 3,
        "far apart": [0.0, -104.0, -1000.0],
        "equal": [7.25, 7.25, 7.25],
    }
    for name, values in rows.items():
        for repeats in (1, 30, 200, 400, 6000):
            x = torch.tensor([values * repeats, [0.5] * (3 * repeats)])
            case = f"{operation} of {name}, {3 * repeats} elements"
            if "largest" in name and operation == "log_softmax":
                continue  # the difference overflows float32, as in torch's float32
            _check(operation, x, -1, case)
            if repeats < 400:
                _check(operation, x.t().contiguous(), 0, f"{case}, as columns")


def test_a_row_that_only_begins_with_inf_is_not_poisoned_in_the_looped_form() -> None:
    x = torch.full((2, 17000), -INF)
    x[0, 16999] = 2.0
    got = _check("softmax", x, -1, "one finite element at the end")
    assert got[0, 16999] == 1.0
    assert bool(got[1].isnan().all())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_empty_and_scalar_tensors_have_a_result(operation: str) -> None:
    for shape in ((0, 5), (5, 0), (0,), (2, 0, 3)):
        for dim in range(len(shape)):
            got = run_checked(
                "softmax", lambda s=shape, d=dim: OPERATIONS[operation](torch.empty(s), d), shape
            )
            assert got.shape == torch.Size(shape)
    got = run_checked("softmax", lambda: OPERATIONS[operation](torch.tensor(3.0), 0), "a scalar")
    assert got.shape == torch.Size([])
    assert got.item() == (1.0 if operation == "softmax" else 0.0)


def test_the_looped_form_runs_with_groups_of_any_size() -> None:
    variant = Variant("softmax", "softmax_row_looped", ("float", "float", False, 4))
    for group in (32, 96, 1024):
        for length in (1, 127, 128, 1000, 5003):
            x = _draw(3, length)

            def run(x: torch.Tensor = x, group: int = group) -> torch.Tensor:
                out = empty(x.shape, x.dtype, x.device)
                launch(variant, x, out, [3, x.shape[1], x.shape[1], 1], threads=(3 * group,), group=(group,))
                return out

            case = f"length {length}, {group} threads"
            got = run_checked("softmax", run, case)
            below = (x - x.amax(-1, keepdim=True)).abs()
            want = reference.softmax(x)
            assert_close("softmax", got, want, case, terms=length, magnitude=want * (1 + below))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_device_bytes_are_the_least_possible_up_to_16384_elements(dtype: torch.dtype) -> None:
    for shape, dim in (((5, 7), -1), ((40, 100), -1), ((9, 300), -1), ((2, 1000), -1), ((3, 9, 50), 1)):
        x = _draw(*shape, dtype=dtype)
        with metalsim.options(check=True) as session:
            softmax(x, dim)
        assert session.counters.device_read == x.numel() * x.element_size(), (shape, dim)
        assert session.counters.device_written == x.numel() * x.element_size(), (shape, dim)


def test_what_is_too_long_for_registers_is_read_twice_and_not_more() -> None:
    for shape, dim in (((2, 16385), -1), ((1, 1025, 33), 1)):
        x = _draw(*shape)
        with metalsim.options(check=True) as session:
            softmax(x, dim)
        assert session.counters.device_read == 2 * x.numel() * 4, (shape, dim)
        assert session.counters.device_written == x.numel() * 4, (shape, dim)


def test_a_row_costs_one_barrier_and_a_short_one_none() -> None:
    for length, barriers in ((100, 0), (500, 0), (600, 3)):
        with metalsim.options() as session:
            softmax(_draw(3, length))
        assert session.counters.barriers == barriers, length


@pytest.mark.parametrize(
    ("x", "arguments", "said"),
    [
        (torch.ones(3, dtype=torch.int32), {}, "float32, float16 or bfloat16"),
        (torch.ones(3, dtype=torch.float64), {}, "float64"),
        (torch.ones(3), {"dtype": torch.int32}, "int32"),
        (torch.ones(3, 3), {"dim": 2}, "-2 to 1"),
        (torch.tensor(1.0), {"dim": 1}, "-1 to 0"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_a_reason(
    x: torch.Tensor, arguments: dict[str, int], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        softmax(x, **arguments)
