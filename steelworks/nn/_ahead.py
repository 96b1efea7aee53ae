"""What an attention module's forward has computed ahead: its query, key and value projections, in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import nn

from steelworks import ops

#: On a module whose three layers were not called with the same x: it does not try again.
APART: Final = "_steelworks_projections_apart"


class Ahead:
    """One forward of ``owner``: the first of ``layers`` that is called computes all, with their weights of that moment.

    Args:
        owner: The attention module.
        layers: Its query, key and value layers.
    """

    __slots__ = ("_layers", "_owner", "_results", "_version", "_x")

    def __init__(self, owner: nn.Module, layers: Sequence[nn.Module]) -> None:
        self._owner = owner
        self._layers: Sequence[Any] = layers
        self._x: torch.Tensor | None = None
        self._version = 0
        self._results: dict[nn.Module, torch.Tensor] = {}

    def take(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
        """The layer's result; None if it has to compute it, because x is another one or it is not of these layers."""
        if layer not in self._layers:
            return None
        if self._x is None:
            self._x, self._version = x, _version(x)
            weights, biases = [part.weight for part in self._layers], [part.bias for part in self._layers]
            self._results = dict(zip(self._layers, ops.qkv_linear(x, *weights, *biases), strict=True))
        same = x is self._x and _version(x) == self._version
        found = self._results.pop(layer, None) if same else None
        if found is None:
            setattr(self._owner, APART, True)
        return found


def _version(x: torch.Tensor) -> int:
    """What changes when x is written to; 0 for tensors of inference mode, which do not know."""
    return 0 if x.is_inference() else x._version


#: Of the forward that runs now in this thread or task.
AHEAD: Final[ContextVar[Ahead | None]] = ContextVar("steelworks_ahead", default=None)
