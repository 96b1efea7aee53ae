"""Which path an operation takes where nothing is forced, no hazard applies and nothing was measured here.

Rows are tried in order; the first that applies, and whose path is possible, wins. Without one it is the vendor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

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
        limits: Only where the named size lies in this range, both ends included; None for no end.
    """

    device: str
    ops: tuple[str, ...]
    path: Path
    reason: str
    dtypes: tuple[torch.dtype, ...] = ()
    limits: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)

    def applies(self, signature: Signature, sizes: Mapping[str, int]) -> bool:
        """Whether the row is for such a call."""
        if signature.device != self.device or signature.op not in self.ops:
            return False
        if self.dtypes and signature.dtype not in self.dtypes:
            return False
        for name, (least, most) in self.limits.items():
            size = sizes.get(name)
            if size is None or (least is not None and size < least) or (most is not None and size > most):
                return False
        return True


DEFAULTS: Final[tuple[Default, ...]] = (
    Default(
        "cuda",
        ("softmax", "log_softmax"),
        "steel",
        "H200, bf16: a row-wise Triton kernel takes 17 us for 4096x4096 and 1.5 us for 1x1024, PyTorch 54 and 4.5",
    ),
    Default(
        "cuda",
        ("layer_norm", "add_layer_norm"),
        "steel",
        "H200, bf16: a row-wise Triton kernel takes 19 us for 4096x4096 and 1.5 us for 1x1024, PyTorch 30 and 3.1",
    ),
    Default(
        "cuda",
        ("rms_norm", "add_rms_norm"),
        "steel",
        "H200, bf16: a row-wise Triton kernel takes 18 us for 4096x4096 and 1.4 us for 1x1024, PyTorch 24 and 2.0",
    ),
    Default(
        "cuda",
        ("linear", "matmul", "bmm"),
        "vendor",
        "cuBLAS is at the floor for these; there is no Triton kernel of ours that could win",
    ),
    Default(
        "cuda",
        ("lora_linear", "lora_linear_forward", "lora_linear_backward"),
        "steel",
        "PyTorch launches three kernels (H200, bf16, rank 8, 64x512: 10.6 us, the plain layer 3.0), ours one or two",
    ),
    Default(
        "cuda",
        ("multi_lora_linear",),
        "steel",
        "PyTorch has to gather the adapter of every row in memory; ours reads each where it lies",
    ),
    Default(
        "cuda",
        ("quantized_linear", "dequantize"),
        "steel",
        "PyTorch has to write the dequantized weight to memory; ours reads the packed one for few rows",
    ),
    Default(
        "cuda",
        ("top_k",),
        "steel",
        "ours reads a row once and sorts no more than k; H200: torch.topk takes 50 us for 1x65536, 73 for 64x32000",
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
