"""The cases of topk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import torch
from _cases import padded_rows  # tests/kernels

from steelworks.kernels.metal import tuning
from steelworks.kernels.metal.topk import topk

from ._case import Case, Result, same, ties


def cases() -> Iterator[Case]:
    for name, x, k, dim in (
        ("one chunk", padded_rows(ties(3, 211)), 37, -1),
        ("columns", ties(2, 101, 3), 9, 1),
        ("as many winners as there is room for", ties(2, 197), 64, -1),
        ("several chunks", ties(2, 1003), 20, -1),
        ("several chunks, a rest of fewer than k", ties(3, 523), 20, -1),
        ("a line as one chunk, read several times", ties(2, 701), 100, -1),
    ):

        def run(x: torch.Tensor = x, k: int = k, dim: int = dim) -> Result:
            with patch.object(tuning, "TOPK_CHUNK", 200):  # by the table thousands
                return topk(x, k, dim, largest=False)

        def want(x: torch.Tensor = x, k: int = k, dim: int = dim) -> list[torch.Tensor]:
            return [part.narrow(dim, 0, k) for part in torch.sort(x, dim=dim, stable=True)]

        yield same("topk", name, run, want)

    # For each of 4 bytes of the key and 1 of the place, elements are counted in 256 bins, and these read and cleared;
    # 20 winners take a number each.
    equal = torch.ones(1, 197)
    yield replace(
        same(
            "topk",
            "all equal",
            lambda: topk(equal, 20, largest=False),
            lambda: [equal[:, :20], torch.arange(20)[None]],
        ),
        counters={"atomics": 1 + 256 + 5 * (197 + 256) + 20, "barriers": 1 + 5 * 2 + 6},
    )
