"""The cases of lora."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from _cases import padded_rows  # tests/kernels

from steelworks.kernels import reference
from steelworks.kernels.metal.lora import lora_linear, lora_linear_multi

from ._case import Case, close, draw


def _lora(
    name: str, m: int, n: int, k: int, r: int, *, adapters: Sequence[int] = (), apart: bool = False
) -> Case:
    x, weight, bias = draw(m, k), padded_rows(draw(n, k)), draw(n)
    x = padded_rows(x) if apart else x
    if adapters:
        count = 3
        a, b, scales = draw(count, r, k), draw(count, n, r), draw(count)
        of_row = torch.tensor([adapters[i % len(adapters)] for i in range(m)], dtype=torch.int32)
        return close(
            "lora",
            name,
            lambda: lora_linear_multi(x, weight, a, b, scales, of_row, bias),
            lambda: reference.lora_linear_multi(x, weight, a, b, scales, of_row, bias),
            lambda: reference.lora_linear_multi(
                x.abs(), weight.abs(), a.abs(), b.abs(), scales.abs(), of_row, bias.abs()
            ),
            k + r + 10,
        )
    one_a, one_b = draw(r, k), draw(n, r)
    return close(
        "lora",
        name,
        lambda: lora_linear(x, weight, one_a, one_b, 0.5, bias),
        lambda: reference.lora_linear(x, weight, one_a, one_b, 0.5, bias),
        lambda: reference.lora_linear(x.abs(), weight.abs(), one_a.abs(), one_b.abs(), 0.5, bias.abs()),
        k + r + 10,
    )


def cases() -> Iterator[Case]:
    yield _lora("vector", 3, 70, 45, 5, apart=True)
    yield _lora("vector, adapters", 3, 70, 45, 5, adapters=(2, -1, 3))
    yield _lora("tiles", 31, 31, 40, 20, apart=True)
    yield _lora("tiles, whole rank and rows", 32, 45, 47, 32)
    yield replace(
        _lora("tiles, whole steps", 32, 32, 32, 20),
        counters={"mmas": (32 * 32 * 32 + 2 * 32 * 32 * 32) // 8**3},
    )
    yield _lora("tiles, adapters", 45, 32, 37, 5, adapters=(2, -1, 0, 3, 2))
    yield _lora(
        "tiles, adapters, whole rank, a tile without any", 34, 32, 40, 8, adapters=(*(-1,) * 32, 1, 0)
    )
    yield _lora("tiles, adapters, two rows a lane", 64, 40, 16, 8, adapters=(*(0,) * 32, *(2,) * 32))
