"""The k largest or smallest along any dimension, without sorting what does not belong to them."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch

from steelworks.errors import InvalidInputError

from . import tuning
from ._launch import SIMD_WIDTH, Variant, empty, launch, metal_type
from ._lines import Lines, as_lines, check_order
from ._views import ceil_div, round_up
from .sort import Pairs, pairs, sort_lines

_MOST_THREADS = 1024


@dataclass(frozen=True)
class _Params:
    """topk/params.h: the same fields in the same order."""

    length: int
    chunk: int
    k: int
    kept: int
    x_stride: int
    inner: int
    flip: int
    place_bytes: int


def topk(
    x: torch.Tensor, k: int, dim: int = -1, *, largest: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest (or smallest) elements along one dimension, the best first.

    As in torch, every NaN is larger than all else, and -0 equals +0. Of equal elements those with the lowest index are
    taken, in the order of their indices, so that the result is the same every time (torch leaves this open).
    A zero keeps its sign.

    Args:
        x: float32, float16, bfloat16, int32 or int64, of any shape. Lines along the last dimension may be any distance
            apart; what else is not dense is copied.
        k: How many, from 0 to the size of the dimension.
        dim: The dimension.
        largest: The largest; otherwise the smallest.

    Returns:
        The values, and where each was along ``dim`` (int64); dense, ``dim`` having size k.

    Raises:
        InvalidInputError: a dtype or dimension that there is not, or more elements than the dimension has.
    """
    check_order("topk", x)
    lines = as_lines("topk", x, dim)
    if not 0 <= k <= lines.length:
        raise InvalidInputError(
            f"topk: k is {k}; dim {dim} has {lines.length} elements: 0 to {lines.length} are allowed"
        )
    shape = lines.shape_with(k) if x.dim() or not k else ()
    values = empty(shape, x.dtype, x.device)
    indices = empty(shape, torch.int64, x.device)
    if values.numel() == 0:
        return values, indices
    chosen: Pairs | None = None
    rows, length = lines.lines, lines.length
    while length > k:
        if length <= tuning.TOPK_CHUNK and k <= tuning.TOPK_MOST_STAGED:
            _select(lines, chosen, length, k, length, (values, indices), largest=largest)
            return values, indices
        # A chunk keeps k of its elements: unless that is few of them, the whole line is one chunk, read several times.
        few = k <= tuning.TOPK_CHUNK // tuning.TOPK_SHRINK
        chunk = tuning.TOPK_CHUNK if few and length > tuning.TOPK_CHUNK else length
        kept = (ceil_div(length, chunk) - 1) * k + min(k, length - (ceil_div(length, chunk) - 1) * chunk)
        target = pairs(x.dtype, rows, kept, x.device)
        _select(lines, chosen, length, k, chunk, target, largest=largest)
        chosen, length = target, kept
    sort_lines(lines, chosen, k, values, indices, descending=largest)
    return values, indices


def _select(
    lines: Lines,
    source: Pairs | None,
    length: int,
    k: int,
    chunk: int,
    target: Pairs | tuple[torch.Tensor, torch.Tensor],
    *,
    largest: bool,
) -> None:
    """The k first of each chunk of each line, to pairs in any order, or sorted to values and indices."""
    last = not isinstance(target, Pairs)
    elements = tuning.TOPK_ELEMENTS if chunk <= tuning.TOPK_CHUNK else 0
    stage = tuning.pick(tuning.TOPK_STAGES, k=k) if last else 1
    group = min(_MOST_THREADS, round_up(ceil_div(chunk, tuning.TOPK_ELEMENTS), SIMD_WIDTH))
    chunks = ceil_div(length, chunk)
    kept = target.keys.shape[1] if isinstance(target, Pairs) else k
    params = _Params(
        length,
        chunk,
        k,
        kept,
        lines.stride,
        lines.inner,
        -int(largest),
        _bytes(lines.length),
    )
    out = (target.keys, target.places, None, None) if isinstance(target, Pairs) else (None, None, *target)
    launch(
        Variant(
            "topk", "topk_select", (metal_type(lines.tensor.dtype), source is None, last, elements, stage)
        ),
        lines.tensor,
        source.keys if source else None,
        source.places if source else None,
        *out,
        list(astuple(params)),
        threads=(chunks * group, lines.lines),
        group=(group, 1),
    )


def _bytes(length: int) -> int:
    """Bytes in which the places of a line of this length differ."""
    return ceil_div((length - 1).bit_length(), 8)
