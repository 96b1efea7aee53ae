"""Operations on every element of a tensor, or of two that are broadcast together, by PyTorch's names.

All take any shapes and strides, promote dtypes as PyTorch does, and are differentiable where PyTorch's are, through
the vendor's. Ours compute in float32 (integers: in int32 or int64, wrapping) and round once. Integers become float32
where an operation has no meaning for them; ``round`` takes halves to even; ``gelu`` is the exact form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F

from steelworks.errors import InvalidInputError
from steelworks.paths import Signature

from ._checks import check_devices, size_reason
from ._library import FLOATS, Operator, device_type

_METAL_DTYPES: Final = (
    *FLOATS,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
_NO_PATH: Final = {
    (
        "cuda",
        "steel",
    ): "PyTorch's elementwise kernels run at the memory's speed on CUDA; there is no kernel of ours",
    ("mps", "graph"): "PyTorch picks MPSGraph or a kernel of its own by itself; neither can be asked for",
}
Number = float | int | bool


@dataclass(frozen=True)
class _Unary:
    """A row of the table: PyTorch's function, and whether it takes integers and booleans."""

    vendor: Callable[[torch.Tensor], torch.Tensor]
    integers: bool = True
    booleans: bool = True


@dataclass(frozen=True)
class _Binary:
    """A row of the table: PyTorch's function, whether it takes a number and booleans."""

    vendor: Callable[..., torch.Tensor]
    numbers: bool = True
    booleans: bool = True


_UNARY: Final = {
    "neg": _Unary(torch.neg, booleans=False),
    "abs": _Unary(torch.abs, booleans=False),
    "sign": _Unary(torch.sign),
    "square": _Unary(torch.square, booleans=False),
    "relu": _Unary(F.relu, booleans=False),
    "floor": _Unary(torch.floor, booleans=False),
    "ceil": _Unary(torch.ceil, booleans=False),
    "round": _Unary(torch.round, booleans=False),
    "trunc": _Unary(torch.trunc, booleans=False),
    "exp": _Unary(torch.exp),
    "log": _Unary(torch.log),
    "sqrt": _Unary(torch.sqrt),
    "rsqrt": _Unary(torch.rsqrt),
    "reciprocal": _Unary(torch.reciprocal),
    "sin": _Unary(torch.sin),
    "cos": _Unary(torch.cos),
    "tanh": _Unary(torch.tanh),
    "erf": _Unary(torch.erf),
    "sigmoid": _Unary(torch.sigmoid),
    "silu": _Unary(F.silu, integers=False),
    "gelu": _Unary(F.gelu, integers=False),
    "gelu_tanh": _Unary(lambda x: F.gelu(x, approximate="tanh"), integers=False),
    "logical_not": _Unary(torch.logical_not),
}
_BINARY: Final = {
    "add": _Binary(torch.add),
    "sub": _Binary(torch.sub, booleans=False),
    "mul": _Binary(torch.mul),
    "div": _Binary(torch.div),
    "maximum": _Binary(torch.maximum, numbers=False),
    "minimum": _Binary(torch.minimum, numbers=False),
    "pow": _Binary(torch.pow, booleans=False),
    "fmod": _Binary(torch.fmod, booleans=False),
    "remainder": _Binary(torch.remainder, booleans=False),
    "atan2": _Binary(torch.atan2, numbers=False),
    "eq": _Binary(torch.eq),
    "ne": _Binary(torch.ne),
    "lt": _Binary(torch.lt),
    "le": _Binary(torch.le),
    "gt": _Binary(torch.gt),
    "ge": _Binary(torch.ge),
    "logical_and": _Binary(torch.logical_and, numbers=False),
    "logical_or": _Binary(torch.logical_or, numbers=False),
    "logical_xor": _Binary(torch.logical_xor, numbers=False),
}
UNARY_OPERATIONS: Final = tuple(_UNARY)
BINARY_OPERATIONS: Final = tuple(_BINARY)


def unary(operation: str, input: torch.Tensor) -> torch.Tensor:
    """An operation on every element.

    Args:
        operation: One of ``UNARY_OPERATIONS``; each is also a function of this module.
        input: Of any shape and strides.

    Returns:
        A tensor of ``input``'s shape.

    Raises:
        InvalidInputError: no such operation, or a dtype that it does not take.
    """
    operator = _OPERATORS.get(operation) if operation in _UNARY else None
    if operator is None:
        raise InvalidInputError(
            f"unary: operation is {operation!r}; allowed are {', '.join(UNARY_OPERATIONS)}"
        )
    result: torch.Tensor = operator((input,), (input,))
    return result


def binary(operation: str, input: torch.Tensor, other: torch.Tensor | Number) -> torch.Tensor:
    """An operation on the elements of two tensors, broadcast together; the second may be a number.

    Args:
        operation: One of ``BINARY_OPERATIONS``; each is also a function of this module.
        input: Of any shape and strides.
        other: A tensor whose shape broadcasts with ``input``'s, on the same device (or of one element, on the CPU), or
            a number.

    Returns:
        A tensor of the common shape; boolean for comparisons and logical operations.

    Raises:
        InvalidInputError: no such operation, dtypes that it does not take, or shapes that do not broadcast. For an
            integer divided by 0, ``fmod`` and ``remainder`` are 0 where ours compute; PyTorch raises on the CPU.
    """
    operator = _OPERATORS.get(operation) if operation in _BINARY else None
    if operator is None:
        raise InvalidInputError(
            f"binary: operation is {operation!r}; allowed are {', '.join(BINARY_OPERATIONS)}"
        )
    if isinstance(other, torch.Tensor):
        result: torch.Tensor = operator((input, other), (input, other, None))
    else:
        result = operator((input,), (input, None, other))
    return result


def _sizes(signature: Signature) -> Mapping[str, int]:
    shapes = [torch.Size(shape) for shape in signature.shapes if shape is not None]
    return {"elements": max(shape.numel() for shape in shapes)}


def _define_unary(name: str, row: _Unary) -> Operator:
    def signature(input: torch.Tensor) -> tuple[Any, ...]:
        return (name, device_type(input), input.dtype, (input.shape,), ())

    def check(input: torch.Tensor) -> None:
        refused = _refused(input.dtype, row.integers, row.booleans)
        if refused:
            raise InvalidInputError(
                f"{name}: input is {input.dtype}; {refused} allowed: convert it, for example to float32"
            )

    def fake(input: torch.Tensor) -> torch.Tensor:
        return input.new_empty(input.shape, dtype=row.vendor(input).dtype)

    def metal(input: torch.Tensor) -> torch.Tensor:
        from steelworks.kernels.metal import elementwise as kernels

        return kernels.unary(name, input)

    operator = Operator(
        name,
        "(Tensor input) -> Tensor",
        signature=signature,
        check=check,
        vendor=row.vendor,
        fake=fake,
        sizes=_sizes,
        family="elementwise",
        no_path=_NO_PATH,
    )
    operator.metal(_possible, metal)
    return operator


def _define_binary(name: str, row: _Binary) -> Operator:
    def signature(input: torch.Tensor, other: torch.Tensor | None, number: Number | None) -> tuple[Any, ...]:
        if other is None:
            return (name, device_type(input), input.dtype, (input.shape, None), (type(number),))
        flags = (other.dtype, other.device == input.device)
        return (name, device_type(input), input.dtype, (input.shape, other.shape), flags)

    def check(input: torch.Tensor, other: torch.Tensor | None, number: Number | None) -> None:
        if other is None and not isinstance(number, (int, float)):
            raise InvalidInputError(
                f"{name}: other is of type {type(number).__name__}; a tensor or a number is needed"
            )
        given: Any = number if other is None else other
        common = torch.result_type(input, given)
        if _refused(common, True, row.booleans):
            raise InvalidInputError(
                f"{name}: the operands are {common}; integer and floating-point dtypes are allowed: convert them"
            )
        if other is None:
            return
        if other.dim() and input.dim():
            check_devices(name, input=input, other=other)
        sizes = zip(reversed(input.shape), reversed(other.shape), strict=False)
        if any(a != b and 1 not in (a, b) for a, b in sizes):
            raise InvalidInputError(
                f"{name}: shapes {tuple(input.shape)} and {tuple(other.shape)} do not broadcast together: from the "
                "last dimension on, sizes must be equal, or one of them 1"
            )

    def vendor(input: torch.Tensor, other: torch.Tensor | None, number: Number | None) -> torch.Tensor:
        if other is not None:
            return row.vendor(input, other)
        assert number is not None
        if row.numbers:
            return row.vendor(input, number)
        return row.vendor(
            input, torch.full((), number, dtype=torch.result_type(input, number), device=input.device)
        )

    def fake(input: torch.Tensor, other: torch.Tensor | None, number: Number | None) -> torch.Tensor:
        combined = vendor(input, other, number)
        return input.new_empty(combined.shape, dtype=combined.dtype)

    def metal(input: torch.Tensor, other: torch.Tensor | None, number: Number | None) -> torch.Tensor:
        from steelworks.kernels.metal import elementwise as kernels

        if other is not None:
            return kernels.binary(name, input, other)
        assert number is not None
        return kernels.binary(name, input, number)

    operator = Operator(
        name,
        "(Tensor input, Tensor? other, Scalar? number) -> Tensor",
        signature=signature,
        check=check,
        vendor=vendor,
        fake=fake,
        sizes=_sizes,
        family="elementwise",
        flags=(torch.float32, True),
        no_path=_NO_PATH,
    )
    operator.metal(_possible_binary, metal)
    return operator


def _refused(dtype: torch.dtype, integers: bool, booleans: bool) -> str:
    """What would be allowed in place of this dtype; empty if it is."""
    whole = not dtype.is_floating_point and not dtype.is_complex
    if whole and not integers:
        return "floating-point dtypes are"
    if dtype == torch.bool and not booleans:
        return "integer and floating-point dtypes are"
    return ""


def _possible(signature: Signature) -> str | None:
    if signature.dtype not in _METAL_DTYPES:
        return f"the Metal kernels do not have {signature.dtype}"
    return size_reason(signature.shapes[0])


def _possible_binary(signature: Signature) -> str | None:
    shapes = [shape for shape in signature.shapes if shape is not None]
    for dtype in (signature.dtype, *(flag for flag in signature.flags if isinstance(flag, torch.dtype))):
        if dtype not in _METAL_DTYPES:
            return f"the Metal kernels do not have {dtype}"
    if signature.flags[-1] is False:
        return "the operands are on two devices"
    return size_reason(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


_OPERATORS: Final = {
    **{name: _define_unary(name, row) for name, row in _UNARY.items()},
    **{name: _define_binary(name, row) for name, row in _BINARY.items()},
}


def _unary(name: str, meaning: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The public function of an operation."""
    operator = _OPERATORS[name]

    def function(input: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = operator((input,), (input,))
        return result

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{meaning}, element by element; see :func:`unary` for arguments and errors."
    return function


def _binary(name: str, meaning: str) -> Callable[[torch.Tensor, torch.Tensor | Number], torch.Tensor]:
    """The public function of an operation."""
    operator = _OPERATORS[name]

    def function(input: torch.Tensor, other: torch.Tensor | Number) -> torch.Tensor:
        if isinstance(other, torch.Tensor):
            result: torch.Tensor = operator((input, other), (input, other, None))
        else:
            result = operator((input,), (input, None, other))
        return result

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{meaning}, element by element; see :func:`binary` for arguments and errors."
    return function


neg = _unary("neg", "-input")
abs = _unary("abs", "The absolute value")
sign = _unary("sign", "-1, 0 or 1")
square = _unary("square", "input * input")
relu = _unary("relu", "The larger of input and 0")
floor = _unary("floor", "The largest whole number that is not above")
ceil = _unary("ceil", "The smallest whole number that is not below")
round = _unary("round", "The nearest whole number, halves to even")
trunc = _unary("trunc", "The whole number towards 0")
exp = _unary("exp", "e to the power of input")
log = _unary("log", "The natural logarithm")
sqrt = _unary("sqrt", "The square root")
rsqrt = _unary("rsqrt", "1 over the square root")
reciprocal = _unary("reciprocal", "1 / input")
sin = _unary("sin", "The sine")
cos = _unary("cos", "The cosine")
tanh = _unary("tanh", "The hyperbolic tangent")
erf = _unary("erf", "The error function")
sigmoid = _unary("sigmoid", "1 / (1 + exp(-input))")
silu = _unary("silu", "input * sigmoid(input)")
gelu = _unary("gelu", "input times the normal distribution's cumulative function, exactly")
gelu_tanh = _unary("gelu_tanh", "gelu by its approximation with tanh")
logical_not = _unary("logical_not", "Whether it is 0")

add = _binary("add", "input + other")
sub = _binary("sub", "input - other")
mul = _binary("mul", "input * other")
div = _binary("div", "input / other, of integers too in floating point")
maximum = _binary("maximum", "The larger; NaN if one is")
minimum = _binary("minimum", "The smaller; NaN if one is")
pow = _binary("pow", "input to the power of other")
fmod = _binary("fmod", "The remainder of input / other, with input's sign")
remainder = _binary("remainder", "The remainder of input / other, with other's sign")
atan2 = _binary("atan2", "The angle of the point (other, input)")
eq = _binary("eq", "Whether they are equal")
ne = _binary("ne", "Whether they differ")
lt = _binary("lt", "Whether input is less")
le = _binary("le", "Whether input is less or equal")
gt = _binary("gt", "Whether input is greater")
ge = _binary("ge", "Whether input is greater or equal")
logical_and = _binary("logical_and", "Whether neither is 0")
logical_or = _binary("logical_or", "Whether one is not 0")
logical_xor = _binary("logical_xor", "Whether exactly one is not 0")
