"""Elementwise operations against float64 (integers: against torch), in checking mode under four schedules."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from _cases import DTYPES, assert_close, assert_equal, embedded, padded_rows, run_checked

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.metal.elementwise import BINARY_OPERATIONS, UNARY_OPERATIONS, binary, unary

INF, NAN = math.inf, math.nan
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
#: Around a packet (4) and a threadgroup (1024 elements).
SIZES = (1, 2, 3, 4, 5, 7, 127, 1023, 1024, 1025)
EXACT = (
    "neg",
    "abs",
    "sign",
    "relu",
    "floor",
    "ceil",
    "round",
    "trunc",
    "logical_not",
    "maximum",
    "minimum",
    "fmod",
)
WHOLE = ("neg", "abs", "sign", "square", "relu", "floor", "ceil", "round", "trunc", "logical_not")
FLOAT_ONLY = ("silu", "gelu", "gelu_tanh")
WHOLE_BINARY = ("add", "sub", "mul", "maximum", "minimum", "pow", "fmod", "remainder")
COMPARING = ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor")
#: Relative error beyond 11 roundings: Metal's documented bounds (16 units of the last place for pow, 6 for
#: atan2), and of exponentials whose argument was rounded before.
EXTRA = {
    "pow": 16 * 2.0**-23,
    "atan2": 6 * 2.0**-23,
    "tanh": 5 * 2.0**-23,
    "rsqrt": 2.0**-23,
    "gelu": 1e-5,
    "gelu_tanh": 3e-5,
}
#: Results below this may be 0: 1 / (1 + exp(-x)) is where exp overflows.
TINY = 2.0**-96
SPECIAL = (
    0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 3.0, 7.0, -7.0, 20.0, -20.0, 80.0, -80.0, 100.0, -100.0,
    1e4, -1e4, 1e-3, -1e-3, 1e-8, 1e-30, -1e-30, 1e-40, -1e-40, 8388609.0, 6e4, INF, -INF, NAN,
)  # fmt: skip


def _draw(*shape: int, dtype: torch.dtype = F32, scale: float = 3.0) -> torch.Tensor:
    made = torch.Generator().manual_seed(sum((i + 1) * n for i, n in enumerate(shape)))
    if dtype == torch.bool:
        return torch.rand(shape, generator=made) < 0.5
    if not dtype.is_floating_point:
        return torch.randint(0 if dtype == torch.uint8 else -9, 10, shape, generator=made).to(dtype)
    return (torch.randn(shape, generator=made) * scale).to(dtype)


def _compare(operation: str, got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype, case: object) -> None:
    assert got.dtype == dtype, f"{case}: {got.dtype} instead of {dtype}"
    if not got.is_floating_point() or operation in EXACT:
        assert_equal("elementwise", got, want.to(dtype), case)
    else:
        size = want.abs().nan_to_num(0.0, 0.0, 0.0) + TINY
        assert_close("elementwise", got, want, case, terms=1, magnitude=size, extra=EXTRA.get(operation, 0.0))


def _unary(operation: str, x: torch.Tensor, case: object) -> torch.Tensor:
    got = run_checked("elementwise", lambda: unary(operation, x), case)
    assert got.is_contiguous(), case
    want = reference.elementwise(operation, x)
    whole = not x.is_floating_point()
    dtype = torch.bool if operation == "logical_not" else F32 if whole and operation not in WHOLE else x.dtype
    _compare(operation, got, want, dtype, case)
    return got


def _binary(operation: str, a: torch.Tensor, b: torch.Tensor | float, case: object) -> torch.Tensor:
    got = run_checked("elementwise", lambda: binary(operation, a, b), case)
    assert got.is_contiguous(), case
    dtype = torch.result_type(a, b)
    whole = not dtype.is_floating_point
    if not whole and isinstance(b, torch.Tensor):
        want = reference.elementwise(operation, a.double(), b.double())
    else:
        want = reference.elementwise(operation, a, b)
    if operation in COMPARING:
        dtype = torch.bool
    elif whole and operation in ("div", "atan2"):
        dtype = F32
    _compare(operation, got, want, dtype, case)
    return got


@pytest.mark.parametrize("operation", UNARY_OPERATIONS)
def test_a_unary_operation_matches_the_reference_for_every_size(operation: str) -> None:
    for size in SIZES:
        x = _draw(size)
        _unary(operation, x.abs() if operation in ("log", "sqrt", "rsqrt") else x, f"{operation} of {size}")
    for scale in (0.01, 30.0):
        _unary(operation, _draw(1000, scale=scale), f"{operation} of 1000, scale {scale}")


@pytest.mark.parametrize("operation", UNARY_OPERATIONS)
def test_a_unary_operation_has_torchs_special_values(operation: str) -> None:
    x = torch.tensor(SPECIAL)
    if operation in ("log", "rsqrt", "reciprocal", "sqrt"):
        x = x[(x == 0) | (x.abs() > 1e-37) | x.isnan()]  # a GPU may take a denormal for 0
    _unary(operation, x, f"{operation} of special values")
    # torch in float32 has NaN and inf in the same places.
    direct = reference.elementwise(operation, x)
    got = unary(operation, x)
    assert torch.equal(got.isnan(), direct.isnan()), operation


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_half_and_bfloat_are_computed_in_float_and_rounded_once(dtype: torch.dtype) -> None:
    for operation in ("round", "exp", "gelu_tanh"):
        for size in (1, 7, 8, 1025):
            x = _draw(size, dtype=dtype)
            _unary(operation, x, f"{operation} of {size} {dtype}")
    _unary("exp", torch.tensor([11.1, 12.0, 88.0, -20.0], dtype=dtype), f"exp at the edge of {dtype}")
    for operation in ("add", "pow", "lt"):
        a, b = _draw(1000, dtype=dtype), _draw(1000, dtype=dtype).abs() + 0.5
        _binary(operation, a.abs() if operation == "pow" else a, b, f"{operation} of 1000 {dtype}")


@pytest.mark.parametrize("operation", WHOLE)
def test_integers_stay_integers_where_that_has_a_meaning(operation: str) -> None:
    dtypes = {
        "neg": (torch.int64, torch.int32, torch.uint8),
        "abs": (torch.int64, torch.int8),
        "square": (torch.uint8,),
    }
    for dtype in dtypes.get(operation, (torch.int32,)):
        info = torch.iinfo(dtype)
        x = torch.tensor([0, 1, 2, 3, 100, info.max, info.min, info.max - 1], dtype=dtype)
        _unary(operation, x, f"{operation} of {dtype}")
        _unary(operation, _draw(30, dtype=dtype), f"{operation} of {dtype}")


def test_integers_become_float_where_they_must() -> None:
    for operation, dtype in itertools.product(("sqrt", "sigmoid"), (torch.int64, torch.uint8, torch.bool)):
        x = _draw(50, dtype=dtype)
        _unary(operation, x.abs() if dtype == torch.int64 else x, (operation, dtype))
    _unary("sign", _draw(50, dtype=torch.bool), "sign of bool")
    _unary("logical_not", _draw(50, dtype=torch.bool), "logical_not of bool")


@pytest.mark.parametrize("operation", BINARY_OPERATIONS)
def test_a_binary_operation_matches_the_reference_for_every_size(operation: str) -> None:
    for size in SIZES:
        a, b = _draw(size), _draw(size, 1)[:, 0] * 0.7
        if operation == "pow":
            a = a.abs()
        _binary(operation, a, b.contiguous(), f"{operation} of {size}")
        if operation in COMPARING and size > 2:
            _binary(operation, a.round(), b.round(), f"{operation} of {size}, with ties")


@pytest.mark.parametrize("operation", BINARY_OPERATIONS)
def test_a_binary_operation_has_torchs_special_values(operation: str) -> None:
    values = [v for v in SPECIAL if v == 0 or not abs(v) < 1e-37]  # a GPU may take a denormal for 0
    pairs = torch.tensor(list(itertools.product(values, values)))
    a, b = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
    if operation == "remainder":
        kept = ~(
            (a.abs() < 1e-2 * b.abs()) & b.isfinite()
        )  # where a remainder plus b is just b, its last bit is rounded
        a, b = a[kept], b[kept]
    if operation in ("add", "sub", "mul", "div", "pow", "atan2"):
        with_float = reference.elementwise(operation, a, b).float()
        kept = (with_float == 0) | (with_float.abs() > 1e-37) | with_float.isnan()
        a, b = a[kept], b[kept]
    _binary(operation, a, b, f"{operation} of special values")


@pytest.mark.parametrize("operation", ["add", "sub", "lt"])
def test_operands_are_broadcast_over_any_dimensions(operation: str) -> None:
    for left, right in (
        ((5, 7), (7,)), ((5, 7), (5, 1)), ((5, 1), (1, 7)), ((3, 4, 5), (4, 1)), ((3, 1, 5), (1, 4, 1)), ((7,), ()),
        ((), (3, 5)), ((2, 1, 3, 1, 5, 1), (1, 4, 1, 2, 1, 3)), ((2, 3, 1, 2, 1, 2, 3), (2, 1, 2, 1, 3, 2, 1)),
        ((1,), (1, 1)), ((33, 1), (1, 129)), ((2, 1000), (1000,)), ((300, 3), (3,)), ((1, 8), (64, 8)),
        ((6, 1), (6, 200)), ((2, 1, 3, 1, 2, 1, 2, 1), (1, 2, 1, 2, 1, 3, 1, 2)),
    ):  # fmt: skip
        _binary(operation, _draw(*left), _draw(*right), f"{operation} of {left} and {right}")


def test_strided_and_offset_views_are_read_in_place() -> None:
    x, y = _draw(6, 33), _draw(33, 6) * 0.5
    views = {
        "at an offset": (embedded(x), embedded(y.t().contiguous())),
        "rows apart": (padded_rows(x), padded_rows(y.t().contiguous(), pad=1)),
        "transposed": (x, y.t()),
        "both transposed": (x.t(), y),
        "every other column": (x[:, ::2], y.t()[:, ::2]),
        "every other row": (x[::2], y.t()[1::2]),
        "expanded": (x[:1].expand(6, 33), y.t()),
        "both expanded": (x[:1].expand(6, 33), y.t()[:, :1].expand(6, 33)),
        "one element": (x[0, 0].expand(6, 33), y.t()),
        "the same tensor": (x, x),
        "diagonals": (x.diagonal(), y.diagonal()),
    }
    for name, (a, b) in views.items():
        _binary("add", a, b, f"add, {name}")
        _binary("sub", b, a, f"sub, {name}")
        for operation in ("neg", "exp"):
            _unary(operation, a, f"{operation}, {name}")
    deep = _draw(3, 4, 2, 5, 2, 3, 2)
    for order in ((6, 5, 4, 3, 2, 1, 0), (0, 2, 1, 4, 3, 6, 5), (1, 0, 2, 3, 4, 5, 6)):
        _unary("neg", deep.permute(order), f"seven dimensions as {order}")
        _binary("add", deep.permute(order), _draw(*deep.permute(order).shape), f"seven dimensions as {order}")
    _unary(
        "neg", _draw(2, 2, 2, 2, 2, 2, 2, 2, 2).permute(8, 7, 6, 5, 4, 3, 2, 1, 0), "nine dimensions, copied"
    )


@pytest.mark.parametrize("operation", WHOLE_BINARY)
def test_integers_are_combined_as_in_torch(operation: str) -> None:
    pairs = torch.tensor(list(itertools.product(range(-7, 8), range(-7, 8))))
    a, b = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
    if operation in ("fmod", "remainder"):
        a, b = a[b != 0], b[b != 0]
    _binary(operation, a, b, f"{operation} of int64")
    _binary(operation, a.int(), b.int(), f"{operation} of int32")
    if operation in ("add", "mul", "remainder"):
        kept = b.abs().clamp(min=1).to(torch.uint8)
        _binary(operation, a.to(torch.uint8), kept, f"{operation} of uint8, wrapping")
    limits = torch.tensor([2**31 - 1, -(2**31), -(2**31), 5], dtype=torch.int32)
    by = torch.tensor([2, -1, 3, -(2**31)], dtype=torch.int32)
    if operation != "pow":
        _binary(operation, limits, by, f"{operation} at the limits of int32")


def test_a_remainder_by_zero_is_zero_for_integers() -> None:
    for operation in ("fmod", "remainder"):
        for dtype in (torch.int32, torch.int64):
            x = torch.tensor([5, -5, 0], dtype=dtype)
            case = f"{operation} of {dtype} by 0"
            got = run_checked("elementwise", lambda o=operation, x=x: binary(o, x, torch.zeros_like(x)), case)
            assert got.tolist() == [0, 0, 0]


def test_dtypes_are_promoted_as_in_torch() -> None:
    for left, right in (
        (torch.bool, torch.uint8), (torch.bool, F16), (torch.uint8, torch.int8), (torch.uint8, torch.int64),
        (torch.int32, F16), (torch.int64, torch.int32), (torch.int64, BF16), (F16, BF16), (F16, F32),
        (F32, BF16), (F32, torch.int64),
    ):  # fmt: skip
        a, b = _draw(9, dtype=left), _draw(9, 1, dtype=right)[:, 0].contiguous()
        _binary("mul", a, b, f"mul of {left} and {right}")
    _binary("mul", _draw(9, dtype=torch.bool), _draw(9, 1, dtype=torch.bool)[:, 0], "mul of bools")
    _binary("add", _draw(9, dtype=torch.bool), _draw(9, 1, dtype=torch.bool)[:, 0], "add of bools")
    _binary("mul", _draw(9, dtype=F16), torch.tensor(0.1), "a scalar tensor does not promote")
    _binary("div", _draw(9, dtype=torch.int32), torch.tensor([2] * 9), "integers are divided as floats")
    _binary("eq", torch.arange(9), torch.arange(9).float() * 1.0, "int64 and float are compared as floats")


def test_the_second_operand_may_be_a_number() -> None:
    whole = (_draw(30, dtype=torch.int32), _draw(30, dtype=torch.int64))
    for x in (_draw(100), _draw(6, 7).t(), _draw(100, dtype=F16), *whole):
        for number in (2, -3, 0.1, 1.5, True):
            for operation in ("add", "mul") if x.dtype == F32 else ("mul",):
                _binary(operation, x, number, f"{operation} of {x.dtype} {tuple(x.shape)} and {number}")
    _binary("add", torch.arange(5), 2**40, "a number beyond int32")
    _binary("add", torch.arange(5, dtype=torch.int32), 2**31 - 1, "the largest int32")
    _binary("lt", _draw(20), 0, "lt of 0")
    _binary("pow", _draw(20), 2, "squares")
    _binary("mul", _draw(20), INF, "times inf")


def test_empty_and_scalar_tensors_have_a_result() -> None:
    for shape in ((0,), (0, 5), (5, 0), (2, 0, 3)):
        assert unary("neg", torch.empty(shape)).shape == shape
        assert binary("add", torch.empty(shape), 1.0).shape == shape
        assert binary("add", torch.empty(shape), torch.ones(1)).shape == shape
    _unary("neg", torch.tensor(3.0), "neg of a scalar")
    _binary("add", torch.tensor(3.0), torch.tensor(4.0), "two scalars")
    _unary("floor", torch.tensor(3), "floor of a whole scalar")


def test_device_bytes_are_the_least_possible() -> None:
    x, y, row = _draw(30, 40), _draw(40, 30) * 2, _draw(40)
    other = y.view(30, 40)
    runs = (
        (2, lambda: unary("exp", x)),
        (3, lambda: binary("add", x, other)),
        (2, lambda: unary("neg", y.t())),
    )
    for size, run in runs:
        with metalsim.options(check=True) as session:
            run()
        assert session.counters.device_bytes == size * 1200 * 4
    with metalsim.options(check=True) as session:
        binary("mul", x, 3.0)
    assert session.counters.device_bytes == 2 * 1200 * 4
    with metalsim.options(check=True) as session:
        binary("add", x, row)
    assert session.counters.device_bytes == 3 * 1200 * 4  # the row is read again for each row


@pytest.mark.parametrize(
    ("operation", "operands", "said"),
    [
        ("arctan", (torch.ones(3),), "allowed are neg, abs"),
        ("silu", (torch.ones(3, dtype=torch.int32),), "convert them"),
        ("exp", (torch.ones(3, dtype=torch.float64),), "float64"),
        ("neg", (torch.ones(3, dtype=torch.bool),), "bool"),
        ("xor", (torch.ones(3), 1.0), "allowed are add, sub"),
        ("add", (torch.ones(3), torch.ones(4)), "do not broadcast"),
        ("sub", (torch.ones(3, dtype=torch.bool), True), "bool"),
        ("add", (torch.ones(3), torch.ones(3, dtype=torch.float64)), "float64"),
        ("eq", (torch.ones(3), torch.ones((), dtype=torch.float64)), "float64"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_a_reason(
    operation: str, operands: tuple[torch.Tensor, ...], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        (unary if len(operands) == 1 else binary)(operation, *operands)
