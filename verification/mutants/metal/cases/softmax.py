"""The cases of softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from _cases import padded_rows  # tests/kernels

from steelworks.kernels import reference
from steelworks.kernels.metal._launch import Variant, empty, launch
from steelworks.kernels.metal.softmax import softmax

from ._case import Case, Result, close, draw


def _softmax_launched(
    kernel: str, last: int, x: torch.Tensor, params: list[int], groups: int, group: int
) -> torch.Tensor:
    out = empty(x.shape, x.dtype, x.device)
    variant = Variant("softmax", kernel, ("float", "float", False, last))
    launch(variant, x, out, params, threads=(groups * group,), group=(group,))
    return out


def cases() -> Iterator[Case]:
    short, longer, columns = draw(37, 31), draw(3, 1023), draw(2, 21, 33)
    runs: dict[str, tuple[Callable[[], Result], torch.Tensor, int]] = {
        "short rows": (lambda: softmax(padded_rows(short)), short, -1),
        "short rows, dense": (lambda: softmax(short), short, -1),
        "a threadgroup a row": (lambda: softmax(longer), longer, -1),
        "looped": (
            lambda: _softmax_launched("softmax_row_looped", 4, longer, [3, 1023, 1023, 1], 3, 96),
            longer,
            -1,
        ),
        "columns": (lambda: softmax(columns, 1), columns, 1),
        "long columns": (
            lambda: _softmax_launched("softmax_column", 0, columns, [66, 21, 1, 33], 3, 128),
            columns,
            1,
        ),
    }
    for name, (run, x, dim) in runs.items():
        yield close(
            "softmax",
            name,
            run,
            lambda x=x, dim=dim: reference.softmax(x, dim),  # type: ignore[misc]
            lambda x=x, dim=dim: reference.softmax(x, dim) * 12,  # type: ignore[misc]
            x.shape[dim],
        )
