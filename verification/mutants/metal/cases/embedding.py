"""The cases of embedding."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from _cases import padded_rows  # tests/kernels

from steelworks.kernels import reference
from steelworks.kernels.metal.embedding import embedding

from ._case import Case, close, draw


def cases() -> Iterator[Case]:
    ids = torch.randint(0, 50, (37,), generator=torch.Generator().manual_seed(1))
    wrong = ids.clone()
    # Times the stride of a row the second wraps to 0, where there is a row.
    wrong[[0, 5, 17, 36]] = torch.tensor([-1, -(2**63), 50, 2**40])
    for name, given, table in (
        ("rows apart", wrong, padded_rows(draw(50, 29))),
        ("dense", ids, draw(50, 7)),
        ("one id, wide", wrong[:1], draw(50, 1030)),
    ):
        yield close(
            "embedding",
            name,
            lambda given=given, table=table: embedding(given, table, check=False),  # type: ignore[misc]
            lambda given=given, table=table: reference.embedding(given, table),  # type: ignore[misc]
            1.0,
            1,
        )
