"""The cases of attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final
from unittest.mock import patch

import torch

from steelworks.kernels import reference
from steelworks.kernels.metal import tuning
from steelworks.kernels.metal.attention import attention
from steelworks.kernels.metal.tuning import Row

from ._case import F16, F32, Case, close, draw

#: Of a simdgroup in a block of 32 keys, for the tile of 64 elements: scores, and sums of values.
_BLOCK_MMAS: Final = 2 * (32 // 8) * (64 // 8)


def _attention(
    name: str,
    queries: int,
    keys: int,
    d: int,
    dv: int,
    *,
    heads: int = 2,
    masked: bool = False,
    causal: bool = False,
    splits: int = 1,
    dtype: torch.dtype = F32,
    batch: int = 1,
) -> Case:
    q, k, v = (
        draw(batch, heads, queries, d, dtype=dtype),
        draw(batch, 1, keys, d, dtype=dtype),
        draw(batch, 1, keys, dv, dtype=dtype),
    )
    mask = draw(batch, heads, queries, keys) > -0.7 if masked else None

    def run() -> torch.Tensor:
        # Splits want thousands of keys; here they get few.
        with patch.object(tuning, "ATTENTION_SPLITS", (Row(splits, "a mutant's case"),)):
            return attention(q, k, v, mask, causal=causal)

    def want() -> torch.Tensor:
        return reference.attention(q, k, v, mask, causal=causal)

    # A score is a sum of d products, of size 30 at most here; its error is the relative error of a weight.
    return close("attention", name, run, want, lambda: want().abs() + 1.0, keys, extra=(d + 30) * 2.0**-20)


def cases() -> Iterator[Case]:
    yield _attention("vector, causal, more queries than keys", 5, 3, 40, 64, masked=True, causal=True)
    yield _attention("vector, more splits than keys", 3, 5, 40, 50, splits=4)
    yield _attention("tiles, a key short of whole blocks", 37, 63, 64, 64, masked=True)
    # The first block of queries sees one block of keys, the second two.
    yield replace(
        _attention("tiles, causal", 37, 37, 40, 64, masked=True, causal=True, batch=2),
        counters={"mmas": 2 * 2 * 3 * 4 * _BLOCK_MMAS},
    )
    yield _attention("tiles, causal, more queries than keys", 70, 33, 64, 64, masked=True, causal=True)
    yield _attention("tiles of halves that threads do not divide", 33, 64, 80, 72, dtype=F16)
    # Only edges: a packet may be compiled to be read twice, an element is read once.
    yield replace(
        _attention("tiles of halves that threads do not divide, edges", 33, 64, 72, 72, dtype=F16),
        counters={"device_read": 2 * 2 * (33 * 72 + 2 * 64 * (72 + 72))},
    )
    yield _attention("shared tile", 19, 23, 130, 256, causal=True)
    yield _attention("shared tile, whole keys", 17, 23, 256, 130)
    yield _attention("shared tile, whole blocks of keys", 17, 24, 130, 130)
