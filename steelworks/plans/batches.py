"""From requests to one batch and back: stacking, padding, and cutting the output.

Cutting needs to know which dimensions of an output grow with the sequence length. A model can't
be asked, so it is probed once a group: the same row at its own length and padded further. The probe
also shows whether the model honours the mask; if it does not, padding is switched off for that group,
with the reason logged, because a padded batch would answer something else (I8).
"""

from __future__ import annotations

import enum
import itertools
import logging
import numbers
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
# Values that mean the same to every request of a batch.
_CONSTANTS = (type(None), enum.Enum, torch.dtype, torch.device)  # these belong to no row
_PLAIN = (str, bytes, numbers.Number, torch.Size, *_CONSTANTS)
_warned: set[str] = set()
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
    rows: int = 0,
) -> list[Any]:
    """Cut a batch's output into one result a request; each has the output's structure.

    The results are views of the batch's output: they share its storage, never each other's elements.
    Tensors are cut along dim 0, and so are lists of plain values with one item a row. None, enums and
    dtypes go to every request as they are; so do numbers and strings where the batch is one request.

    Args:
        output: what the model returned for the merged batch (extra rows at the end are dropped).
        readings: the requests, in the order in which they were merged.
        layout: where the sequence is in the output; None when nothing was padded.
        length: the length the batch was padded to.
        unbatched: drop the batch dimension from each result.
        rows: the rows of the merged batch where it was padded with rows; 0 where it was not.

    Raises:
        ModelOutputError: a part of the output does not have one row an input row.
    """
    total = sum(reading.rows for reading in readings)
    rows = max(rows, total)
    if isinstance(output, torch.Tensor) and layout is None and output.dim() > 0:
        return _cut_rows(output, readings, total, rows, unbatched)
    flat, spec = pytree.tree_flatten(output)
    if not all(isinstance(leaf, torch.Tensor) for leaf in flat):
        flat, spec = pytree.tree_flatten(output, is_leaf=_plain_list)
    alone = len(readings) == 1 and rows == total
    columns: list[Sequence[Any]] = []
    position = 0
    for leaf in flat:
        if not isinstance(leaf, torch.Tensor):
            columns.append(_cut_other(leaf, readings, total, rows, unbatched, alone))
            continue
        dims = layout.sequence_dims[position] if layout is not None else ()
        position += 1
        if leaf.dim() == 0:
            if not alone:
                raise _no_rows(leaf, rows)
            columns.append([leaf])
            continue
        parts = _cut_rows(leaf, readings, total, rows, unbatched)
        if dims:
            shift = 1 if unbatched else 0
            parts = [
                _narrow(p, dims, r.length, shift) if r.length != length else p
                for p, r in zip(parts, readings, strict=True)
            ]
        columns.append(parts)
    if len(columns) == 1 and spec.is_leaf():
        return list(columns[0])
    return [pytree.tree_unflatten([column[i] for column in columns], spec) for i in range(len(readings))]


def _cut_rows(
    tensor: torch.Tensor, readings: Sequence[Reading], total: int, rows: int, unbatched: bool
) -> list[torch.Tensor]:
    if tensor.shape[0] != rows:
        raise _no_rows(tensor, rows)
    if unbatched:
        return list(tensor.unbind(0)[:total])
    if total == len(readings):
        return list(torch.split(tensor, 1)[:total])
    return list(torch.split(tensor[:total], [reading.rows for reading in readings]))


def _cut_other(
    leaf: Any, readings: Sequence[Reading], total: int, rows: int, unbatched: bool, alone: bool
) -> list[Any]:
    if _plain_list(leaf):
        if len(leaf) == rows:
            starts = itertools.accumulate((reading.rows for reading in readings), initial=0)
            pieces = zip(readings, starts, strict=False)
            return [leaf[at] if unbatched else leaf[at : at + reading.rows] for reading, at in pieces]
        if not alone:
            raise ModelOutputError(
                f"the model returned a list of {len(leaf)} values for a batch of {rows} rows; return one a "
                "row, or give the queue a split function"
            )
    elif not alone and not isinstance(leaf, _CONSTANTS):
        # A number may be the batch's sum, the first row's label or a constant: nothing tells which.
        _warn_once(
            f"the model's output holds a {type(leaf).__name__}, which can't be cut into one part a request, "
            "so requests run one by one: return tensors with a row a row only (for example use_cache=False), "
            "or give the queue a split function"
        )
        raise ModelOutputError(
            f"the model's output holds a {type(leaf).__name__} for a batch of {len(readings)} requests; "
            "return tensors only, or give the queue a split function"
        )
    return [leaf] * len(readings)


def _plain_list(node: Any) -> bool:
    """Whether ``node`` is a list of plain values, which may be one a row."""
    return (
        type(node) is list and any(x is not None for x in node) and all(isinstance(x, _PLAIN) for x in node)
    )


def _narrow(part: torch.Tensor, dims: tuple[int, ...], length: int, shift: int) -> torch.Tensor:
    for dim in dims:
        part = part.narrow(dim - shift, 0, length)
    return part


def _no_rows(leaf: torch.Tensor, rows: int) -> ModelOutputError:
    return ModelOutputError(
        f"the model returned a tensor of shape {list(leaf.shape)} for a batch of {rows} rows; dim 0 of every "
        "output tensor must be the batch. If a request lacks the batch dimension, pass x[None] or set unbatched=True; "
        "else return one row an input row, or give the queue a split function"
    )


def probe_layout(
    call: Callable[[Sequence[torch.Tensor], Group], Any], reading: Reading
) -> OutputLayout | None:
    """Find the layout of a group's output by running one row at two lengths.

    The longer one is run twice, with the padding value and with other content at the padded positions: a
    model that honours its mask answers the same whatever is there. None if this row does not tell (its
    answer is NaN, with and without padding).

    Args:
        call: runs the model on merged tensors of the group.
        reading: any request of the group; its first row is used.

    Raises:
        Exception: what the model raises for this row as it is.
    """
    group = reading.lane.group
    # Cut the row rather than pad it where possible: a longer one may be past what the model can take.
    length = reading.length - _PROBE_EXTRA if reading.length > _PROBE_EXTRA else reading.length
    first = tuple(leaf[:1] for leaf in reading.leaves)
    leaves = tuple(leaf[:, :length] if i in group.sequence else leaf for i, leaf in enumerate(first))
    row = Reading(leaves, 1, reading.lane, length)
    try:
        alone = _tensors(call(merge([row]), group))
        longer = [
            _tensors(call(batch, group))
            for batch in (merge([row], length=length + _PROBE_EXTRA), _with_content_in_padding(row))
        ]
    except Exception as error:
        call(merge([Reading(first, 1, reading.lane, reading.length)]), group)  # raises if the row is to blame
        return _unpaddable(f"it raises {type(error).__name__} when the input is shortened or padded: {error}")
    if any(leaf.is_floating_point() and leaf.isnan().any() for leaf in alone):
        return None
    layouts = [_compare(alone, leaves, length) for leaves in longer]
    reason = next((layout for layout in layouts if isinstance(layout, str)), None)
    if reason is not None:
        return _unpaddable(reason)
    dims = layouts[0]
    assert not isinstance(dims, str)
    return OutputLayout(dims, padding=True)


def _tensors(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def _with_content_in_padding(row: Reading) -> list[torch.Tensor]:
    """The row padded, with content in place of padding. Ids are taken from the row: others may not exist."""
    group = row.lane.group
    batch = merge([row], length=row.length + _PROBE_EXTRA)
    places = torch.arange(row.length - 1, row.length - 1 - _PROBE_EXTRA, -1) % row.length
    for index in group.sequence:
        if index != group.mask_index:
            padding = batch[index][:, row.length :]
            if padding.is_floating_point():
                noise = torch.arange(padding.numel(), dtype=torch.float64).mul(0.7).sin().mul(3.0)
                padding.copy_(noise.reshape(padding.shape))
            else:
                padding.copy_(row.leaves[index][:, places.to(row.leaves[index].device)])
    return batch


def _compare(
    short_leaves: Sequence[torch.Tensor], long_leaves: Sequence[torch.Tensor], length: int
) -> tuple[tuple[int, ...], ...] | str:
    """The dims that grow with the length, or why padding is not possible."""
    if len(short_leaves) != len(long_leaves):
        return "its output has another structure when the input is padded"
    dims_of: list[tuple[int, ...]] = []
    for short, long in zip(short_leaves, long_leaves, strict=True):
        if short.dim() != long.dim():
            return "an output has other dimensions when the input is padded"
        dims = tuple(d for d in range(1, short.dim()) if long.shape[d] != short.shape[d])
        grown = all(long.shape[d] == short.shape[d] + _PROBE_EXTRA for d in dims)
        # Cut to a request's own length, so the dim has to be the length itself.
        grown = grown and all(short.shape[d] == length for d in dims)
        if not grown or (short.dim() and long.shape[0] != short.shape[0]):
            return (
                f"an output of shape {list(short.shape)} becomes {list(long.shape)} when padded "
                f"by {_PROBE_EXTRA}"
            )
        difference = _difference(short, _narrow(long, dims, length, 0))
        if difference > PADDING_TOLERANCE.get(short.dtype, 0.0):
            return (
                f"its output changes by {difference:.2g} (relative) when the input is padded: the mask is "
                "not honoured"
            )
        dims_of.append(dims)
    return tuple(dims_of)


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


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        logger.warning("%s", message)
