"""The cases of reduce."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from _cases import padded_rows  # tests/kernels

from steelworks.kernels import reference
from steelworks.kernels.metal import reduce as reduce_host
from steelworks.kernels.metal._launch import empty

from ._case import Case, close, draw


def _reduce(name: str, x: torch.Tensor, dim: int, chunk: int = 0) -> Case:
    """A sum; with a chunk, in two passes (which by the table only long ones take)."""

    def run() -> torch.Tensor:
        if not chunk:
            return reduce_host.reduce("sum", x, dim)
        length = x.shape[dim]
        results, inner = x.numel() // length, x.shape[dim + 1 :].numel() if dim >= 0 else 1
        out = empty([n for d, n in enumerate(x.shape) if d != dim % x.dim()], x.dtype, x.device)
        params = reduce_host._Params(results, length, length, inner, chunk, -(-length // chunk), length)
        passes = reduce_host._rows_launch if inner == 1 else reduce_host._columns_launch
        reduce_host._two_passes(reduce_host._OPERATIONS["sum"], x, out, params, passes)
        return out

    return close(
        "reduce",
        name,
        run,
        lambda: reference.reduce("sum", x, dim),
        lambda: reference.reduce("sum", x.abs(), dim),
        x.shape[dim],
    )


def cases() -> Iterator[Case]:
    yield _reduce("short rows", padded_rows(draw(37, 31)), -1)
    yield _reduce("short rows, dense", draw(37, 29), -1)
    yield _reduce("a threadgroup a row", draw(3, 1023), -1)
    yield _reduce("rows in two passes", draw(3, 1023), -1, chunk=128)
    yield _reduce("columns", draw(2, 21, 33), 1)
    yield _reduce("columns in two passes", draw(2, 79, 33), 1, chunk=16)
