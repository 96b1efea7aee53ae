"""The cases of elementwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from _cases import padded_rows  # tests/kernels

from steelworks.kernels import reference
from steelworks.kernels.metal.elementwise import binary, unary

from ._case import Case, close, draw


def _elementwise(name: str, operation: str, *operands: Any) -> Case:
    def run() -> torch.Tensor:
        return unary(operation, *operands) if len(operands) == 1 else binary(operation, *operands)

    return close("elementwise", name, run, lambda: reference.elementwise(operation, *operands), 4.0, 1)


def cases() -> Iterator[Case]:
    yield _elementwise("unary, dense", "relu", draw(2051))
    yield _elementwise("unary, dense, one short of whole packets", "relu", draw(1023))
    yield _elementwise("unary, strided", "relu", padded_rows(draw(70, 7)))
    yield _elementwise("unary, rows longer than a threadgroup", "relu", padded_rows(draw(3, 1030)))
    yield _elementwise("binary, dense", "add", draw(2050), draw(2050) + 1)
    yield _elementwise("binary, dense, one for all", "add", draw(1027), draw(1))
    yield _elementwise("binary, a number", "add", draw(1027), 0.5)
    yield _elementwise("binary, strided", "add", padded_rows(draw(70, 7)), draw(70, 1))
    yield _elementwise("binary, a number, strided", "add", padded_rows(draw(70, 7)), 0.5)
