"""LoRA in one launch: y = x W^T + bias + scale (x A^T) B^T, for one adapter or for one a row."""

from __future__ import annotations

from typing import NamedTuple

import torch

from steelworks.kernels.lora_operands import check_adapters, check_operands, check_rank, rows_dense

from . import tuning
from ._launch import SIMD_WIDTH, Variant, empty, launch, metal_type


class _Params(NamedTuple):
    """lora/params.h: the same fields in the same order."""

    m: int
    n: int
    k: int
    r: int
    adapters: int
    x_row: int
    w_row: int
    has_bias: int


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float = 1.0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x W^T + bias + scale (x A^T) B^T``: a linear layer and its low-rank adapter, in one launch.

    Sums are in float32, the low-rank product ``x A^T`` included; the result is rounded once.

    Args:
        x: ``(..., k)``; float32, float16 or bfloat16.
        weight: W, ``(n, k)`` of the same dtype; rows may be apart.
        a: A, ``(r, k)``, r from 1 to 64.
        b: B, ``(n, r)``.
        scale: What the low-rank part is multiplied by, usually ``alpha / r``.
        bias: ``(n,)``.

    Returns:
        ``(..., n)``, dense.

    Raises:
        InvalidInputError: shapes or dtypes that do not fit together, or a rank that is not from 1 to 64.
    """
    check_rank(a, 2, "(r, k)")
    return _run(x, weight, a.unsqueeze(0), b.unsqueeze(0), bias, float(scale), None, None)


def lora_linear_multi(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scales: torch.Tensor,
    adapters: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``lora_linear`` with an adapter for each row, in one launch.

    The tiled form makes a pass over x for each distinct adapter among the rows of a tile: rows that share an
    adapter should lie together.

    Args:
        x: ``(..., k)``; float32, float16 or bfloat16.
        weight: ``(n, k)`` of the same dtype; rows may be apart.
        a: All A, ``(count, r, k)``, r from 1 to 64.
        b: All B, ``(count, n, r)``.
        scales: ``(count,)``, float32.
        adapters: The adapter of each row, int32, of shape ``x.shape[:-1]``; -1 (and any number that names no
            adapter) is none.
        bias: ``(n,)``.

    Returns:
        ``(..., n)``, dense.

    Raises:
        InvalidInputError: shapes or dtypes that do not fit together, or a rank that is not from 1 to 64.
    """
    check_rank(a, 3, "(count, r, k)")
    check_adapters(x, a, scales, adapters)
    return _run(x, weight, a, b, bias, 1.0, scales.contiguous(), adapters.contiguous())


def _run(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    scales: torch.Tensor | None,
    adapters: torch.Tensor | None,
) -> torch.Tensor:
    check_operands(x, weight, a, b, bias)
    n, k = weight.shape
    out = empty((*x.shape[:-1], n), x.dtype, x.device)
    if out.numel() == 0:
        return out
    m, r = out.numel() // n, a.shape[1]
    rows = rows_dense(x.reshape(m, k))
    weight = rows_dense(weight)
    has_bias = int(bias is not None)
    params = _Params(m, n, k, r, a.shape[0], rows.stride(0), weight.stride(0), has_bias)
    multi = adapters is not None
    if m <= tuning.LORA_VECTOR_ROWS:
        vector: tuning.LoraVector = tuning.pick(tuning.LORA_VECTORS, rows=m)
        sizes = (vector.rows, vector.columns, vector.simdgroups)
        variant = Variant("lora", "lora_vector", (metal_type(x.dtype), *sizes, multi), header="vector")
        simdgroups = vector.simdgroups
        groups = (-(-n // (vector.columns * simdgroups)), -(-m // vector.rows))
    else:
        tile: tuning.LoraTile = tuning.pick(tuning.LORA_TILES, rows=m, columns=n)
        rank = next(size for size in tuning.LORA_RANKS if r <= size)
        sizes = (tile.rows, tile.columns, tile.depth)
        variant = Variant("lora", "lora", (metal_type(x.dtype), *sizes, rank, tile.simdgroups, multi))
        simdgroups = tile.simdgroups
        groups = (-(-n // tile.columns), -(-m // tile.rows))
    threads = simdgroups * SIMD_WIDTH
    launch(
        variant,
        rows,
        weight,
        bias if bias is None else bias.contiguous(),
        a.contiguous(),
        b.contiguous(),
        adapters,
        scales,
        out,
        list(params),
        scale,
        threads=(groups[0] * threads, groups[1]),
        group=(threads, 1),
    )
    return out
