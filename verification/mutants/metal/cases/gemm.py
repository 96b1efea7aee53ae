"""The cases of gemm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from _cases import embedded, padded_rows  # tests/kernels

from steelworks.kernels import reference
from steelworks.kernels.metal import gemm as gemm_host
from steelworks.kernels.metal import tuning
from steelworks.kernels.metal.tuning import GemmTile, GemvColumns, GemvDot

from ._case import Case, close, draw


def _gemm(
    name: str,
    choice: tuning.GemmChoice,
    a: torch.Tensor,
    b: torch.Tensor,
    splits: int = 1,
    *,
    extras: bool = False,
) -> Case:
    m, n = a.shape[-2], b.shape[-1]
    options: dict[str, Any] = {"bias": draw(n), "residual": padded_rows(draw(m, n))} if extras else {}

    def run() -> torch.Tensor:
        problem = gemm_host._problem(a, b, gemm_host._Options(**options))
        gemm_host._run(problem, choice, splits)
        return problem.out

    return close(
        "gemm",
        name,
        run,
        lambda: reference.gemm(a, b, **options),
        lambda: reference.gemm_magnitude(a, b, **options),
        a.shape[-1],
    )


def cases() -> Iterator[Case]:
    double, single = GemmTile(32, 32, 16, 2, 2, 2), GemmTile(8, 64, 32, 1, 4, 1)
    yield replace(
        _gemm("two stages, nn, work for one simdgroup", double, draw(16, 5), draw(5, 16)),
        counters={"mmas": 16 * 16 * 16 // 8**3},
    )
    yield _gemm("one stage, tt, a band left over", single, draw(70, 70).mT, padded_rows(draw(130, 70)).mT)
    dot = GemvDot(rows=2, columns=4, simds_k=4, simds_n=2)
    yield _gemm("dot, one row of two", dot, embedded(draw(1, 531)), draw(37, 531).mT, extras=True)
    yield _gemm("dot, two rows, split", dot, draw(2, 191), draw(42, 191).mT, 3)
    yield _gemm("dot, few terms", dot, draw(2, 35), padded_rows(draw(9, 35)).mT)
    yield _gemm("dot, one simdgroup a sum", GemvDot(1, 4, 1, 4), draw(1, 131), draw(35, 131).mT)
    wide = GemvColumns(rows=4, packet=4, simds=4)
    yield _gemm("columns, three rows of four", wide, draw(3, 149), draw(149, 131), extras=True)
    yield _gemm("columns, four rows, split", wide, padded_rows(draw(4, 133)), padded_rows(draw(133, 38)), 3)
