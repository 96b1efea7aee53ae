"""Weight-only quantized linear layers for few rows against PyTorch's linear in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional

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


def case(m: int, bits: int, group: int) -> Case:
    """One number of rows and one format."""
    implementations: dict[str, Make] = {
        "steel": spread(lambda x, w, q: lambda: quantized.quantized_linear(x, q)),
        "bf16 linear": spread(lambda x, w, q: lambda: functional.linear(x, w)),
    }
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
    )


def cases() -> Iterator[Case]:
    """Each number of rows in each format."""
    for bits, group in FORMATS:
        for m in ROWS if group == 128 else (1, 16):
            yield case(m, bits, group)
