"""Tensors as lines along one dimension, whose elements may be apart: what scan, sort and topk work on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steelworks.errors import InvalidInputError

from ._views import as_rows, check_size, one_dimension


@dataclass(frozen=True)
class Lines:
    """A tensor as ``(lines / inner, length, inner)``.

    Attributes:
        tensor: The tensor, or a dense copy if its strides did not allow it.
        lines: Number of lines.
        length: Elements of a line.
        stride: Elements from one outermost entry to the next.
        inner: Elements from one element of a line to the next.
        shape: The shape, a scalar's being (1,).
        dim: The dimension along which the lines are, from the front.
    """

    tensor: torch.Tensor
    lines: int
    length: int
    stride: int
    inner: int
    shape: tuple[int, ...]
    dim: int

    def shape_with(self, length: int) -> tuple[int, ...]:
        """The shape with another length of the lines."""
        return (*self.shape[: self.dim], length, *self.shape[self.dim + 1 :])


def as_lines(operation: str, x: torch.Tensor, dim: int) -> Lines:
    """A tensor as lines along ``dim``; copied only if its strides do not allow it.

    Raises:
        InvalidInputError: no such dimension, or an extent that is too large for int32 arithmetic.
    """
    dim = one_dimension(operation, dim, x.dim())
    shape = tuple(x.shape) if x.dim() else (1,)
    length, inner = shape[dim], torch.Size(shape[dim + 1 :]).numel()
    lines = torch.Size(shape[:dim]).numel() * inner
    check_size(operation, length * inner, lines)
    if x.numel() == 0:
        return Lines(x, lines, length, length * inner, inner, shape, dim)
    if inner > 1:
        return Lines(x.contiguous(), lines, length, length * inner, inner, shape, dim)
    view = as_rows(x.view(shape).flatten(dim))
    return Lines(view.tensor, lines, length, view.stride, 1, shape, dim)


def check_order(operation: str, x: torch.Tensor) -> None:
    """Raises InvalidInputError for a dtype that the sorting kernels have no keys for."""
    allowed = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64)
    if x.dtype not in allowed:
        raise InvalidInputError(
            f"{operation}: x is {x.dtype}; allowed are {', '.join(map(str, allowed))}: convert it with .to(...)"
        )
