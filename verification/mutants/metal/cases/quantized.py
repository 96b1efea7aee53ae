"""The cases of quantized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from _cases import padded_rows  # tests/kernels

from steelworks.kernels import reference
from steelworks.kernels.metal.quantized import quantize_int4, quantize_int8, quantized_linear

from ._case import Case, close, draw


def _quantized(name: str, m: int, n: int, k: int, bits: int, *, apart: bool = False) -> Case:
    x, bias = draw(m, k), draw(n)
    x = padded_rows(x) if apart else x
    packed = quantize_int4(draw(n, k), 32) if bits == 4 else quantize_int8(draw(n, k))
    full = reference.dequantize(packed.packed, packed.scales, packed.zeros, bits, k)
    return close(
        "quantized",
        name,
        lambda: quantized_linear(x, packed, bias),
        lambda: reference.quantized_linear(x, full, bias),
        lambda: reference.quantized_linear(x.abs(), full.abs(), bias.abs()) * 4,
        k,
    )


def cases() -> Iterator[Case]:
    yield _quantized("vector, 8 bits, whole chunks", 3, 37, 304, 8)
    yield _quantized("vector, 4 bits", 2, 33, 75, 4, apart=True)
    yield _quantized("tiles, 4 bits", 45, 37, 75, 4, apart=True)
    yield _quantized("tiles, 8 bits, a row short", 31, 40, 40, 8)
    yield _quantized("tiles, 8 bits, whole rows", 32, 32, 63, 8)
    yield replace(
        _quantized("tiles, 8 bits, whole steps", 32, 32, 64, 8), counters={"mmas": 32 * 32 * 64 // 8**3}
    )
