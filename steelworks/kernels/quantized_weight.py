"""Weights in 8 or 4 bits: their format, the same for the Metal and the Triton kernels, and how they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from steelworks.errors import InvalidInputError

DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
GROUP_SIZES: Final = (32, 64, 128)
CHUNK: Final = 8  # columns that a row in 8 bits is padded to: QUANTIZED_CHUNK of metal/quantized/index.h


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight of ``n`` rows and ``k`` columns as integers: ``scale * (integer - zero)``.

    Attributes:
        packed: uint8, ``(n, bytes of a row)``. 8 bits: the integers -128..127, one a byte. 4 bits: 0..15, two
            a byte, the lower column in the low half. A row is padded to whole groups (8 bits: to a multiple
            of 8 columns).
        scales: ``(n, groups)``, of the dtype that the layer computes with.
        zeros: ``(n, groups)``: what integer stands for 0.
        bits: 8 or 4.
        group_size: Columns that share a scale: 32, 64 or 128; 0: all columns of a row.
        columns: k.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    bits: int
    group_size: int
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, k)``."""
        return self.packed.shape[0], self.columns


def groups_of(columns: int, group_size: int) -> tuple[int, int]:
    """How many groups a row has, and the padded columns of each; a ``group_size`` of 0 is one group."""
    width = group_size or max(CHUNK, -(-columns // CHUNK) * CHUNK)
    return max(1, -(-columns // width)), width


def quantize_int8(weight: torch.Tensor, *, symmetric: bool = False) -> QuantizedWeight:
    """8 bits with one scale a row.

    Args:
        weight: ``(n, k)``; float32, float16 or bfloat16; finite.
        symmetric: The integer 0 stands for 0, and the range is -127..127. Otherwise the row's smallest and
            largest number (or 0) are -128 and 127.

    Raises:
        InvalidInputError: not a matrix of such a dtype, or not finite.
    """
    return _quantize(weight, 8, 0, symmetric)


def quantize_int4(weight: torch.Tensor, group_size: int = 64) -> QuantizedWeight:
    """4 bits with one scale for each ``group_size`` columns of a row.

    Args:
        weight: ``(n, k)``; float32, float16 or bfloat16; finite. k need not be a multiple of the group size.
        group_size: 32, 64 or 128.

    Raises:
        InvalidInputError: not a matrix of such a dtype, not finite, or another group size.
    """
    if group_size not in GROUP_SIZES:
        raise InvalidInputError(f"group_size is {group_size}; allowed are {', '.join(map(str, GROUP_SIZES))}")
    return _quantize(weight, 4, group_size, False)


def _quantize(weight: torch.Tensor, bits: int, group_size: int, symmetric: bool) -> QuantizedWeight:
    if weight.dim() != 2 or weight.dtype not in DTYPES:
        raise InvalidInputError(
            f"weight is {weight.dtype} of shape {tuple(weight.shape)}; a matrix of float32, float16 or "
            "bfloat16 is needed"
        )
    if not bool(weight.isfinite().all()):
        raise InvalidInputError(
            "weight has NaN or infinite elements, which no scale can represent: replace them"
        )
    n, k = weight.shape
    groups, width = groups_of(k, group_size)
    lowest, highest = (0, 15) if bits == 4 else (-127, 127) if symmetric else (-128, 127)
    values = torch.nn.functional.pad(weight.double(), (0, groups * width - k)).view(n, groups, width)
    low = values.amin(-1).clamp(max=0.0)
    high = values.amax(-1).clamp(min=0.0)
    if symmetric:
        scales = torch.maximum(-low, high) / highest
    else:
        scales = (high - low) / (highest - lowest)
    scales = scales.to(weight.dtype)
    # A row of zeros, or of numbers so small that their scale is 0: all become 0.
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    exact = scales.double()
    zeros = torch.zeros_like(exact) if symmetric else (lowest - low / exact).round().clamp(lowest, highest)
    integers = (values / exact[..., None] + zeros[..., None]).round().clamp(lowest, highest).to(torch.int16)
    rows = integers.view(n, groups * width)
    if bits == 4:
        packed = (rows[:, 0::2] | rows[:, 1::2] << 4).to(torch.uint8)
    else:
        packed = rows.to(torch.int8).view(torch.uint8)
    return QuantizedWeight(packed.contiguous(), scales, zeros.to(weight.dtype), bits, group_size, k)


def dequantize(weight: QuantizedWeight) -> torch.Tensor:
    """The numbers that a quantized weight stands for, ``(n, k)``, float32."""
    check_weight(weight)
    if weight.bits == 8:
        integers = weight.packed.view(torch.int8).float()
    else:
        integers = torch.stack((weight.packed & 15, weight.packed >> 4), dim=-1).flatten(1).float()
    n, padded = integers.shape
    groups = weight.scales.shape[1]
    grouped = integers.view(n, groups, padded // groups)
    values = weight.scales.float()[..., None] * (grouped - weight.zeros.float()[..., None])
    return values.view(n, padded)[:, : weight.columns]


def check_weight(weight: QuantizedWeight) -> None:
    """What the kernels rely on."""
    grouped = weight.bits == 4 and weight.group_size in GROUP_SIZES
    if not grouped and not (weight.bits == 8 and weight.group_size == 0):
        raise InvalidInputError(
            f"the weight has {weight.bits} bits in groups of {weight.group_size}; allowed are 8 bits with "
            "one scale a row (group_size 0), and 4 bits in groups of 32, 64 or 128"
        )
    n, k = weight.shape
    groups, width = groups_of(k, weight.group_size)
    needed = (n, groups * width * weight.bits // 8)
    if (
        weight.packed.dtype != torch.uint8
        or weight.packed.shape != needed
        or not weight.packed.is_contiguous()
    ):
        raise InvalidInputError(
            f"packed is {weight.packed.dtype} of shape {tuple(weight.packed.shape)} and strides "
            f"{weight.packed.stride()}; dense uint8 of shape {needed} is needed"
        )
    for name, tensor in (("scales", weight.scales), ("zeros", weight.zeros)):
        if tensor.shape != (n, groups) or tensor.dtype != weight.scales.dtype or not tensor.is_contiguous():
            raise InvalidInputError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} and strides {tensor.stride()}; "
                f"dense {weight.scales.dtype} of shape {(n, groups)} is needed"
            )


def check_operands(x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None) -> None:
    """What a linear layer's kernels rely on, the weight's layout included.

    Raises:
        InvalidInputError: shapes, dtypes or a layout that do not fit.
    """
    check_weight(weight)
    n, k = weight.shape
    if x.dim() < 1 or x.shape[-1] != k:
        raise InvalidInputError(
            f"x has shape {tuple(x.shape)} and the weight {n} rows of {k}; (..., {k}) is needed"
        )
    if x.dtype not in DTYPES or x.dtype != weight.scales.dtype:
        raise InvalidInputError(
            f"x is {x.dtype} and the weight was quantized for {weight.scales.dtype}; quantize it as {x.dtype}"
        )
    if bias is not None and (bias.shape != (n,) or bias.dtype != x.dtype):
        raise InvalidInputError(
            f"bias is {bias.dtype} of shape {tuple(bias.shape)}; {x.dtype} of shape ({n},) is needed"
        )
