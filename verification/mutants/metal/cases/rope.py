"""The cases of rope."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from steelworks.kernels import reference
from steelworks.kernels.metal.rope import rope, rope_table

from ._case import Case, close, draw


def cases() -> Iterator[Case]:
    offsets = torch.tensor([3, 11], dtype=torch.int32)
    for name, shape, pairs, interleaved in (
        ("halves", (2, 5, 70, 10), 4, False),
        ("neighbours, an odd one left", (2, 6, 5, 11), 3, True),
        ("wide", (1, 3, 3, 140), 70, False),
    ):
        x = draw(*shape)
        x[..., 2 * pairs :] = float("inf")  # what is copied takes no part in any sum
        radians = torch.linspace(0.1, 1.0, pairs, dtype=torch.float64)
        table = rope_table(radians)
        offset = offsets[: shape[0]]
        yield close(
            "rope",
            name,
            lambda x=x, t=table, o=offset, i=interleaved: rope(x, t, o, interleaved=i),  # type: ignore[misc]
            lambda x=x, r=radians, o=offset, i=interleaved: reference.rope(x, r, o, interleaved=i),  # type: ignore[misc]
            8.0,
            4,
            extra=1e-6,
        )
