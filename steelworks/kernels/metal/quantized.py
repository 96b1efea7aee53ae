"""Linear layers with weights in 8 or 4 bits: y = x dequantize(W)^T + bias; W stays packed in memory."""

from __future__ import annotations

from typing import NamedTuple

import torch

from steelworks.kernels.quantized_weight import (
    GROUP_SIZES,
    QuantizedWeight,
    check_operands,
    dequantize,
    quantize_int4,
    quantize_int8,
)

from . import tuning
from ._launch import SIMD_WIDTH, Variant, empty, launch, metal_type

__all__ = [
    "GROUP_SIZES",
    "QuantizedWeight",
    "dequantize",
    "quantize_int4",
    "quantize_int8",
    "quantized_linear",
]

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
    check_operands(x, weight, bias)
    n, k = weight.shape
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
