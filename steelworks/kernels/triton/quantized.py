"""Linear layers with weights in 8 or 4 bits on CUDA: y = x dequantize(W)^T + bias.

The weights have the format of ``steelworks.kernels.quantized_weight``. For few rows, a 4-bit weight is laid out anew
at its first use on CUDA, in the order in which the matrix instructions read it, and kept with the tensor ``packed``
(as much memory again as ``packed``, ``scales`` and ``zeros`` have); it is laid out again if one of the three is
changed in place. The first use should come before the capture of a CUDA graph: otherwise the graph lays it out at
each replay. 8-bit weights are read as they are. For many rows the weight is dequantized to memory and PyTorch
multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

from steelworks.kernels.quantized_weight import (
    GROUP_SIZES,
    QuantizedWeight,
    check_operands,
    check_weight,
    quantize_int4,
    quantize_int8,
)

from ._launch import Launch, Options, Plans, cdiv, interpreted, power_of_two, supports_pdl
from ._quantized_kernels import BLOCK, DEQUANTIZE, INT4, INT8, TILE

__all__ = [
    "GROUP_SIZES",
    "MOST_ROWS",
    "QuantizedWeight",
    "dequantize",
    "quantize_int4",
    "quantize_int8",
    "quantized_linear",
]

#: With more rows than this the weight is dequantized first.
MOST_ROWS: Final = 64
_KEPT: Final = "_steelworks_laid_out"


@dataclass(frozen=True)
class Thin:
    """How the kernels for few rows cut their work.

    Attributes:
        columns: Columns of the result of a program; 16 or 32 for 4 bits.
        slices: Parts of the sum, each by a warp of its own.
        depth: Steps whose loads are under way.
        registers: Most registers of a thread.
    """

    columns: int
    slices: int
    depth: int
    registers: int | None = None


def pick_thin(m: int, n: int, k: int, bits: int) -> Thin:
    """The cut for a problem. Figures: bf16, 4096x4096, on an H200, in a graph; PyTorch's linear takes 13.3 us."""
    if bits == 8:
        return Thin(32, 8, 4)  # 11.8 us (m = 1), 14.3 us (m = 16)
    if m <= 8:
        return Thin(16, 4, 8, registers=168)  # m = 1: 5.25 us (8 slices of depth 4: 5.37), m = 8: 6.0 us
    return Thin(32, 8, 2, registers=168)  # m = 16: 7.8 us; 16 columns take 8.2 us


@dataclass(frozen=True)
class _LaidOut:
    """A 4-bit weight as the kernel reads it (``_quantized_kernels``).

    Attributes:
        words: ``(blocks, tiles, 256)``, int16.
        pairs: ``(groups, tiles, 8)``, int64: scale and zero point (plus 128 or 1024) of two rows.
        versions: Of packed, scales and zeros when this was made.
        kept: Made and complete before this call: kernels may read it without waiting for the ones before them.
    """

    words: torch.Tensor
    pairs: torch.Tensor
    versions: tuple[int, int, int]
    kept: bool


_plans: Plans[Launch] = Plans()


def quantized_linear(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``x dequantize(weight)^T + bias``; sums are in float32, and the result is rounded once.

    Args:
        x: ``(..., k)``, of the dtype of the weight's scales.
        weight: From ``quantize_int8`` or ``quantize_int4``, or laid out as they do. Zero points of 4-bit weights are
            integers from 0 to 15.
        bias: ``(n,)``.

    Returns:
        ``(..., n)``, dense.

    Raises:
        InvalidInputError: shapes or dtypes that do not fit together.
    """
    return _run(x, weight, bias, None)


def _run(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, thin: Thin | None
) -> torch.Tensor:
    packed = weight.packed
    key = (
        x.shape, x.stride(), x.dtype, x.device, packed.shape, packed.dtype, packed.device, weight.scales.shape,
        weight.scales.dtype, weight.zeros.shape, weight.zeros.dtype, weight.bits, weight.group_size, weight.columns,
        bias if bias is None else (bias.shape, bias.dtype), thin,
    )  # fmt: skip
    launch = _plans.get(key)
    if launch is None:
        check_operands(x, weight, bias)
    n, k = packed.shape[0], weight.columns
    out = torch.empty((*x.shape[:-1], n), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    m = out.numel() // n
    if k == 0:
        return out.zero_() if bias is None else out.copy_(bias)
    if m > MOST_ROWS or (weight.bits == 4 and x.dtype == torch.float32):
        return torch.nn.functional.linear(x, dequantize(weight, x.dtype), bias)
    rows = x.reshape(m, k)
    if rows.stride(1) != 1 and k > 1:
        rows = rows.contiguous()
    added = out if bias is None else bias.contiguous()
    if weight.bits == 8:
        scales, zeros = weight.scales, weight.zeros
        if launch is None:
            launch = _plans.keep(key, _bind_int8(rows, weight, added, out, bias is not None, thin))
        launch(rows, packed.view(torch.int8), scales, zeros, added, out)
        return out
    laid_out = _laid_out(weight)
    if not laid_out.kept:
        launch = _bind_int4(rows, weight, laid_out, added, out, bias is not None, thin)
    elif launch is None:
        launch = _plans.keep(key, _bind_int4(rows, weight, laid_out, added, out, bias is not None, thin))
    launch(rows, laid_out.words, laid_out.pairs, added, out)
    return out


def dequantize(weight: QuantizedWeight, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The numbers that a quantized weight stands for, ``(n, k)``; by default float32."""
    check_weight(weight)
    n, k = weight.shape
    dtype = dtype or torch.float32
    out = torch.empty((n, k), dtype=dtype, device=weight.packed.device)
    if out.numel() == 0:
        return out
    size = 1024
    row_bytes, groups = weight.packed.shape[1], weight.scales.shape[1]
    group = weight.group_size or max(k, 1)
    pdl = supports_pdl(weight.packed.get_device())
    key = ("dequantize", n, k, weight.bits, group, weight.scales.dtype, dtype, out.device)
    launch = _plans.get(key)
    if launch is None:
        launch = _plans.keep(
            key,
            DEQUANTIZE.bind(
                (weight.packed, weight.scales, weight.zeros, out),
                scalars=(k, row_bytes, groups, group),
                constants={"BITS": weight.bits, "BYTES": size, "PDL": pdl},
                grid=(n, cdiv(row_bytes, size)),
                options=Options(num_warps=4, pdl=pdl),
            ),
        )
    launch(weight.packed, weight.scales, weight.zeros, out)
    return out


def _bind_int4(
    x: torch.Tensor,
    weight: QuantizedWeight,
    laid_out: _LaidOut,
    bias: torch.Tensor,
    out: torch.Tensor,
    has_bias: bool,
    thin: Thin | None,
) -> Launch:
    (m, k), n = x.shape, weight.packed.shape[0]
    thin = thin or pick_thin(m, n, k, 4)
    blocks, tiles = laid_out.words.shape[:2]
    rows = 8 if m <= 8 else 16
    pdl, early = supports_pdl(x.get_device()), laid_out.kept
    return INT4.bind(
        (x, laid_out.words, laid_out.pairs, bias, out),
        scalars=(m, n, k, blocks, laid_out.pairs.shape[0], tiles, x.stride(0)),
        constants={
            "BM": rows, "TILES": thin.columns // TILE, "SLICES": thin.slices, "UNROLL": thin.depth,
            "GROUP": weight.group_size, "HAS_BIAS": has_bias,
            "EVEN": k % (BLOCK * thin.slices * thin.depth) == 0, "FAST": not interpreted(),
            "PRECISION": _precision(x.dtype), "PDL": pdl, "EARLY": pdl and early,
        },
        grid=(cdiv(n, thin.columns), cdiv(m, rows)),
        options=Options(num_warps=thin.slices, num_stages=1, maxnreg=thin.registers, pdl=pdl),
    )  # fmt: skip


def _bind_int8(
    x: torch.Tensor,
    weight: QuantizedWeight,
    bias: torch.Tensor,
    out: torch.Tensor,
    has_bias: bool,
    thin: Thin | None,
) -> Launch:
    (m, k), (n, row_bytes) = x.shape, weight.packed.shape
    thin = thin or pick_thin(m, n, k, 8)
    rows = max(8, min(16, power_of_two(m)))
    pdl = supports_pdl(x.get_device())
    return INT8.bind(
        (x, weight.packed.view(torch.int8), weight.scales, weight.zeros, bias, out),
        scalars=(m, n, k, x.stride(0), row_bytes),
        constants={
            "BM": rows, "BN": thin.columns, "BK": 64, "SLICES": thin.slices, "HAS_BIAS": has_bias,
            "EVEN": k % (64 * thin.slices) == 0, "PRECISION": _precision(x.dtype), "PDL": pdl,
            "PREFETCH": pdl and n % thin.columns == 0 and row_bytes % 128 == 0,
        },
        grid=(cdiv(n, thin.columns), cdiv(m, rows)),
        options=Options(num_warps=thin.slices, num_stages=thin.depth, pdl=pdl),
    )  # fmt: skip


def _laid_out(weight: QuantizedWeight) -> _LaidOut:
    """The weight as the kernel reads it, from the tensor that keeps it, or made now."""
    packed, scales, zeros = weight.packed, weight.scales, weight.zeros
    versions = (_version(packed), _version(scales), _version(zeros))
    kept: Any = packed.__dict__.get(_KEPT)
    if kept is not None and kept[0] is scales and kept[1] is zeros and kept[2].versions == versions:
        found: _LaidOut = kept[2]
        return found
    keep = not (packed.is_cuda and torch.cuda.is_current_stream_capturing())
    made = _lay_out(weight, versions, keep)
    if keep:
        if packed.is_cuda:  # other streams, and kernels that do not wait, may be the next to read it
            torch.cuda.current_stream(packed.device).synchronize()
        packed.__dict__[_KEPT] = (scales, zeros, made)
    return made


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _lay_out(weight: QuantizedWeight, versions: tuple[int, int, int], kept: bool) -> _LaidOut:
    packed, scales, zeros = weight.packed, weight.scales, weight.zeros
    n = packed.shape[0]
    blocks, tiles = cdiv(weight.columns, BLOCK), cdiv(n, TILE)
    pad = torch.nn.functional.pad
    wanted = blocks * BLOCK // 2
    octets = pad(packed, (0, max(0, wanted - packed.shape[1]), 0, tiles * TILE - n))[:, :wanted]
    halves = octets.contiguous().view(tiles, 2, 8, blocks, 2, 4, 2, 2)  # rhi g | block | byte | t khi klo
    order = halves.permute(3, 0, 2, 5, 6, 1, 7, 4)  # block, tile, g, t, khi, rhi, klo, byte
    words = order.contiguous().view(torch.int16).view(blocks, tiles, 16 * TILE)
    offsets = (zeros.float() + (1024 if scales.dtype == torch.float16 else 128)).to(scales.dtype)
    both = pad(torch.stack((scales, offsets), dim=-1), (0, 0, 0, 0, 0, tiles * TILE - n))
    lanes = both.view(tiles, 2, 8, -1, 2).permute(3, 0, 2, 1, 4).contiguous()  # group, tile, g, rhi, which
    pairs = lanes.view(-1, 4).view(torch.int64).view(-1, tiles, 8)
    return _LaidOut(words, pairs, versions, kept)


def _precision(dtype: torch.dtype) -> str:
    if interpreted() and dtype == torch.bfloat16:
        return "wide"
    return "ieee" if dtype == torch.float32 else "tf32"
