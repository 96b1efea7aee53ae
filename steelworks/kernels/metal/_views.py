"""Tensors as the kernels see them: rows, columns, dimensions merged where their strides allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from steelworks.errors import InvalidInputError

FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)
#: Largest extent of a tensor: loops add a stride to an int32 index before they compare it.
MOST: Final = 2**30
#: Threads of a threadgroup that has several rows, or elements of no particular row.
GROUP: Final = 256


@dataclass(frozen=True)
class Rows:
    """A tensor as a matrix whose columns are adjacent.

    Attributes:
        tensor: The tensor, or a dense copy if its strides did not allow it.
        rows: Number of rows.
        columns: Number of columns.
        stride: Elements from one row to the next.
    """

    tensor: torch.Tensor
    rows: int
    columns: int
    stride: int


def check_float(operation: str, name: str, x: torch.Tensor) -> None:
    """Raises InvalidInputError unless the tensor is float32, float16 or bfloat16."""
    if x.dtype not in FLOATS:
        raise InvalidInputError(
            f"{operation}: {name} is {x.dtype}; float32, float16 or bfloat16 is needed: convert it with .to(...)"
        )


def check_size(operation: str, *sizes: int) -> None:
    """Raises InvalidInputError if an extent is too large for int32 arithmetic."""
    for size in sizes:
        if size > MOST:
            raise InvalidInputError(
                f"{operation}: an extent of {size} elements; at most {MOST}: split the tensor"
            )


def one_dimension(operation: str, dim: int, dimensions: int) -> int:
    """``dim`` counted from the front; a scalar has one dimension for this purpose, as in torch.

    Raises:
        InvalidInputError: there is no such dimension.
    """
    most = max(dimensions, 1)
    if not -most <= dim < most:
        raise InvalidInputError(
            f"{operation}: dim is {dim}; for {dimensions} dimensions, {-most} to {most - 1} are allowed"
        )
    return dim % most


def merge(sizes: Sequence[int], *strides: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """Fewer dimensions that visit the same elements in the same order, for several tensors of one shape at
    once.

    Returns:
        Sizes (none of them 1; none at all for one element), and for each tensor its strides.
    """
    kept: list[int] = []
    kept_strides: list[list[int]] = [[] for _ in strides]
    for d, size in enumerate(sizes):
        if size == 1:
            continue
        steps = [s[d] for s in strides]
        if kept and all(k[-1] == step * size for k, step in zip(kept_strides, steps, strict=True)):
            kept[-1] *= size
            for k, step in zip(kept_strides, steps, strict=True):
                k[-1] = step
            continue
        kept.append(size)
        for k, step in zip(kept_strides, steps, strict=True):
            k.append(step)
    return kept, kept_strides


def as_rows(x: torch.Tensor, trailing: int = 1) -> Rows:
    """A tensor as rows: its last ``trailing`` dimensions are the columns.

    It is copied only if the columns are not adjacent, or the rows not equally far apart.
    """
    shape = x.shape[x.dim() - trailing :]
    columns = shape.numel()
    rows = x.shape[: x.dim() - trailing].numel()
    if x.numel() == 0:
        return Rows(x, rows, columns, columns)
    lead_sizes, (lead,) = merge(x.shape[: x.dim() - trailing], x.stride()[: x.dim() - trailing])
    tail_sizes, (tail,) = merge(shape, x.stride()[x.dim() - trailing :])
    if len(lead_sizes) > 1 or len(tail_sizes) > 1 or (tail and tail[0] != 1):
        return Rows(x.contiguous(), rows, columns, columns)
    return Rows(x, rows, columns, lead[0] if lead else columns)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """The least multiple of b that is at least a."""
    return ceil_div(a, b) * b
