"""Elementwise operations: every path against float64 (integers: against torch)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelworks import paths
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.ops import elementwise
from steelworks.ops.elementwise import BINARY_OPERATIONS, UNARY_OPERATIONS, binary, unary

from ._family_cases import (
    EDGES,
    FLOATS,
    LAYOUTS,
    SIZES,
    assert_compiles_and_exports,
    assert_same,
    assert_threads_agree,
    assert_within,
    draw,
    laid_out,
)

F32, F64 = torch.float32, torch.float64
DTYPES = (*FLOATS, F64, torch.int32, torch.int64, torch.uint8, torch.bool)
NO_BOOLEANS = (
    "neg",
    "abs",
    "square",
    "relu",
    "floor",
    "ceil",
    "round",
    "trunc",
    "sub",
    "pow",
    "fmod",
    "remainder",
)
FLOAT_ONLY = ("silu", "gelu", "gelu_tanh")
TO_FLOAT = (
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "sin",
    "cos",
    "tanh",
    "erf",
    "sigmoid",
    "div",
    "atan2",
)
COMPARING = ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "logical_not")
EXACT = ("neg", "abs", "sign", "relu", "floor", "ceil", "round", "trunc", "maximum", "minimum", "fmod")


def _check(operation: str, operands: tuple[Any, ...], got: torch.Tensor, case: object) -> None:
    common = operands[0].dtype if len(operands) == 1 else torch.result_type(*operands)
    whole = not common.is_floating_point
    expected = torch.bool if operation in COMPARING else F32 if whole and operation in TO_FLOAT else common
    assert got.dtype == expected, f"{case}: {got.dtype}"
    exact = F64 if not whole or operation in TO_FLOAT else common
    operands = tuple(torch.as_tensor(t).to(exact) for t in operands)
    want = reference.elementwise(operation, *operands)
    if not got.is_floating_point() or operation in EXACT:
        assert_same(got, want.to(expected), case)
        return
    size = want.abs()
    if operation in ("gelu", "gelu_tanh", "silu"):  # 1 + erf(x) cancels for negative x
        size = torch.maximum(size, operands[0].double().abs())
    if operation == "erf":  # PyTorch's own, in bfloat16, is 0 below about 1e-7
        size = size.clamp(min=2.0**-14)
    if operation in ("remainder", "sub", "add"):
        size = torch.maximum(size, operands[1].double().abs())
    assert_within(got, want, terms=64, magnitude=size, roundings=2, case=case)


def _valid(operation: str, dtype: torch.dtype) -> torch.dtype:
    """A dtype that the operation takes."""
    if operation in FLOAT_ONLY and not dtype.is_floating_point:
        return F32
    return torch.int32 if operation in NO_BOOLEANS and dtype == torch.bool else dtype


@settings(deadline=None, max_examples=250)
@given(
    operation=st.sampled_from(UNARY_OPERATIONS),
    shape=st.lists(SIZES, min_size=0, max_size=3),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    edges=st.booleans(),
)
def test_a_unary_operation_matches_float64(
    operation: str, shape: list[int], dtype: torch.dtype, layout: str, edges: bool
) -> None:
    dtype = _valid(operation, dtype)
    x = laid_out(draw(*shape, dtype=dtype, edges=EDGES if edges else ()), layout)
    if operation in ("log", "sqrt", "rsqrt"):
        x = x.abs() if dtype != torch.bool else x
    if operation == "reciprocal" or operation == "rsqrt":
        x = torch.where(x == 0, torch.ones_like(x), x)  # the sign of the infinity is another
    _check(operation, (x,), unary(operation, x), (operation, shape, dtype, layout, edges))


@settings(deadline=None, max_examples=250)
@given(
    operation=st.sampled_from(BINARY_OPERATIONS),
    shape=st.lists(SIZES, min_size=0, max_size=3),
    reduced=st.lists(st.booleans(), min_size=3, max_size=3),
    dropped=st.integers(0, 2),
    dtype=st.sampled_from(DTYPES),
    other_dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    edges=st.booleans(),
    number=st.sampled_from((None, None, None, 2, -3, 0.75, True)),
)
def test_a_binary_operation_matches_float64(
    operation: str,
    shape: list[int],
    reduced: list[bool],
    dropped: int,
    dtype: torch.dtype,
    other_dtype: torch.dtype,
    layout: str,
    edges: bool,
    number: float | None,
) -> None:
    dtype, other_dtype = _valid(operation, dtype), _valid(operation, other_dtype)
    if operation in NO_BOOLEANS and number is True:  # PyTorch refuses it
        number = 1
    some = EDGES if edges and operation not in ("pow", "fmod", "remainder", "atan2") else ()
    x = laid_out(draw(*shape, dtype=dtype, edges=some), layout)
    smaller = [1 if r else n for n, r in zip(shape, reduced, strict=False)][dropped:]
    y: Any = draw(*smaller, dtype=other_dtype, seed=1, edges=some) if number is None else number
    if operation == "pow":
        x, y = x.abs(), y.abs() if isinstance(y, torch.Tensor) else abs(y)
        if not torch.result_type(x, y).is_floating_point:
            x = x.clamp(max=2) if x.dtype != torch.bool else x  # what overflows depends on the steps
    if operation in ("fmod", "remainder") and isinstance(y, torch.Tensor):
        y = torch.where(y == 0, torch.ones_like(y), y)
        y = y.to(torch.result_type(x, y)).to(y.dtype)  # what PyTorch takes of it: the quotient may be large
    common = torch.result_type(x, y)
    if common == torch.bool and operation in NO_BOOLEANS:
        return
    _check(
        operation,
        (x, y),
        binary(operation, x, y),
        (operation, shape, smaller, dtype, other_dtype, layout, number),
    )


def test_every_operation_is_a_function_of_its_name() -> None:
    x, y = draw(5).abs() + 0.5, draw(5, seed=1).abs() + 0.5
    for name in UNARY_OPERATIONS:
        function: Callable[..., torch.Tensor] = getattr(elementwise, name)
        assert_same(function(x), unary(name, x), name)
        assert function.__name__ == name and function.__doc__
    for name in BINARY_OPERATIONS:
        function = getattr(elementwise, name)
        assert_same(function(x, y), binary(name, x, y), name)
        assert_same(function(x, 2.0), binary(name, x, 2.0), name)
        assert function.__name__ == name and function.__doc__


def test_the_metal_kernels_give_the_same() -> None:
    x, y = draw(3, 33), draw(33, seed=1)
    with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
        results = [("gelu", (x,), elementwise.gelu(x)), ("add", (x, y), elementwise.add(x, y))]
        results.append(("mul", (x, 0.5), elementwise.mul(x, 0.5)))
        results.append(("lt", (x.t(), 0), elementwise.lt(x.t(), 0)))
    for operation, operands, got in results:
        assert recorded.of(operation, "steel") == 1
        assert got.is_contiguous()
        _check(operation, operands, got, ("metal", operation))


def test_what_no_kernel_takes_goes_to_the_vendor() -> None:
    x = draw(3, 5, dtype=F64)
    with paths.simulate_metal(), paths.use("steel"):
        _check("exp", (x,), elementwise.exp(x), "float64")
        _check("add", (x.float(), x), elementwise.add(x.float(), x), "float32 and float64")
        assert elementwise.mul(x.to(torch.complex64), 2).dtype == torch.complex64


def test_gradients_are_those_of_finite_differences() -> None:
    x, y = draw(3, 4, dtype=F64).abs() + 0.5, draw(4, dtype=F64, seed=1).abs() + 0.5
    for name in ("exp", "gelu", "sigmoid", "rsqrt"):
        assert torch.autograd.gradcheck(getattr(elementwise, name), [x.clone().requires_grad_()])
    for name in ("add", "div", "pow", "maximum"):
        operands = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        assert torch.autograd.gradcheck(getattr(elementwise, name), operands)


@pytest.mark.parametrize("name", ["exp", "floor", "logical_not", "gelu_tanh"])
def test_torchs_own_checks_of_a_unary_operator_pass(name: str) -> None:
    operator = getattr(torch.ops.steelworks, name).default
    for x in (draw(3, 5).t(), draw(4) if name == "gelu_tanh" else draw(4, dtype=torch.int32)):
        torch.library.opcheck(operator, (x,))


@pytest.mark.parametrize("name", ["add", "div", "lt", "maximum"])
def test_torchs_own_checks_of_a_binary_operator_pass(name: str) -> None:
    operator = getattr(torch.ops.steelworks, name).default
    cases = ((draw(3, 5).t(), draw(3), None), (draw(3, dtype=torch.int32), draw(2, 1, seed=1), None))
    for arguments in (*cases, (draw(3), None, 2.0), (draw(3, dtype=torch.int64), None, 2)):
        torch.library.opcheck(operator, arguments)


def test_compile_and_export_give_the_same() -> None:
    def several(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z = elementwise.mul(elementwise.gelu(x), y)
        return elementwise.add(z, 1.5), elementwise.maximum(x, 0), elementwise.lt(z, y), elementwise.pow(x, 2)

    assert_compiles_and_exports(several, draw(3, 5), draw(5, seed=1))


def test_many_threads_at_once_get_what_one_gets() -> None:
    assert_threads_agree(elementwise.silu, [(draw(n, 40, seed=n, dtype=d),) for n in (1, 4) for d in FLOATS])
    pairs = [(draw(n, 40), other) for n in (1, 4) for other in (2, 0.5, draw(40, seed=1))]
    assert_threads_agree(elementwise.add, pairs)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda: unary("arctan", torch.ones(3)), "operation is 'arctan'; allowed are neg, abs"),
        (lambda: unary("add", torch.ones(3)), "operation is 'add'; allowed are neg, abs"),
        (lambda: binary("xor", torch.ones(3), 1.0), "operation is 'xor'; allowed are add, sub"),
        (
            lambda: elementwise.silu(torch.ones(3, dtype=torch.int32)),
            "silu: input is torch.int32; floating.*convert",
        ),
        (
            lambda: elementwise.neg(torch.ones(3, dtype=torch.bool)),
            "neg: input is torch.bool; integer and.*convert",
        ),
        (lambda: elementwise.sub(torch.ones(3, dtype=torch.bool), True), "sub: the operands are torch.bool"),
        (lambda: elementwise.add(torch.ones(3), torch.ones(4)), r"\(3,\) and \(4,\) do not broadcast"),
        (lambda: elementwise.add(torch.ones(3), "1"), "other is of type str; a tensor or a number"),
        (lambda: elementwise.add(torch.ones(3), torch.ones(3, device="meta")), "'meta'.*'cpu'"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(run: Callable[[], object], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        run()


def test_nothing_has_a_result() -> None:
    for path in ("vendor", "steel"):
        with paths.simulate_metal(), paths.use(path):
            assert elementwise.neg(torch.ones(0, 3)).shape == (0, 3)
            assert elementwise.add(torch.ones(2, 0, 3), torch.ones(3)).shape == (2, 0, 3)
            assert math.isnan(float(elementwise.div(torch.tensor(0.0), 0)))
