"""Linear layers with weights in 8 or 4 bits: y = x dequantize(W)^T + bias; W stays packed in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from steelworks.errors import InvalidInputError

from . import tuning
from ._launch import SIMD_WIDTH, Variant, empty, launch, metal_type

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Columns that share a scale, for 4 bits.
GROUP_SIZES = (32, 64, 128)
_CHUNK = 8  # QUANTIZED_CHUNK of quantized/index.h
_WHOLE_ROW = 30  # shifts every column to group 0


class _Params(NamedTuple):
    """quantized/params.h: the same fields in the same order."""

    m: int
    n: int
    k: int
    x_row: int
    w_row: int
    groups: int
    group_shift: int
    has_bias: int


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
    if weight.dim() != 2 or weight.dtype not in _DTYPES:
        raise InvalidInputError(
            f"weight is {weight.dtype} of shape {tuple(weight.shape)}; a matrix of float32, float16 or "
            "bfloat16 is needed"
        )
    if not bool(weight.isfinite().all()):
        raise InvalidInputError(
            "weight has NaN or infinite elements, which no scale can represent: replace them"
        )
    n, k = weight.shape
    width = group_size or max(_CHUNK, -(-k // _CHUNK) * _CHUNK)
    groups = max(1, -(-k // width))
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
    _check_weight(weight)
    if weight.bits == 8:
        integers = weight.packed.view(torch.int8).float()
    else:
        integers = torch.stack((weight.packed & 15, weight.packed >> 4), dim=-1).flatten(1).float()
    n, groups = weight.scales.shape
    grouped = integers.view(n, groups, -1)
    values = weight.scales.float()[..., None] * (grouped - weight.zeros.float()[..., None])
    return values.reshape(n, -1)[:, : weight.columns]


def quantized_linear(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``x dequantize(weight)^T + bias``; sums are in float32, and the result is rounded once.

    Args:
        x: ``(..., k)``, of the dtype of the weight's scales.
        weight: From ``quantize_int8`` or ``quantize_int4``, or laid out as they do.
        bias: ``(n,)``.

    Returns:
        ``(..., n)``, dense.

    Raises:
        InvalidInputError: shapes or dtypes that do not fit together.
    """
    _check_weight(weight)
    n, k = weight.shape
    if x.dim() < 1 or x.shape[-1] != k:
        raise InvalidInputError(
            f"x has shape {tuple(x.shape)} and the weight {n} rows of {k}; (..., {k}) is needed"
        )
    if x.dtype not in _DTYPES or x.dtype != weight.scales.dtype:
        raise InvalidInputError(
            f"x is {x.dtype} and the weight was quantized for {weight.scales.dtype}; quantize it as {x.dtype}"
        )
    if bias is not None and (bias.shape != (n,) or bias.dtype != x.dtype):
        raise InvalidInputError(
            f"bias is {bias.dtype} of shape {tuple(bias.shape)}; {x.dtype} of shape ({n},) is needed"
        )
    out = empty((*x.shape[:-1], n), x.dtype, x.device)
    if out.numel() == 0:
        return out
    m = out.numel() // n
    rows = x.reshape(m, k)
    if rows.stride(1) != 1 and k > 1:
        rows = rows.contiguous()
    shift = weight.group_size.bit_length() - 1 if weight.group_size else _WHOLE_ROW
    groups = weight.scales.shape[1]
    params = _Params(m, n, k, rows.stride(0), weight.packed.shape[1], groups, shift, int(bias is not None))
    types = (metal_type(x.dtype), weight.bits)
    if m <= tuning.QUANTIZED_VECTOR_ROWS:
        vector: tuning.QuantizedVector = tuning.pick(tuning.QUANTIZED_VECTORS, rows=m)
        sizes: tuple[int, ...] = (vector.rows, vector.columns, vector.simdgroups)
        variant = Variant("quantized", "quantized_vector", (*types, *sizes), header="vector")
        threads = vector.simdgroups * SIMD_WIDTH
        grid = (-(-n // (vector.columns * vector.simdgroups)) * threads, -(-m // vector.rows))
    else:
        tile: tuning.QuantizedTile = tuning.pick(tuning.QUANTIZED_TILES, rows=m, columns=n)
        sizes = (tile.rows, tile.columns, tile.depth, tile.simdgroups_m, tile.simdgroups_n)
        variant = Variant("quantized", "quantized", (*types, *sizes))
        threads = tile.simdgroups_m * tile.simdgroups_n * SIMD_WIDTH
        grid = (-(-n // tile.columns) * threads, -(-m // tile.rows))
    launch(
        variant,
        rows,
        weight.packed,
        weight.scales,
        weight.zeros,
        bias if bias is None else bias.contiguous(),
        out,
        list(params),
        threads=grid,
        group=(threads, 1),
    )
    return out


def _check_weight(weight: QuantizedWeight) -> None:
    """What the kernels rely on."""
    grouped = weight.bits == 4 and weight.group_size in GROUP_SIZES
    if not grouped and not (weight.bits == 8 and weight.group_size == 0):
        raise InvalidInputError(
            f"the weight has {weight.bits} bits in groups of {weight.group_size}; allowed are 8 bits with "
            "one scale a row (group_size 0), and 4 bits in groups of 32, 64 or 128"
        )
    n, k = weight.shape
    width = weight.group_size or max(_CHUNK, -(-k // _CHUNK) * _CHUNK)
    groups = max(1, -(-k // width))
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
