"""Modules: LoRA, quantized linear layers, norms with a residual, and ``accelerate``, which puts ours into a model."""

from __future__ import annotations

from ._peft import LayerWeights
from .accelerate import Change, Report, accelerate
from .adapter import Adapter
from .adapters import Adapters
from .linear import Linear
from .lora import LoRALinear, apply_lora, remove_lora
from .norms import LayerNorm, RMSNorm
from .quantized import QuantizedLinear

__all__ = [
    "Adapter",
    "Adapters",
    "Change",
    "LayerNorm",
    "LayerWeights",
    "Linear",
    "LoRALinear",
    "QuantizedLinear",
    "RMSNorm",
    "Report",
    "accelerate",
    "apply_lora",
    "remove_lora",
]
