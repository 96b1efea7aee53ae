"""What the tests of sort and topk share: data with many ties, special values, results that are a pair of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from _cases import assert_equal, embedded, padded_rows, run_checked

INF, NAN = math.inf, math.nan
DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64)
SPECIALS: Final = {
    "a nan": [1.0, NAN, 5.0],
    "nan first": [NAN, 1.0, 2.0],
    "nans and infs": [NAN, INF, NAN, -INF],
    "only nan": [NAN, NAN, NAN],
    "nans of both signs": [-NAN, INF, NAN, -INF, -NAN],
    "infs": [INF, 3.0, -INF],
    "zeros of both signs": [0.0, -0.0, 0.0, -0.0, -0.0],
    "denormals around zero": [1e-40, -0.0, -1e-40, 0.0, 3e-40],
    "smallest denormals": [2.0**-149, 0.0, -(2.0**-149)],
    "largest": [3.4e38, -3.4e38, 3.3e38, INF],
    "equal": [7.25, 7.25, 7.25],
}

Pair = tuple[torch.Tensor, torch.Tensor]


def draw(*shape: int, dtype: torch.dtype = torch.float32, ties: bool = False) -> torch.Tensor:
    """Random values; with ``ties``, few different ones."""
    made = torch.Generator().manual_seed(sum((i + 1) * n for i, n in enumerate(shape)))
    if dtype.is_floating_point:
        values = torch.randn(shape, generator=made) * 3
        return (values.round() if ties else values).to(dtype)
    info = torch.iinfo(dtype)
    least, most = (-3, 4) if ties else (info.min, info.max)
    return torch.randint(least, most, shape, generator=made, dtype=dtype)


def packed(pair: Pair) -> torch.Tensor:
    """All bits of both tensors, but of every NaN the same: to copy one may change its payload."""
    values, indices = pair
    if values.is_floating_point():
        values = torch.where(values.isnan(), torch.full_like(values, NAN), values)
    return torch.cat([part.contiguous().reshape(-1).view(torch.uint8) for part in (values, indices)])


def check(
    family: str, run: Callable[[], Pair], x: torch.Tensor, want: torch.Tensor, dim: int, case: object
) -> Pair:
    """Runs under all schedules; indices must be ``want``, and values those of ``x`` there, -0 apart from 0."""
    results: list[Pair] = []

    def once() -> torch.Tensor:
        results.append(run())
        return packed(results[-1])

    run_checked(family, once, case)
    values, indices = results[0]
    assert_equal(family, indices, want, case)
    assert values.dtype == x.dtype and values.is_contiguous() and indices.is_contiguous(), case
    there = x.gather(dim, want) if x.dim() else x
    assert torch.equal(packed((values, indices)), packed((there, want))), (
        f"{case}: the values are not those of x"
    )
    return values, indices


def views(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """A matrix as views, with stale data beside them."""
    return {
        "at an offset": embedded(x),
        "rows apart": padded_rows(x),
        "transposed": x.t().contiguous().t(),
        "every other column": x[:, ::2],
        "every other row": x[::2],
        "one row repeated": x[:1].expand(4, x.shape[1]),
    }
