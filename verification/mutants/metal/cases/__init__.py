"""The cases that mutants of the Metal kernels are tried on: few, with sizes that need every guard and barrier.

Each has several threadgroups and tiles, edges that are not whole, and terms left over. Operands are exactly as large as
they must be, so that what is read behind them is out of bounds, or are views with NaN between their rows.
"""

from __future__ import annotations

from typing import Final

from . import (
    attention,
    conv2d,
    elementwise,
    embedding,
    gemm,
    lora,
    norms,
    probe,
    quantized,
    reduce,
    rope,
    scan,
    softmax,
    sort,
    topk,
)
from ._case import Case

__all__ = ["Case", "cases"]

_FAMILIES: Final = (
    attention,
    conv2d,
    elementwise,
    embedding,
    gemm,
    lora,
    norms,
    probe,
    quantized,
    reduce,
    rope,
    scan,
    softmax,
    sort,
    topk,
)


def cases() -> list[Case]:
    """All cases."""
    return [case for family in _FAMILIES for case in family.cases()]
