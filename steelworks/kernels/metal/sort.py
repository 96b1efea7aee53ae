"""Stable sorting along any dimension: values and indices."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import torch

from . import tuning
from ._launch import SIMD_WIDTH, Variant, empty, launch, metal_type
from ._lines import Lines, as_lines, check_order
from ._views import ceil_div, round_up


@dataclass(frozen=True)
class Pairs:
    """Keys and places, dense ``(rows, length)``."""

    keys: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True)
class _Params:
    """sort/params.h: the same fields in the same order."""

    length: int
    x_stride: int
    inner: int
    flip: int
    tile: int
    width: int


def sort(x: torch.Tensor, dim: int = -1, *, descending: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorts along one dimension; elements that are equal keep their order.

    As in torch, every NaN is larger than all else (last when ascending, first when descending), and -0 equals +0.
    A zero keeps its sign. The result is the same every time.

    Args:
        x: float32, float16, bfloat16, int32 or int64, of any shape. Lines along the last dimension may be any distance
            apart; what else is not dense is copied.
        dim: The dimension.
        descending: The largest first.

    Returns:
        The sorted values, and where each was along ``dim`` (int64); dense, of ``x``'s shape.

    Raises:
        InvalidInputError: a dtype or dimension that there is not.
    """
    check_order("sort", x)
    lines = as_lines("sort", x, dim)
    values = empty(x.shape, x.dtype, x.device)
    indices = empty(x.shape, torch.int64, x.device)
    if values.numel():
        sort_lines(lines, None, lines.length, values, indices, descending=descending)
    return values, indices


def pairs(dtype: torch.dtype, rows: int, length: int, device: torch.device) -> Pairs:
    """Room for pairs: keys of 64 bits for int64, of 32 for what is narrower."""
    key = torch.int64 if dtype == torch.int64 else torch.int32
    return Pairs(empty((rows, length), key, device), empty((rows, length), torch.int32, device))


def sort_lines(
    lines: Lines,
    chosen: Pairs | None,
    length: int,
    values: torch.Tensor,
    indices: torch.Tensor,
    *,
    descending: bool,
) -> None:
    """Sorts all elements of each line, or ``length`` chosen ones, into ``values`` and ``indices``."""
    tile = tuning.SORT_THREADS * tuning.SORT_ELEMENTS
    params = _Params(length, lines.stride, lines.inner, -int(descending), tile, tile)
    x, type_name = lines.tensor, metal_type(lines.tensor.dtype)
    tiles = ceil_div(length, tile)
    source, width = chosen, 0
    while width < length:
        last = (width * 2 if width else tile) >= length
        target = None if last else pairs(x.dtype, lines.lines, length, x.device)
        if width == 0:
            variant = Variant("sort", "sort_block", (type_name, chosen is None, last, tuning.SORT_ELEMENTS))
            group = min(tuning.SORT_THREADS, round_up(ceil_div(length, tuning.SORT_ELEMENTS), SIMD_WIDTH))
        else:
            variant = Variant("sort", "sort_merge", (type_name, last, tuning.SORT_ELEMENTS))
            group = tuning.SORT_THREADS
        launch(
            variant,
            x,
            source.keys if source else None,
            source.places if source else None,
            target.keys if target else None,
            target.places if target else None,
            values if last else None,
            indices if last else None,
            list(astuple(replace(params, width=width or tile))),
            threads=(tiles * group, lines.lines),
            group=(group, 1),
        )
        source, width = target, width * 2 if width else tile
