"""A linear layer whose weight stays in 8 or 4 bits."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from steelworks import ops
from steelworks.errors import InvalidInputError
from steelworks.kernels.quantized_weight import GROUP_SIZES, QuantizedWeight, groups_of

from ._checks import plain_linear

_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


class QuantizedLinear(nn.Module):
    """A linear layer that reads its weight in 8 or 4 bits; for inference, and for training what lies before it.

    Make one with :meth:`from_linear`. The constructor makes one of zeros, for ``load_state_dict``. Gradients reach
    the input and the bias; the weight has none. ``.to(dtype)`` converts the scales, so that the layer computes in
    that dtype; the integers stay.

    Args:
        in_features: k.
        out_features: n.
        bias: Whether there is one.
        bits: 8 (one scale a row) or 4 (one scale for each ``group_size`` columns of a row).
        group_size: 32, 64 or 128, for 4 bits; 8 bits ignore it.
        device: Of the buffers.
        dtype: What the layer computes in: float32, float16 or bfloat16.

    Raises:
        InvalidInputError: other bits, group sizes or dtypes.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        bits: int = 8,
        group_size: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _check(bits, group_size, dtype)
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        self.group_size = 0 if bits == 8 else group_size
        groups, width = groups_of(in_features, self.group_size)
        columns = groups * width * bits // 8
        self.register_buffer("packed", torch.zeros(out_features, columns, dtype=torch.uint8, device=device))
        self.register_buffer("scales", torch.zeros(out_features, groups, dtype=dtype, device=device))
        self.register_buffer("zeros", torch.zeros(out_features, groups, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: int = 8, group_size: int = 64) -> QuantizedLinear:
        """Quantizes the weight of a linear layer; the bias is copied.

        Args:
            linear: A plain ``torch.nn.Linear`` in float32, float16 or bfloat16, with finite weights.
            bits: 8 or 4.
            group_size: 32, 64 or 128, for 4 bits; 8 bits ignore it.

        Raises:
            InvalidInputError: not such a layer, or other bits or group sizes.
        """
        plain_linear("QuantizedLinear", linear)
        _check(bits, group_size, linear.weight.dtype)
        made = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            bits=bits,
            group_size=group_size,
            device="meta",  # its buffers are replaced here
            dtype=linear.weight.dtype,
        )
        weight = (
            ops.quantize_int8(linear.weight) if bits == 8 else ops.quantize_int4(linear.weight, group_size)
        )
        made.packed, made.scales, made.zeros = weight.packed, weight.scales, weight.zeros
        if linear.bias is not None:
            made.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=linear.bias.requires_grad)
        return made.train(linear.training)

    @property
    def quantized_weight(self) -> QuantizedWeight:
        """The weight, packed; ``steelworks.ops.dequantize`` gives its numbers."""
        return QuantizedWeight(
            self.packed, self.scales, self.zeros, self.bits, self.group_size, self.in_features
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., in_features)``, of the scales' dtype, to ``(..., out_features)``."""
        return ops.quantized_linear(x, self.quantized_weight, self.bias)

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        groups = "" if self.bits == 8 else f", group_size={self.group_size}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"bits={self.bits}{groups}"
        )


def _check(bits: int, group_size: int, dtype: torch.dtype) -> None:
    if bits not in (8, 4):
        raise InvalidInputError(f"QuantizedLinear: bits is {bits!r}; 8 and 4 are allowed")
    if bits == 4 and group_size not in GROUP_SIZES:
        raise InvalidInputError(
            f"QuantizedLinear: group_size is {group_size!r}; {', '.join(map(str, GROUP_SIZES))} are allowed"
        )
    if dtype not in _DTYPES:
        raise InvalidInputError(
            f"QuantizedLinear: the dtype is {dtype}; float32, float16 and bfloat16 are allowed: convert with .to(...)"
        )
