"""Running sums, products, maxima and minima along a dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

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


def cumsum(
    input: torch.Tensor, dim: int = -1, *, dtype: torch.dtype | None = None, exclusive: bool = False
) -> torch.Tensor:
    """The sums of all elements up to each one, along one dimension; ``torch.cumsum``.

    Differentiable, through the vendor's. Ours sums in float32 (integers in int64, wrapping), in an order that depends
    on the shape alone: the same bits every time.

    Args:
        input: Of any shape and strides.
        dim: The dimension.
        dtype: ``input`` is converted to it first.
        exclusive: Each sum leaves its own element out: the first is 0.

    Returns:
        A tensor of ``input``'s shape; of int64 for integers and bool, otherwise of ``input``'s dtype.

    Raises:
        InvalidInputError: no such dimension.
    """
    input = input if dtype is None else input.to(dtype)
    result: torch.Tensor = _CUMSUM((input,), (input, dim, exclusive))
    return result


def cumprod(
    input: torch.Tensor, dim: int = -1, *, dtype: torch.dtype | None = None, exclusive: bool = False
) -> torch.Tensor:
    """The products of all elements up to each one, along one dimension; the first exclusive one is 1.

    Arguments, result and errors are those of ``cumsum``.
    """
    input = input if dtype is None else input.to(dtype)
    result: torch.Tensor = _CUMPROD((input,), (input, dim, exclusive))
    return result


def cummax(
    input: torch.Tensor, dim: int = -1, *, exclusive: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of all elements up to each one, and where it is, along one dimension; ``torch.cummax``.

    A NaN wins and stays, and of equal elements the last counts. The values are differentiable, through the vendor's.

    Args:
        input: Of any shape and strides, not complex.
        dim: The dimension.
        exclusive: Each result leaves its own element out: the first is -inf (or the least integer), at index -1.

    Returns:
        The values, and int64 indices along ``dim``; of ``input``'s shape.

    Raises:
        InvalidInputError: no such dimension, or a complex dtype.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _CUMMAX((input,), (input, dim, exclusive))
    return result


def cummin(
    input: torch.Tensor, dim: int = -1, *, exclusive: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest of all elements up to each one, and where it is, along one dimension.

    The first exclusive one is +inf (or the largest integer), at index -1.
    Arguments, result and errors are those of ``cummax``.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _CUMMIN((input,), (input, dim, exclusive))
    return result


def _moved(x: torch.Tensor, dim: int, first: float | int) -> torch.Tensor:
    """Moved by one place along a dimension, with a number in front."""
    if x.dim() == 0:
        return torch.full_like(x, first)
    if x.shape[dim] == 0:
        return x
    front = torch.full_like(x.narrow(dim, 0, 1), first)
    return torch.cat((front, x.narrow(dim, 0, x.shape[dim] - 1)), dim)


def _limit(dtype: torch.dtype, *, largest: bool) -> float | int:
    if dtype.is_floating_point:
        return float("inf") if largest else float("-inf")
    if dtype == torch.bool:
        return int(largest)
    return torch.iinfo(dtype).max if largest else torch.iinfo(dtype).min


def _sizes(signature: Signature) -> Mapping[str, int]:
    shape = signature.shapes[0] or (1,)
    dim = signature.flags[0]
    assert isinstance(dim, int)
    inner = torch.Size(shape[dim % len(shape) + 1 :]).numel()
    rows = torch.Size(shape).numel() // max(shape[dim], 1)
    return {"rows": rows, "columns": shape[dim], "inner": inner}


def _possible(signature: Signature) -> str | None:
    if signature.dtype not in _METAL_DTYPES:
        return f"the Metal kernels do not have {signature.dtype}"
    return size_reason(signature.shapes[0])


def _define(name: str) -> Operator:
    places = name in ("cummax", "cummin")
    function = getattr(torch, name)

    def signature(input: torch.Tensor, dim: int, exclusive: bool) -> tuple[Any, ...]:
        return (name, device_type(input), input.dtype, (input.shape,), (dim, exclusive))

    def check(input: torch.Tensor, dim: int, exclusive: bool) -> None:
        one_dimension(name, dim, input.dim())
        if places and input.is_complex():
            raise InvalidInputError(
                f"{name}: input is {input.dtype}, whose elements have no order: take its real part or absolute value"
            )

    def vendor(input: torch.Tensor, dim: int, exclusive: bool) -> Any:
        if not places:
            combined = function(input, dim)
            return _moved(combined, dim, int(name == "cumprod")) if exclusive else combined
        values, indices = function(input, dim)
        if not exclusive:
            return values, indices
        return _moved(values, dim, _limit(values.dtype, largest=name == "cummin")), _moved(indices, dim, -1)

    def fake(input: torch.Tensor, dim: int, exclusive: bool) -> Any:
        if places:
            return input.new_empty(input.shape), input.new_empty(input.shape, dtype=torch.int64)
        whole = not (input.dtype.is_floating_point or input.dtype.is_complex)
        return input.new_empty(input.shape, dtype=torch.int64 if whole else input.dtype)

    def metal(input: torch.Tensor, dim: int, exclusive: bool) -> Any:
        from steelworks.kernels.metal import scan as kernels

        return getattr(kernels, name)(input, dim, exclusive=exclusive)

    operator = Operator(
        name,
        f"(Tensor input, int dim, bool exclusive) -> {'(Tensor, Tensor)' if places else 'Tensor'}",
        signature=signature,
        check=check,
        vendor=vendor,
        fake=fake,
        sizes=_sizes,
        family="scan",
        flags=(-1, False),
        no_path={
            ("cuda", "steel"): "PyTorch's scans are fast on CUDA; there is no kernel of ours",
            (
                "mps",
                "graph",
            ): "PyTorch picks MPSGraph or a kernel of its own by itself; neither can be asked for",
        },
    )
    operator.metal(_possible, metal)
    return operator


_CUMSUM: Final = _define("cumsum")
_CUMPROD: Final = _define("cumprod")
_CUMMAX: Final = _define("cummax")
_CUMMIN: Final = _define("cummin")
