"""The cases of scan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import torch
from _cases import padded_rows  # tests/kernels

from steelworks.kernels.metal import tuning
from steelworks.kernels.metal.scan import cumsum

from ._case import Case, close, draw


def _scan(name: str, x: torch.Tensor, dim: int, least: int = 10**6, *, exclusive: bool = False) -> Case:
    """Running sums; of several threadgroups a line if ``least`` elements each are left (by the table, thousands)."""

    def run() -> torch.Tensor:
        split = tuning.ReduceSplit(groups=64, least=least)
        with patch.multiple(tuning, SCAN_ROWS_SPLIT=split, SCAN_COLUMNS_SPLIT=split):
            return cumsum(x, dim, exclusive=exclusive)

    def want() -> torch.Tensor:
        sums = x.double().cumsum(dim)
        return sums - x.double() if exclusive else sums

    return close("scan", name, run, want, lambda: x.double().abs().cumsum(dim), x.shape[dim])


def cases() -> Iterator[Case]:
    yield _scan("short rows", padded_rows(draw(11, 31)), -1)
    yield _scan("short rows, dense, exclusive", draw(11, 263), -1, exclusive=True)
    yield _scan("a threadgroup a row", draw(2, 5003), -1)
    yield _scan("a threadgroup a row, of few simdgroups", draw(2, 1003), -1)
    # A step is 640 elements: one step, one barrier.
    yield replace(_scan("a threadgroup a row, one whole step", draw(1, 640), -1), counters={"barriers": 1})
    yield _scan("rows in three launches", draw(3, 515), -1, least=100)
    yield _scan("columns", draw(2, 21, 33), 1)
    yield _scan("columns in three launches, exclusive", draw(2, 79, 33), 1, least=16, exclusive=True)
