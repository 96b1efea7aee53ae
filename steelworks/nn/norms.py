"""LayerNorm and RMSNorm on the path that the selector picks, with the residual's addition in the same kernel."""

from __future__ import annotations

from typing import overload

import torch
from torch import nn

from steelworks import ops


class LayerNorm(nn.LayerNorm):
    """``torch.nn.LayerNorm`` that runs :func:`steelworks.ops.layer_norm`, and adds a residual first if one is given.

    The same arguments, parameters and ``state_dict`` keys as ``torch.nn.LayerNorm``.
    """

    @overload
    def forward(self, input: torch.Tensor, residual: None = None) -> torch.Tensor: ...
    @overload
    def forward(self, input: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...
    def forward(
        self, input: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Normalises ``input``, or ``input + residual``.

        Args:
            input: ``(..., *normalized_shape)``, floating point.
            residual: Of the input's shape and dtype.

        Returns:
            The normalised tensor; with a residual, that and the sum ``input + residual``.

        Raises:
            InvalidInputError: shapes, dtypes or devices that do not fit.
        """
        if residual is None:
            return ops.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        return ops.layer_norm(
            input, self.normalized_shape, self.weight, self.bias, self.eps, residual=residual
        )


class RMSNorm(nn.RMSNorm):
    """``torch.nn.RMSNorm`` that runs :func:`steelworks.ops.rms_norm`, and adds a residual first if one is given.

    The same arguments, parameters and ``state_dict`` keys as ``torch.nn.RMSNorm``.
    """

    @overload
    def forward(self, x: torch.Tensor, residual: None = None) -> torch.Tensor: ...
    @overload
    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...
    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Normalises ``x``, or ``x + residual``.

        Args:
            x: ``(..., *normalized_shape)``, floating point.
            residual: Of x's shape and dtype.

        Returns:
            The normalised tensor; with a residual, that and the sum ``x + residual``.

        Raises:
            InvalidInputError: shapes, dtypes or devices that do not fit.
        """
        if residual is None:
            return ops.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        return ops.rms_norm(x, self.normalized_shape, self.weight, self.eps, residual=residual)
