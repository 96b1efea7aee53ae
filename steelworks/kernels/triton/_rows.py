"""Tensors as rows of equally distant elements, and the checks that the families share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steelworks.errors import InvalidInputError

#: What the kernels take; float64 and others are the vendor's.
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Rows:
    """``tensor`` as rows of ``columns`` neighbouring elements, ``stride`` elements apart."""

    tensor: torch.Tensor
    rows: int
    columns: int
    stride: int


def as_rows(x: torch.Tensor, dimensions: int = 1) -> Rows:
    """The last ``dimensions`` of ``x`` as rows: a view if they are equally far apart, else a dense copy."""
    columns = x.shape[x.dim() - dimensions :].numel() if dimensions else 1
    rows = x.numel() // columns if columns else 0
    if x.is_contiguous():
        return Rows(x, rows, columns, columns)
    stride = _row_stride(x, dimensions)
    if stride is None:
        return Rows(x.contiguous(), rows, columns, columns)
    return Rows(x, rows, columns, stride)


def _row_stride(x: torch.Tensor, dimensions: int) -> int | None:
    """How far apart the rows of ``x`` are, if they are equally far and each is dense; else None."""
    expected = 1
    split = x.dim() - dimensions
    for size, stride in zip(reversed(x.shape[split:]), reversed(x.stride()[split:]), strict=True):
        if size != 1:
            if stride != expected:
                return None
            expected *= size
    distance: int | None = None
    for size, stride in zip(reversed(x.shape[:split]), reversed(x.stride()[:split]), strict=True):
        if size == 1:
            continue
        if distance is None:
            distance, reached = stride, stride * size
        elif stride != reached:
            return None
        else:
            reached *= size
    return expected if distance is None else distance


def one_dimension(operation: str, dim: int, dimensions: int) -> int:
    """``dim`` counted from the front; a tensor without dimensions counts as one with one.

    Raises:
        InvalidInputError: there is no such dimension.
    """
    count = max(dimensions, 1)
    if not -count <= dim < count:
        raise InvalidInputError(f"{operation}: dim is {dim}; {-count} to {count - 1} are allowed")
    return dim % count


def unsupported(operation: str, x: torch.Tensor, *, interpreter: bool) -> str | None:
    """Why ``x`` can't be an operand of a kernel, or None."""
    if x.dtype not in FLOATS:
        return f"{operation}: {x.dtype}; float32, float16 or bfloat16 are needed"
    if x.layout != torch.strided:
        return f"{operation}: layout {x.layout}; a dense tensor is needed"
    if not (x.is_cuda or interpreter):
        return f"{operation}: a tensor on {x.device.type}; cuda is needed (or Triton's interpreter)"
    return None


def check(reason: str | None) -> None:
    """Raises ``InvalidInputError`` if there is a reason."""
    if reason is not None:
        raise InvalidInputError(f"{reason}: convert the tensor, or use the vendor path")
