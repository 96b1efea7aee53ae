"""Weight-only quantized linear layers for few rows against PyTorch's linear in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from benchmarks.ops import _mlx
from benchmarks.ops._cases import Case, Goal, Make
from benchmarks.ops.lora import drawn, spread
from steelworks.kernels import reference
from steelworks.kernels.triton import quantized

SIZE = 4096
ROWS = (1, 2, 4, 8, 16)
#: Bits and columns that share a scale.
FORMATS = ((4, 128), (4, 64), (4, 32), (8, 0))


def quantized_weight(weight: torch.Tensor, bits: int, group: int) -> quantized.QuantizedWeight:
    """A weight in one of the formats."""
    return quantized.quantize_int4(weight, group) if bits == 4 else quantized.quantize_int8(weight)


def tinygemm(x: torch.Tensor, weight: quantized.QuantizedWeight, group: int) -> Callable[[], torch.Tensor]:
    """PyTorch's own kernel for 4-bit weights, which torchao takes, with the same numbers."""
    packed = weight.packed  # two columns an octet, the first in the low bits; there it is in the high ones
    swapped = (packed << 4) | (packed >> 4)
    tiled = torch._convert_weight_to_int4pack(swapped.contiguous(), 8)
    scales = weight.scales.to(torch.bfloat16)
    shifts = (scales.float() * (8 - weight.zeros.float())).to(torch.bfloat16)
    both = torch.stack((scales, shifts), dim=-1).transpose(0, 1).contiguous()
    return lambda: torch._weight_int4pack_mm(x, tiled, group, both)


def case(m: int, bits: int, group: int) -> Case:
    """One number of rows and one format."""
    implementations: dict[str, Make] = {
        "steel": spread(lambda x, w, q: lambda: quantized.quantized_linear(x, q)),
        "bf16 linear": spread(lambda x, w, q: lambda: functional.linear(x, w)),
    }
    if bits == 4:
        implementations["tinygemm"] = spread(lambda x, w, q: tinygemm(x, q, group))
    goals = (Goal("bf16's time / ours", lambda us: us["bf16 linear"] / us["steel"], 2.5, 3.5),)

    def inputs() -> tuple[torch.Tensor, torch.Tensor, quantized.QuantizedWeight]:
        weight = drawn(SIZE, SIZE, size=SIZE**-0.5)
        return drawn(m, SIZE), weight, quantized_weight(weight, bits, group)

    def check(inputs: tuple[torch.Tensor, torch.Tensor, quantized.QuantizedWeight]) -> torch.Tensor:
        return reference.quantized_linear(inputs[0], quantized.dequantize(inputs[2]))

    return Case(
        op="quantized_linear",
        name=f"{m}x{SIZE}x{SIZE} int{bits}" + (f" groups of {group}" if group else " a scale a row"),
        bytes=SIZE * SIZE * bits // 8,
        inputs=inputs,
        implementations=implementations,
        launches=48,
        goals=goals if bits == 4 else (),
        check=check,
        rotate=True,
        host=m == 1,
        chains=_mlx.int4(m, SIZE, group, 100) if bits == 4 else {},
    )


def cases() -> Iterator[Case]:
    """Each number of rows in each format."""
    for bits, group in FORMATS:
        for m in ROWS if group == 128 else (1, 16):
            yield case(m, bits, group)
