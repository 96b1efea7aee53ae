"""The cases of sort."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from _cases import padded_rows  # tests/kernels

from steelworks.kernels.metal.sort import sort

from ._case import Case, same, ties


def cases() -> Iterator[Case]:
    for name, x, dim in (
        ("a tile of its own", padded_rows(ties(3, 309)), -1),
        ("a full threadgroup and less", ties(2, 2041), -1),
        ("columns", ties(2, 37, 5), 1),
        ("two passes of merging", ties(2, 4103), -1),
        ("two passes of merging columns", ties(1, 4101, 2), 1),
        ("one simdgroup, whole", ties(1, 256), -1),
    ):
        case = same(
            "sort",
            name,
            lambda x=x, dim=dim: sort(x, dim),  # type: ignore[misc]
            lambda x=x, dim=dim: torch.sort(x, dim=dim, stable=True),  # type: ignore[misc]
        )
        # Runs of 8 become runs of 256 in five rounds of two barriers each; one barrier before them and one behind.
        yield replace(case, counters={"barriers": 12}) if x.shape[dim] == 256 else case
