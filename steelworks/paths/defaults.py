"""Which path an operation takes where nothing is forced, no hazard applies and nothing was measured here.

Rows are tried in order; the first that applies, and whose path is possible, wins. Without one it is the vendor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

from steelworks.kernels.table import Limits, within

from ._signature import Path, Signature


@dataclass(frozen=True)
class Default:
    """One row.

    Attributes:
        device: The device type.
        ops: The operations.
        path: The path they take.
        reason: Why, with the measurement if there is one.
        dtypes: Only for these; all if empty.
        limits: Only where the sizes keep these; an operation without such a size does not.
    """

    device: str
    ops: tuple[str, ...]
    path: Path
    reason: str
    dtypes: tuple[torch.dtype, ...] = ()
    limits: Limits = field(default_factory=dict)

    def applies(self, signature: Signature, sizes: Mapping[str, int]) -> bool:
        """Whether the row is for such a call."""
        if signature.device != self.device or signature.op not in self.ops:
            return False
        if self.dtypes and signature.dtype not in self.dtypes:
            return False
        return self.limits.keys() <= sizes.keys() and within(sizes, self.limits)


_HALVES: Final = (torch.float16, torch.bfloat16)

DEFAULTS: Final[tuple[Default, ...]] = (
    Default(
        "cuda",
        ("softmax", "log_softmax"),
        "steel",
        "H200, bf16, in a graph: ours takes 17.8 us for 4096x4096 and 1.0 for 1x1024, PyTorch 54.5 and 4.3",
    ),
    Default(
        "cuda",
        ("layer_norm", "add_layer_norm"),
        "steel",
        "H200, bf16, in a graph: ours takes 18.5 us for 4096x4096 and 1.1 for 1x1024, PyTorch 30.8 and 2.9",
    ),
    Default(
        "cuda",
        ("rms_norm", "add_rms_norm"),
        "steel",
        "H200, bf16, in a graph: ours takes 17.8 us for 4096x4096 and 0.8 for 1x1024, PyTorch 24.1 and 2.1",
    ),
    Default(
        "cuda",
        ("linear",),
        "steel",
        "H200, f16, in a graph: ours takes 1.6 us for 32x384x384 and 3.9 for 32x4096x1024, cuBLAS 3.0 and 4.1",
        _HALVES,
        {"rows": (None, 64), "columns": (None, 4096), "terms": (None, 1024)},
    ),
    Default(
        "cuda",
        ("linear",),
        "steel",
        "H200, f16, in a graph: ours takes 3.2 us for 32x384x1536 and 5.9 for 32x768x3072, cuBLAS 4.6 and 6.8",
        _HALVES,
        {"rows": (None, 64), "columns": (None, 1024), "terms": (None, 3072)},
    ),
    Default(
        "cuda",
        ("linear",),
        "steel",
        "H200, f16, in a graph: ours takes 3.2 us for 128x1536x384 and 4.4 for 128x384x1536, cuBLAS 3.3 and 4.7",
        _HALVES,
        {"rows": (None, 128), "columns": (None, 1536), "terms": (None, 1536)},
    ),
    Default(
        "cuda",
        ("linear",),
        "steel",
        "H200, f16, in a graph: ours takes 2.9 us for 512x384x384 and 5.3 for 4096x384x384, cuBLAS 3.3 and 5.9",
        _HALVES,
        {"rows": (None, 4096), "columns": (None, 512), "terms": (None, 512)},
    ),
    Default(
        "cuda",
        ("linear",),
        "steel",
        "H200, f16, in a graph: ours takes 4.6 us for 512x1536x384 with gelu, cuBLAS and a gelu 6.6",
        _HALVES,
        {"rows": (None, 512), "columns": (None, 1536), "terms": (None, 512), "after": (1, None)},
    ),
    Default(
        "cuda",
        ("linear",),
        "steel",
        "H200, f16, in a graph, and something after it: 512x384x1536 4.5 us, 4096x1536x384 18.6; cuBLAS 6.1, 19.9",
        _HALVES,
        {"rows": (256, 4096), "columns": (None, 3072), "terms": (None, 3072), "after": (1, None)},
    ),
    Default(
        "cuda",
        ("linear", "matmul", "bmm"),
        "vendor",
        "H200, f16: cuBLAS takes 7.8 us for 32x4096x4096, ours 10.0; 25.4 for 512x4096x4096, ours 26.7",
    ),
    Default(
        "cuda",
        ("qkv_linear",),
        "steel",
        "H200, f16, in a graph: ours takes 1.7 us for three of 32x384x384, 15.7 for 4096x384x384; cuBLAS 8.8 and 17.4",
        _HALVES,
        {"rows": (None, 4096), "terms": (None, 512)},
    ),
    Default(
        "cuda",
        ("qkv_linear",),
        "steel",
        "H200, f16, in a graph: ours takes 3.2 us for three of 32x768x768, 10.1 for 512x768x768; cuBLAS 10.4, 12.8",
        _HALVES,
        {"rows": (None, 512), "terms": (None, 1024)},
    ),
    Default(
        "cuda",
        ("attention",),
        "steel",
        "H200, f16, in a graph: 12 heads of 32x32 take 1.7 us, 512 of 64x64 5.7; PyTorch 5.9, 13.5; masked twice that",
        _HALVES,
        {"keys": (None, 64)},
    ),
    Default(
        "cuda",
        ("attention",),
        "steel",
        "H200, f16, in a graph: 96 heads of 128x128 take 4.6 us; PyTorch 6.7, with a mask 15.8",
        _HALVES,
        {"keys": (None, 128), "heads": (None, 256)},
    ),
    Default(
        "cuda",
        ("lora_linear", "lora_linear_forward", "lora_linear_backward"),
        "steel",
        "H200, bf16, rank 16, in a graph: ours takes 2.8 us for 64x512x512, 13.6 for 64x4096x4096; PyTorch 10.5, 24.7",
    ),
    Default(
        "cuda",
        ("multi_lora_linear",),
        "steel",
        "H200: 64 adapters in 64 tokens at 4096 take 19 us; PyTorch has to gather the adapter of every row in memory",
    ),
    Default(
        "cuda",
        ("quantized_linear", "dequantize"),
        "steel",
        "H200: int4 at 4096x4096 takes 5.4 us for 1 row, 8.9 for 16; the bf16 linear 13.2, 13.5",
    ),
    Default(
        "cuda",
        ("top_k",),
        "steel",
        "H200, f32, k = 50, in a graph: ours takes 6.5 us for 1x65536 and 10.4 for 64x32000, torch.topk 49.8 and 78.2",
    ),
    Default(
        "mps",
        ("lora_linear", "lora_linear_forward", "multi_lora_linear", "quantized_linear"),
        "steel",
        "one launch in place of several, and nothing in between goes to memory; not measured on a Mac",
    ),
    Default(
        "mps",
        ("add_layer_norm", "add_rms_norm"),
        "steel",
        "one launch in place of two, and the sum is not read again; not measured on a Mac",
    ),
    Default(
        "mps",
        ("softmax", "log_softmax", "layer_norm", "rms_norm", "linear", "matmul", "bmm"),
        "vendor",
        "with one stream PyTorch's own is safe, and it is not known which is faster: measure with 'steelworks tune'",
    ),
)
