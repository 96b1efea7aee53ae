"""Checks that several families share. Each error names what was given, what is allowed, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import torch

from steelworks.errors import InvalidInputError

#: float64 runs on the vendor path.
FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
#: The largest extent of the Metal kernels, which index with int32.
MOST_EXTENT: Final = 2**30


def check_devices(operation: str, **tensors: torch.Tensor | None) -> None:
    """Raises unless all tensors are on the first one's device; None is skipped."""
    known = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    first, device = known[0][0], known[0][1].device
    for name, tensor in known:
        if tensor.device != device:
            raise InvalidInputError(
                f"{operation}: {name} is on '{tensor.device}' and {first} on '{device}'; move them to one device with "
                ".to(...)"
            )


def check_same_floats(operation: str, **tensors: torch.Tensor | None) -> None:
    """Raises unless all tensors have the first one's dtype, and it is floating point; None is skipped."""
    known = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    first, dtype = known[0][0], known[0][1].dtype
    check_dtype(operation, first, dtype, FLOATS)
    for name, tensor in known:
        if tensor.dtype != dtype:
            raise InvalidInputError(
                f"{operation}: {name} is {tensor.dtype} and {first} is {dtype}; they must be the same: convert "
                "one with .to(...)"
            )


def check_alike(op: str, **tensors: torch.Tensor | None) -> None:
    """All tensors have the first one's dtype and device."""
    (first_name, first), *others = tensors.items()
    assert first is not None
    for name, tensor in others:
        if tensor is None:
            continue
        if tensor.dtype != first.dtype:
            raise InvalidInputError(
                f"{op}: {first_name} is {first.dtype} and {name} is {tensor.dtype}; they must agree: convert one"
            )
        if tensor.device != first.device:
            raise InvalidInputError(
                f"{op}: {first_name} is on '{first.device}' and {name} on '{tensor.device}'; move them to one device"
            )


def check_dtype(operation: str, name: str, dtype: torch.dtype, allowed: Sequence[torch.dtype]) -> None:
    """Raises unless the dtype is allowed."""
    if dtype not in allowed:
        raise InvalidInputError(
            f"{operation}: {name} is {dtype}; {names(allowed)} are allowed: convert it with .to(...)"
        )


def names(dtypes: Iterable[torch.dtype]) -> str:
    """The dtypes as a list to read."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def one_dimension(operation: str, dim: int, dimensions: int) -> int:
    """``dim`` counted from the front; a scalar has one dimension for this purpose, as in torch.

    Raises:
        InvalidInputError: there is no such dimension.
    """
    most = max(dimensions, 1)
    if not isinstance(dim, int) or not -most <= dim < most:
        raise InvalidInputError(
            f"{operation}: dim is {dim!r}; for {dimensions} dimensions, {-most} to {most - 1} are allowed"
        )
    return dim % most


def size_reason(shape: Sequence[int] | None) -> str | None:
    """Why the Metal kernels can't take a tensor of this shape, or None."""
    count = torch.Size(shape or ()).numel()
    return None if count <= MOST_EXTENT else f"{count} elements are more than the {MOST_EXTENT} of one kernel"
