"""Attention over few keys, without a mask, with one that is stored whole, and with one expanded from an element."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from benchmarks.ops._cases import Case, Make
from steelworks.kernels import reference
from steelworks.kernels.triton.attention import attention

#: Sequences, heads, length, size of a head.
SHAPES = ((1, 12, 32, 32), (128, 12, 32, 32), (32, 16, 64, 64), (8, 12, 128, 64), (128, 12, 128, 64))
MASKS = ("none", "whole", "expanded")


def case(batch: int, heads: int, length: int, size: int, kind: str) -> Case:
    """One shape with one kind of mask."""

    def inputs() -> Any:
        q, k, v = (
            torch.randn(batch, length, heads, size, device="cuda").half().transpose(1, 2) for _ in range(3)
        )
        mask = None
        if kind != "none":
            mask = torch.ones(1, dtype=torch.bool, device="cuda").expand(batch, 1, length, length)
            mask = mask.contiguous() if kind == "whole" else mask
        return q, k, v, mask

    implementations: dict[str, Make] = {
        "steel": lambda given: lambda: attention(*given),
        "torch": lambda given: lambda: functional.scaled_dot_product_attention(*given),
    }
    return Case(
        op="attention",
        name=f"{batch}x{heads}x{length}x{size} mask {kind} float16",
        bytes=4 * 2 * batch * heads * length * size,
        inputs=inputs,
        implementations=implementations,
        launches=40,
        check=lambda given: reference.attention(*given),
        rotate=False,
        host=batch == 1,
    )


def cases() -> Iterator[Case]:
    """Each shape with each kind of mask."""
    for shape in SHAPES:
        for kind in MASKS:
            yield case(*shape, kind)
