"""nn.Linear on the path that the selector picks."""

from __future__ import annotations

import torch
from torch import nn

from steelworks import ops


class Linear(nn.Linear):
    """``torch.nn.Linear`` that runs :func:`steelworks.ops.linear`: the same arguments, parameters and results."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        return ops.linear(input, self.weight, self.bias)
