"""Sums, means, extremes and where they are, any and all; over any dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, overload

import torch

from steelworks.errors import InvalidInputError
from steelworks.paths import Signature

from ._checks import one_dimension, size_reason
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
    ("cuda", "steel"): "PyTorch's reductions are fast on CUDA; there is no kernel of ours",
    ("mps", "graph"): "PyTorch picks MPSGraph or a kernel of its own by itself; neither can be asked for",
}
Dims = int | Sequence[int] | None


def sum(
    input: torch.Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The sum over some dimensions; ``torch.sum``. Of nothing it is 0.

    Differentiable, through the vendor's. Ours sums in float32 (integers in int64, wrapping), in an order that depends
    on the shape alone: the same bits every time.

    Args:
        input: Of any shape and strides.
        dim: The dimension or dimensions; None, or none named: all.
        keepdim: They stay, with size 1.
        dtype: ``input`` is converted to it first.

    Returns:
        A tensor of ``input``'s dtype; int64 for integers and bool.

    Raises:
        InvalidInputError: no such dimension, or one named twice.
    """
    input = input if dtype is None else input.to(dtype)
    return _run(_SUM, input, dim, keepdim)


def mean(
    input: torch.Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The mean over some dimensions, of floating-point numbers; ``torch.mean``. Of nothing it is NaN.

    Arguments, result and errors are otherwise those of ``sum``.
    """
    input = input if dtype is None else input.to(dtype)
    return _run(_MEAN, input, dim, keepdim)


def amax(input: torch.Tensor, dim: Dims = None, keepdim: bool = False) -> torch.Tensor:
    """The largest over some dimensions; ``torch.amax``. A NaN wins.

    Args:
        input: Of any shape and strides, not complex.
        dim: The dimension or dimensions; None, or none named: all.
        keepdim: They stay, with size 1.

    Returns:
        A tensor of ``input``'s dtype.

    Raises:
        InvalidInputError: no such dimension, or one named twice, or one without elements.
    """
    return _run(_AMAX, input, dim, keepdim)


def amin(input: torch.Tensor, dim: Dims = None, keepdim: bool = False) -> torch.Tensor:
    """The smallest over some dimensions; ``torch.amin``. Otherwise as ``amax``."""
    return _run(_AMIN, input, dim, keepdim)


@overload
def max(input: torch.Tensor) -> torch.Tensor: ...
@overload
def max(input: torch.Tensor, dim: int, keepdim: bool = False) -> tuple[torch.Tensor, torch.Tensor]: ...
def max(
    input: torch.Tensor, dim: int | None = None, keepdim: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The largest of all; or along one dimension, with where it is; ``torch.max``. A NaN wins, and the first of equals.

    Args:
        input: Of any shape and strides, not complex.
        dim: The dimension; None: all.
        keepdim: It stays, with size 1.

    Returns:
        The largest; with ``dim``, the values and their int64 indices along it.

    Raises:
        InvalidInputError: no such dimension, or one without elements.
    """
    if dim is None:
        return _run(_AMAX, input, None, False)
    result: tuple[torch.Tensor, torch.Tensor] = _MAX((input,), (input, dim, keepdim))
    return result


@overload
def min(input: torch.Tensor) -> torch.Tensor: ...
@overload
def min(input: torch.Tensor, dim: int, keepdim: bool = False) -> tuple[torch.Tensor, torch.Tensor]: ...
def min(
    input: torch.Tensor, dim: int | None = None, keepdim: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The smallest of all; or along one dimension, with where it is; ``torch.min``. Otherwise as ``max``."""
    if dim is None:
        return _run(_AMIN, input, None, False)
    result: tuple[torch.Tensor, torch.Tensor] = _MIN((input,), (input, dim, keepdim))
    return result


def argmax(input: torch.Tensor, dim: int | None = None, keepdim: bool = False) -> torch.Tensor:
    """Where the largest is, the first of equals; ``torch.argmax``. A NaN wins.

    Args:
        input: Of any shape and strides, not complex.
        dim: The dimension; None: the index in the flattened tensor.
        keepdim: It stays, with size 1.

    Returns:
        int64 indices.

    Raises:
        InvalidInputError: no such dimension, or one without elements.
    """
    result: torch.Tensor = _ARGMAX((input,), (input, dim, keepdim))
    return result


def argmin(input: torch.Tensor, dim: int | None = None, keepdim: bool = False) -> torch.Tensor:
    """Where the smallest is, the first of equals; ``torch.argmin``. Otherwise as ``argmax``."""
    result: torch.Tensor = _ARGMIN((input,), (input, dim, keepdim))
    return result


def any(input: torch.Tensor, dim: Dims = None, keepdim: bool = False) -> torch.Tensor:
    """Whether an element is not 0 (a NaN is not), over some dimensions; ``torch.any``, but boolean for every dtype.

    Args:
        input: Of any shape and strides.
        dim: The dimension or dimensions; None, or none named: all.
        keepdim: They stay, with size 1.

    Raises:
        InvalidInputError: no such dimension, or one named twice.
    """
    return _run(_ANY, input, dim, keepdim)


def all(input: torch.Tensor, dim: Dims = None, keepdim: bool = False) -> torch.Tensor:
    """Whether no element is 0, over some dimensions; ``torch.all``, but always boolean. Otherwise as ``any``."""
    return _run(_ALL, input, dim, keepdim)


def _run(operator: Operator, input: torch.Tensor, dim: Dims, keepdim: bool) -> torch.Tensor:
    dims = None if dim is None else (dim,) if isinstance(dim, int) else (tuple(dim) or None)
    result: torch.Tensor = operator((input,), (input, dims, keepdim))
    return result


def _named(dim: Any, dimensions: int) -> tuple[int, ...]:
    """The dimensions, from the front."""
    if dim is None:
        return tuple(range(dimensions))
    given = (dim,) if isinstance(dim, int) else tuple(dim)
    return tuple(d % dimensions for d in given) if dimensions else ()


def _shape(input: torch.Tensor, dim: Any, keepdim: bool) -> list[int]:
    dims = _named(dim, input.dim())
    if keepdim:
        return [1 if d in dims else n for d, n in enumerate(input.shape)]
    return [n for d, n in enumerate(input.shape) if d not in dims]


def _sizes(signature: Signature) -> Mapping[str, int]:
    shape, dim = signature.shapes[0] or (), signature.flags[0]
    dims = _named(dim, len(shape))
    columns = torch.Size([shape[d] for d in dims]).numel()
    inner = torch.Size(shape[dims[-1] + 1 :] if dims else ()).numel()
    rows = torch.Size([n for d, n in enumerate(shape) if d not in dims]).numel()
    return {"rows": rows, "columns": columns, "inner": inner}


def _check(name: str, input: torch.Tensor, dim: Any) -> None:
    dims = () if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    found = [one_dimension(name, d, input.dim()) for d in dims]
    if len(set(found)) != len(found):
        raise InvalidInputError(f"{name}: dim is {dim}; it names a dimension twice: name each once")
    if name == "mean" and not (input.dtype.is_floating_point or input.dtype.is_complex):
        raise InvalidInputError(
            f"mean: input is {input.dtype}; a floating-point dtype is needed: give dtype=torch.float32, for example"
        )
    if name not in _EXTREMES:
        return
    if input.is_complex():
        raise InvalidInputError(
            f"{name}: input is {input.dtype}, whose elements have no order: take its real part or absolute value"
        )
    none = 0 in [input.shape[d] for d in _named(dim, input.dim())]
    results = torch.Size(_shape(input, dim, False)).numel()
    if none and (results or dim is None):
        raise InvalidInputError(
            f"{name}: there are no elements along dim {dim} of a tensor of shape {tuple(input.shape)}, and nothing has "
            "no extreme: leave such tensors out"
        )


def _possible(signature: Signature) -> str | None:
    if signature.dtype not in _METAL_DTYPES:
        return f"the Metal kernels do not have {signature.dtype}"
    return size_reason(signature.shapes[0])


_EXTREMES: Final = ("amax", "amin", "max", "min", "argmax", "argmin")
#: The names of the Metal family, where they are others.
_METAL_NAMES: Final = {"amax": "max", "amin": "min"}


def _vendor_of(name: str) -> Callable[[torch.Tensor, Any, bool], Any]:
    function = getattr(torch, name)
    if name in ("argmax", "argmin"):

        def place(input: torch.Tensor, dim: Any, keepdim: bool) -> Any:
            # PyTorch has none for bool.
            input = input.to(torch.uint8) if input.dtype == torch.bool else input
            return function(input, dim, keepdim)

        return place
    if name in ("max", "min"):
        return lambda input, dim, keepdim: tuple(function(input, dim, keepdim))
    if name in ("any", "all"):
        return lambda input, dim, keepdim: function(input, dim, keepdim).to(torch.bool)

    def plain(input: torch.Tensor, dim: Any, keepdim: bool) -> Any:
        return function(input, () if dim is None and name in ("amax", "amin") else dim, keepdim)

    return plain


def _define(name: str) -> Operator:
    both = name in ("max", "min")
    kind = "int" if both else "int?" if name in ("argmax", "argmin") else "int[]?"
    metal_name = _METAL_NAMES.get(name, name)

    def signature(input: torch.Tensor, dim: Any, keepdim: bool) -> tuple[Any, ...]:
        dim = tuple(dim) if isinstance(dim, list) else dim
        return (name, device_type(input), input.dtype, (input.shape,), (dim, keepdim))

    def check(input: torch.Tensor, dim: Any, keepdim: bool) -> None:
        _check(name, input, dim)

    def fake(input: torch.Tensor, dim: Any, keepdim: bool) -> Any:
        shape = _shape(input, dim, keepdim)
        if both:
            return input.new_empty(shape), input.new_empty(shape, dtype=torch.int64)
        if name in ("any", "all"):
            return input.new_empty(shape, dtype=torch.bool)
        whole = not (input.dtype.is_floating_point or input.dtype.is_complex)
        counts = name in ("argmax", "argmin") or (name == "sum" and whole)
        return input.new_empty(shape, dtype=torch.int64 if counts else input.dtype)

    def metal(input: torch.Tensor, dim: Any, keepdim: bool) -> Any:
        from steelworks.kernels.metal.reduce import reduce

        if both:
            return tuple(reduce(kind + name, input, dim, keepdim=keepdim) for kind in ("", "arg"))
        return reduce(metal_name, input, dim, keepdim=keepdim)

    operator = Operator(
        name,
        f"(Tensor input, {kind} dim, bool keepdim) -> {'(Tensor, Tensor)' if both else 'Tensor'}",
        signature=signature,
        check=check,
        vendor=_vendor_of(name),
        fake=fake,
        sizes=_sizes,
        family="reduce",
        flags=(-1, False),
        no_path=_NO_PATH,
    )
    operator.metal(_possible, metal)
    return operator


_SUM: Final = _define("sum")
_MEAN: Final = _define("mean")
_AMAX: Final = _define("amax")
_AMIN: Final = _define("amin")
_MAX: Final = _define("max")
_MIN: Final = _define("min")
_ARGMAX: Final = _define("argmax")
_ARGMIN: Final = _define("argmin")
_ANY: Final = _define("any")
_ALL: Final = _define("all")
