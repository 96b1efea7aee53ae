"""Matrices and batches of them as the gemm kernels read them: which dimension is contiguous, and all strides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch

#: Batch dimensions that a kernel walks.
BATCH_DIMS: Final = 3


@dataclass(frozen=True)
class Operand:
    """A matrix, or a batch of them, as a kernel reads it.

    Attributes:
        tensor: Holds it; None if it has no elements.
        stride: Elements between what it stores as rows.
        transposed: What it stores as a row is a column: the second but last dimension is the contiguous one.
        batch: Strides of the three batch dimensions.
    """

    tensor: torch.Tensor | None
    stride: int
    transposed: bool
    batch: tuple[int, int, int]

    @property
    def flipped(self) -> Operand:
        """The transposed matrix in the same memory."""
        return replace(self, transposed=not self.transposed)


def one_contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of it if neither of the last two dimensions is contiguous."""
    rows, columns = tensor.shape[-2:]
    inner = columns == 1 or tensor.stride(-1) == 1
    outer = rows == 1 or tensor.stride(-2) == 1
    return tensor if inner or outer else tensor.contiguous()


def operand(tensor: torch.Tensor, batch: tuple[int, int, int]) -> Operand:
    """How the kernels read a tensor."""
    rows, columns = tensor.shape[-2:]
    if tensor.numel() == 0:
        return Operand(None, 1, False, batch)
    if columns == 1 or tensor.stride(-1) == 1:
        # A single row has any stride; a single column has neighbours in the other dimension only.
        if columns == 1 and rows > 1 and tensor.stride(-2) == 1:
            return Operand(tensor, rows, True, batch)
        return Operand(tensor, tensor.stride(-2) if rows > 1 else columns, False, batch)
    return Operand(tensor, tensor.stride(-1), True, batch)


def fold(shape: torch.Size, strides: list[tuple[int, ...]]) -> tuple[list[int], list[list[int]]]:
    """Batch dimensions with neighbours made one where all operands allow it, and dimensions of size 1 dropped."""
    sizes: list[int] = []
    folded: list[list[int]] = [[] for _ in strides]
    for dim, size in enumerate(shape):
        if size == 1:
            continue
        if sizes and all(f[-1] == s[dim] * size for f, s in zip(folded, strides, strict=True)):
            sizes[-1] *= size
            for f, s in zip(folded, strides, strict=True):
                f[-1] = s[dim]
            continue
        sizes.append(size)
        for f, s in zip(folded, strides, strict=True):
            f.append(s[dim])
    return sizes, folded


def three(values: list[int], fill: int) -> tuple[int, int, int]:
    """The values, with ``fill`` before them to make three."""
    padded = [fill] * (BATCH_DIMS - len(values)) + list(values)
    return padded[0], padded[1], padded[2]
