"""Three projections of one x in one launch, without joining their weights: an attention module's forward.

While it runs, the first of the three layers that is called computes all three; the other two give what was computed,
if they are called with the very same x. Otherwise (cross attention) they compute as ever, and that module does not try
again. Weights are read where they are, so training, ``load_state_dict`` and adapters reach them as before; hooks of the
layers run; what was computed lives no longer than the forward.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from ._ahead import AHEAD, APART, Ahead
from ._checks import linear_reason
from .linear import Linear

#: Names of query, key and value in the modules of transformers and its like.
_NAMES: Final = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
)


class SharedProjections:
    """An attention module whose query, key and value projections run as one."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As the module's own."""
        if torch.compiler.is_compiling() or APART in self.__dict__:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        layers = _layers(self)
        if layers is None or any(type(layer) is not Linear for layer in layers):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        token = AHEAD.set(Ahead(self, layers))
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            AHEAD.reset(token)


def shares(module: nn.Module) -> bool:
    """Whether the module has query, key and value layers that :func:`steelworks.ops.qkv_linear` can compute."""
    layers = _layers(module)
    if layers is None or len(set(layers)) < 3 or any(linear_reason(layer) is not None for layer in layers):
        return False
    parts: list[Any] = list(layers)
    first = parts[0]
    return all(
        part.in_features == first.in_features
        and (part.bias is None) == (first.bias is None)
        and part.weight.dtype == first.weight.dtype
        and part.weight.device == first.weight.device
        for part in parts
    )


def has_projections(module: nn.Module) -> bool:
    """Whether it has parts by the names of query, key and value layers."""
    return _layers(module) is not None


def _layers(module: nn.Module) -> tuple[nn.Module, ...] | None:
    parts = module._modules
    for names in _NAMES:
        layers = tuple(layer for name in names if (layer := parts.get(name)) is not None)
        if len(layers) == 3:
            return layers
    return None
