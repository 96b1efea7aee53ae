"""Elementwise operations of one tensor, or of two that are broadcast together; any strides; torch's type promotion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch

from steelworks.errors import InvalidInputError

from . import tuning
from ._launch import METAL_TYPES, Variant, empty, launch, metal_type
from ._views import FLOATS, GROUP, ceil_div, check_size, merge, round_up

#: Dimensions of the strided form, the last one included: ELEMENTWISE_DIMS + 1 in params.h.
_DIMS: Final = 7
_INT32: Final = range(-(2**31), 2**31)

#: What an operation does with integers: computes with them, makes float32 of them first, or leaves them as
#: they are.
_Integers = Literal["compute", "float", "same", "refuse"]


@dataclass(frozen=True)
class _Operation:
    """A row of the table of operations.

    Attributes:
        functor: Its name in elementwise/ops.h.
        integers: What becomes of integer operands.
        booleans: Whether it takes bool without another dtype.
        compares: The result is bool.
    """

    functor: str
    integers: _Integers = "float"
    booleans: bool = True
    compares: bool = False


_UNARY: Final = {
    "neg": _Operation("Neg", "compute", booleans=False),
    "abs": _Operation("Abs", "compute", booleans=False),
    "sign": _Operation("Sign", "compute"),
    "square": _Operation("Square", "compute", booleans=False),
    "relu": _Operation("Relu", "compute", booleans=False),
    "floor": _Operation("Floor", "same", booleans=False),
    "ceil": _Operation("Ceil", "same", booleans=False),
    "round": _Operation("Round", "same", booleans=False),
    "trunc": _Operation("Trunc", "same", booleans=False),
    "exp": _Operation("Exp"),
    "log": _Operation("Log"),
    "sqrt": _Operation("Sqrt"),
    "rsqrt": _Operation("Rsqrt"),
    "reciprocal": _Operation("Reciprocal"),
    "sin": _Operation("Sin"),
    "cos": _Operation("Cos"),
    "tanh": _Operation("Tanh"),
    "erf": _Operation("Erf"),
    "sigmoid": _Operation("Sigmoid"),
    "silu": _Operation("Silu", "refuse"),
    "gelu": _Operation("Gelu", "refuse"),
    "gelu_tanh": _Operation("GeluTanh", "refuse"),
    "logical_not": _Operation("LogicalNot", "compute", compares=True),
}
_BINARY: Final = {
    "add": _Operation("Add", "compute"),
    "sub": _Operation("Sub", "compute", booleans=False),
    "mul": _Operation("Mul", "compute"),
    "div": _Operation("Div"),
    "maximum": _Operation("Maximum", "compute"),
    "minimum": _Operation("Minimum", "compute"),
    "pow": _Operation("Pow", "compute", booleans=False),
    "fmod": _Operation("Fmod", "compute", booleans=False),
    "remainder": _Operation("Remainder", "compute", booleans=False),
    "atan2": _Operation("Atan2"),
    "eq": _Operation("Eq", "compute", compares=True),
    "ne": _Operation("Ne", "compute", compares=True),
    "lt": _Operation("Lt", "compute", compares=True),
    "le": _Operation("Le", "compute", compares=True),
    "gt": _Operation("Gt", "compute", compares=True),
    "ge": _Operation("Ge", "compute", compares=True),
    "logical_and": _Operation("LogicalAnd", "compute", compares=True),
    "logical_or": _Operation("LogicalOr", "compute", compares=True),
    "logical_xor": _Operation("LogicalXor", "compute", compares=True),
}
UNARY_OPERATIONS: Final = tuple(_UNARY)
BINARY_OPERATIONS: Final = tuple(_BINARY)


@dataclass(frozen=True)
class _Params:
    """elementwise/params.h, with the dimensions in one tuple each."""

    sizes: tuple[int, ...]
    a_strides: tuple[int, ...]
    b_strides: tuple[int, ...]
    b_number: bool
    a_step: int = 1
    b_step: int = 1

    def packed(self) -> list[int]:
        """The fields in the order of the struct."""
        missing = _DIMS - len(self.sizes)
        sizes = (1,) * missing + self.sizes
        a = (0,) * missing + self.a_strides
        b = (0,) * missing + self.b_strides
        rows = math.prod(sizes[:-1])
        first = [rows * sizes[-1], sizes[-1], rows, self.a_step, self.b_step, int(self.b_number)]
        return [*first, *sizes[:-1], *a[:-1], *b[:-1], a[-1], b[-1]]


def unary(operation: str, x: torch.Tensor) -> torch.Tensor:
    """An operation on every element of a tensor.

    Computed in float32 (integers: with themselves, wrapping) and rounded once. Dtypes are torch's: a float dtype stays,
    integers stay where the operation has a meaning for them and become float32 where it has not. ``round``
    takes halves to even; ``gelu`` is the exact form, ``gelu_tanh`` the approximation.

    Args:
        operation: One of ``UNARY_OPERATIONS``.
        x: Of any shape and strides.

    Returns:
        A dense tensor of ``x``'s shape.

    Raises:
        InvalidInputError: no such operation, or a dtype that it does not take.
    """
    chosen = _UNARY.get(operation)
    if chosen is None:
        raise InvalidInputError(f"operation is {operation!r}; allowed are {', '.join(UNARY_OPERATIONS)}")
    compute, result = _dtypes(operation, chosen, x.dtype)
    if chosen.integers == "same" and result not in FLOATS:
        return empty(x.shape, x.dtype, x.device).copy_(x)
    out = empty(x.shape, result, x.device)
    if out.numel() == 0:
        return out
    types = (metal_type(x.dtype), compute, metal_type(result), f"steel::{chosen.functor}")
    _run(operation, types, x, None, out)
    return out


def binary(operation: str, a: torch.Tensor, b: torch.Tensor | float | int | bool) -> torch.Tensor:
    """An operation on the elements of two tensors, broadcast together; the second may be a number.

    Computed in float32 (integers: in int32 or int64, wrapping) and rounded once. Dtypes are torch's
    (``torch.result_type``), but for an integer with a 0 divisor: ``fmod`` and ``remainder`` give 0.

    Args:
        operation: One of ``BINARY_OPERATIONS``.
        a: Of any shape and strides.
        b: A tensor whose shape broadcasts with ``a``'s, on the same device, or a number.

    Returns:
        A dense tensor of the common shape; bool for comparisons and logical operations.

    Raises:
        InvalidInputError: no such operation, dtypes that it does not take, or shapes that do not broadcast.
    """
    chosen = _BINARY.get(operation)
    if chosen is None:
        raise InvalidInputError(f"operation is {operation!r}; allowed are {', '.join(BINARY_OPERATIONS)}")
    compute, result = _dtypes(operation, chosen, torch.result_type(a, b))
    if isinstance(b, torch.Tensor):
        b_type = metal_type(b.dtype)
    elif isinstance(b, float) or b in _INT32:
        b_type = "float" if isinstance(b, float) else "int"
    else:
        return binary(operation, a, torch.tensor(b, device=a.device))
    other = b.shape if isinstance(b, torch.Tensor) else torch.Size()
    try:
        shape: torch.Size = torch.broadcast_shapes(a.shape, other)  # type: ignore[no-untyped-call]
    except RuntimeError as problem:
        raise InvalidInputError(
            f"{operation}: shapes {tuple(a.shape)} and {tuple(other)} do not broadcast together"
        ) from problem
    out = empty(shape, result, a.device)
    if out.numel() == 0:
        return out
    types = (metal_type(a.dtype), b_type, compute, metal_type(result), f"steel::{chosen.functor}")
    _run(operation, types, a.expand(shape), b.expand(shape) if isinstance(b, torch.Tensor) else b, out)
    return out


def _dtypes(operation: str, chosen: _Operation, given: torch.dtype) -> tuple[str, torch.dtype]:
    """What an operation computes in, and the dtype of the result, for operands that promote to ``given``."""
    whole = given not in FLOATS
    refused = (whole and chosen.integers == "refuse") or (given == torch.bool and not chosen.booleans)
    if given not in METAL_TYPES or refused:
        raise InvalidInputError(
            f"{operation}: operands are {given}, which it does not take: convert them, to float32 for example"
        )
    if not whole or chosen.integers == "float":
        compute, result = "float", torch.float32 if whole else given
    else:
        compute, result = "long" if given == torch.int64 else "int", given
    return compute, torch.bool if chosen.compares else result


def _run(
    operation: str,
    types: tuple[str, ...],
    a: torch.Tensor,
    b: torch.Tensor | float | int | None,
    out: torch.Tensor,
) -> None:
    """``b``: None for an operation of one operand, or a number that goes along as an argument."""
    check_size(operation, out.numel())
    form = "unary" if b is None else "binary"
    second = b.stride() if isinstance(b, torch.Tensor) else (0,) * out.dim()
    sizes, (left, right) = merge(out.shape, a.stride(), second)
    is_number = b is not None and not isinstance(b, torch.Tensor)
    packet = tuning.ELEMENTWISE_PACKET
    if len(sizes) > _DIMS:
        _run(operation, types, a.contiguous(), b.contiguous() if isinstance(b, torch.Tensor) else b, out)
        return
    if not sizes:
        sizes, left, right = [1], [1], [0]
    dense = len(sizes) == 1 and right[0] in (0, 1) and (left[0] == 1 or (left[0] == 0 and b is not None))
    params = _Params(
        tuple(sizes), tuple(left), tuple(right), is_number, left[0] if dense else 1, right[0] if dense else 0
    )
    if dense:
        grid: tuple[int, ...] = (round_up(ceil_div(out.numel(), packet), GROUP),)
        group: tuple[int, ...] = (GROUP,)
    else:
        across = ceil_div(sizes[-1], packet)
        width: int = tuning.pick(tuning.ELEMENTWISE_GROUPS, across=across)
        grid = (round_up(across, width), round_up(out.numel() // sizes[-1], GROUP // width))
        group = (width, GROUP // width)
    arguments: list[object] = [a, out, params.packed()]
    if b is not None:
        arguments.insert(1, None if is_number else b)
        arguments += [float(b), int(b)] if isinstance(b, int) else [b if isinstance(b, float) else 0.0, 0]
    variant = Variant("elementwise", f"{form}_{'dense' if dense else 'strided'}", (*types, packet))
    launch(variant, *arguments, threads=grid, group=group)
