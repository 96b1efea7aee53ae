"""From requests to one batch and back: stacking, padding, and cutting the output.

Cutting needs to know which dimensions of an output grow with the sequence length. A model can't
be asked, so it is probed once a group: the same row at its own length and padded further. The probe
also shows whether the model honours the mask; if it does not, padding is switched off for that group,
with the reason logged, because a padded batch would answer something else (I8).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from steelworks.errors import ModelOutputError
from steelworks.plans.inputs import Group, Reading

logger = logging.getLogger("steelworks.plans")

# Largest difference, relative to the output's largest value, between a row alone and the same row
# padded, above which the model is taken to ignore its mask.
PADDING_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 2e-2, torch.bfloat16: 6e-2}
_PROBE_EXTRA = 3  # odd on purpose: a dim that grows by 3 with the padding is the sequence


@dataclass(frozen=True)
class OutputLayout:
    """How an output is cut back to each request's own length.

    Attributes:
        sequence_dims: for each tensor of the output, the dims that grow with the length.
        padding: whether padded batches answer what unpadded ones do.
    """

    sequence_dims: tuple[tuple[int, ...], ...]
    padding: bool


def merge(readings: Sequence[Reading], length: int = 0, rows: int = 0) -> list[torch.Tensor]:
    """Stack requests of one group into batch tensors of shape [sum of rows, ...].

    Args:
        readings: the requests, of one group.
        length: pad sequences to this length; 0 for the longest among them.
        rows: pad the batch to this many rows by repeating the last; 0 for none.
    """
    group = readings[0].lane.group
    total = sum(reading.rows for reading in readings)
    sequence = group.sequence
    if sequence:
        longest = max(reading.length for reading in readings)
        length = max(length, longest)
        ragged = any(reading.length != length for reading in readings)
    else:
        ragged = False
    merged = []
    for index in range(len(group.names)):
        leaves = [reading.leaves[index] for reading in readings]
        if ragged and index in sequence:
            first = leaves[0]
            batch = first.new_full((max(total, rows), length, *first.shape[2:]), group.pad_values[index])
            at = 0
            for leaf in leaves:
                n = leaf.shape[0]
                batch[at : at + n, : leaf.shape[1]] = leaf
                at += n
            if rows > total:
                batch[total:] = batch[total - 1]
        else:
            if rows > total:
                last = leaves[-1]
                leaves.append(last[-1:].expand(rows - total, *last.shape[1:]))
            batch = leaves[0] if len(leaves) == 1 else torch.cat(leaves)
        merged.append(batch)
    return merged


def cut(
    output: Any,
    readings: Sequence[Reading],
    layout: OutputLayout | None,
    length: int,
    unbatched: bool = False,
) -> list[Any]:
    """Cut a batch's output into one result a request; each has the output's structure.

    The results are views of the batch's output: they share its storage, never each other's elements.

    Args:
        output: what the model returned for the merged batch (extra rows at the end are dropped).
        readings: the requests, in the order in which they were merged.
        layout: where the sequence is in the output; None when nothing was padded.
        length: the length the batch was padded to.
        unbatched: drop the batch dimension from each result.

    Raises:
        ModelOutputError: a tensor of the output has fewer rows than the batch.
    """
    total = sum(reading.rows for reading in readings)
    if isinstance(output, torch.Tensor) and layout is None and output.dim() > 0:
        return _cut_tensor(output, readings, total, unbatched)
    flat, spec = pytree.tree_flatten(output)
    columns: list[Sequence[Any]] = []
    position = 0
    for leaf in flat:
        if not isinstance(leaf, torch.Tensor):
            columns.append([leaf] * len(readings))
            continue
        dims = layout.sequence_dims[position] if layout is not None else ()
        position += 1
        if leaf.dim() == 0:
            if len(readings) > 1:
                raise _no_rows(leaf, total)
            columns.append([leaf])
            continue
        parts = _cut_tensor(leaf, readings, total, unbatched)
        if dims:
            shift = 1 if unbatched else 0
            parts = [
                _narrow(p, dims, r.length, shift) if r.length != length else p
                for p, r in zip(parts, readings, strict=True)
            ]
        columns.append(parts)
    if len(columns) == 1 and spec.is_leaf():
        return list(columns[0])
    return [pytree.tree_unflatten(list(column), spec) for column in zip(*columns, strict=True)]


def _cut_tensor(
    tensor: torch.Tensor, readings: Sequence[Reading], total: int, unbatched: bool
) -> list[torch.Tensor]:
    have = tensor.shape[0]
    if have < total or (have > total and not _padded_rows(readings, have)):
        raise _no_rows(tensor, total)
    if unbatched:
        return list(tensor.unbind(0)[: len(readings)])
    if total == len(readings):
        return list(tensor.split(1)[:total])
    return list(tensor[:total].split([reading.rows for reading in readings]))


def _padded_rows(readings: Sequence[Reading], have: int) -> bool:
    """Whether a batch of ``have`` rows can come from padding this batch with rows."""
    allowed = readings[0].lane.group.state.get("row_buckets", ())
    return have in allowed


def _narrow(part: torch.Tensor, dims: tuple[int, ...], length: int, shift: int) -> torch.Tensor:
    for dim in dims:
        part = part.narrow(dim - shift, 0, length)
    return part


def _no_rows(leaf: torch.Tensor, total: int) -> ModelOutputError:
    return ModelOutputError(
        f"the model returned a tensor of shape {list(leaf.shape)} for a batch of {total} rows; dim 0 of every output tensor must be "
        "the batch: return one row an input row, or give the queue a split function"
    )


def probe_layout(call: Callable[[Sequence[torch.Tensor], Group], Any], reading: Reading) -> OutputLayout:
    """Find the layout of a group's output by running one row at two lengths.

    Args:
        call: runs the model on merged tensors of the group.
        reading: any request of the group; its first row is used.
    """
    group = reading.lane.group
    # Cut the row rather than pad it where possible: a longer one may be past what the model can take.
    length = reading.length - _PROBE_EXTRA if reading.length > _PROBE_EXTRA else reading.length
    leaves = tuple(
        leaf[:1, :length] if i in group.sequence else leaf[:1] for i, leaf in enumerate(reading.leaves)
    )
    row = Reading(leaves, 1, reading.lane, length)
    alone = call(merge([row]), group)
    longer = call(merge([row], length=length + _PROBE_EXTRA), group)
    short_leaves = [leaf for leaf in pytree.tree_leaves(alone) if isinstance(leaf, torch.Tensor)]
    long_leaves = [leaf for leaf in pytree.tree_leaves(longer) if isinstance(leaf, torch.Tensor)]
    if len(short_leaves) != len(long_leaves):
        return _unpaddable("its output has another structure when the input is padded")
    dims_of: list[tuple[int, ...]] = []
    for short, long in zip(short_leaves, long_leaves, strict=True):
        if short.dim() != long.dim():
            return _unpaddable("an output has other dimensions when the input is padded")
        dims = tuple(d for d in range(1, short.dim()) if long.shape[d] != short.shape[d])
        grown = all(long.shape[d] == short.shape[d] + _PROBE_EXTRA for d in dims)
        if not grown or (short.dim() and long.shape[0] != short.shape[0]):
            return _unpaddable(
                f"an output of shape {list(short.shape)} becomes {list(long.shape)} when padded by {_PROBE_EXTRA}"
            )
        difference = (
            _difference(short, _narrow(long, dims, row.length, 0)) if dims else _difference(short, long)
        )
        allowed = PADDING_TOLERANCE.get(short.dtype, 0.0)
        if difference > allowed:
            return _unpaddable(
                f"its output changes by {difference:.2g} (relative) when the input is padded: the mask is not honoured"
            )
        dims_of.append(dims)
    return OutputLayout(tuple(dims_of), padding=True)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.numel() == 0:
        return 0.0
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else 1.0
    wide_a, wide_b = a.detach().double(), b.detach().double()
    if not torch.equal(wide_a.isfinite(), wide_b.isfinite()):
        return float("inf")
    gap = (wide_a - wide_b).nan_to_num(0.0, 0.0, 0.0).abs().max()
    scale = wide_a.nan_to_num(0.0, 0.0, 0.0).abs().max().clamp_min(1e-30)
    return float(gap / scale)


def _unpaddable(reason: str) -> OutputLayout:
    logger.warning("padding is off for this model, requests are batched by exact length: %s", reason)
    return OutputLayout((), padding=False)
