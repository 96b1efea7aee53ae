"""nn.Linear on the path that the selector picks."""

from __future__ import annotations

import torch
from torch import nn

from steelworks import ops

from ._ahead import AHEAD


class Linear(nn.Linear):
    """``torch.nn.Linear`` that runs :func:`steelworks.ops.linear`: the same arguments, parameters and results.

    As a projection of an accelerated attention module it may run :func:`steelworks.ops.qkv_linear` for all three.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        if not torch.compiler.is_compiling():
            ahead = AHEAD.get()
            if ahead is not None:
                found = ahead.take(self, input)
                if found is not None:
                    return found
        return ops.linear(input, self.weight, self.bias)
