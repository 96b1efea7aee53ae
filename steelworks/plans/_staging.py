"""Filling pinned input buffers and emptying pinned output buffers.

Every torch call gives up the GIL and has to get it back, which costs tens of microseconds where other threads
want it too. Small copies therefore go through numpy, which keeps it; large batches take one torch call an
input, never a loop over requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from steelworks.plans.inputs import Group, Reading

try:
    import numpy
except ImportError:  # torch works without it, and so does this, through torch's own copies
    numpy = None  # type: ignore[assignment]

SMALL_ROWS = 32  # up to here copies go through numpy


def array_of(tensor: torch.Tensor) -> Any:
    """A numpy view of a CPU tensor, or None where numpy is missing or lacks the dtype."""
    if numpy is None or tensor.dtype is torch.bfloat16 or tensor.is_complex():
        return None
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError):
        return None


def stage_small(arrays: Sequence[Any], readings: Sequence[Reading], group: Group, length: int) -> bool:
    """As :func:`stage`, through numpy; False (and nothing is lost) where a tensor has no numpy view.

    Args:
        arrays: numpy views of the buffers.
        readings: the requests, of one group.
        group: their group.
        length: the length the buffers have; shorter sequences are padded to it.
    """
    sequence = group.sequence
    try:
        for index, array in enumerate(arrays):
            at = 0
            padded = index in sequence
            for reading in readings:
                upto = at + reading.rows
                source = reading.leaves[index].numpy()
                if padded and reading.length != length:
                    array[at:upto, : reading.length] = source
                    array[at:upto, reading.length :] = group.pad_values[index]
                else:
                    array[at:upto] = source
                at = upto
    except (TypeError, RuntimeError):  # needs grad, or a dtype that numpy does not have
        return False
    return True


def take_rows(array: Any, counts: Sequence[int]) -> list[torch.Tensor]:
    """Copies of the first rows of a numpy view, cut into tensors of ``counts`` rows each."""
    results = []
    at = 0
    for count in counts:
        results.append(torch.from_numpy(array[at : at + count].copy()))
        at += count
    return results


def stage(buffers: Sequence[torch.Tensor], readings: Sequence[Reading], group: Group, length: int) -> int:
    """Write the requests into the first rows of ``buffers``; returns how many rows that is.

    Args:
        buffers: one a tensor of the group, shape [most rows, ...] (sequences: [most rows, length, ...]).
        readings: the requests, of one group.
        group: their group.
        length: the length the buffers have; shorter sequences are padded to it.
    """
    if len(readings) == 1:
        reading = readings[0]
        for index, (buffer, leaf) in enumerate(zip(buffers, reading.leaves, strict=True)):
            if index in group.sequence and reading.length != length:
                buffer[: reading.rows, : reading.length] = leaf
                buffer[: reading.rows, reading.length :] = group.pad_values[index]
            else:
                buffer[: reading.rows] = leaf
        return reading.rows
    rows = 0
    ragged = False
    single = True
    for reading in readings:
        rows += reading.rows
        ragged = ragged or reading.length != length
        single = single and reading.rows == 1
    ragged = ragged and bool(group.sequence)
    places: torch.Tensor | None = None
    for index, buffer in enumerate(buffers):
        leaves = [reading.leaves[index] for reading in readings]
        if not ragged or index not in group.sequence:
            torch.cat(leaves, out=buffer[:rows])
        elif single and leaves[0].dim() == 2:
            if places is None:
                places = _places([reading.length for reading in readings], length)
            target = buffer[:rows]
            target.fill_(group.pad_values[index])
            target.view(-1)[places] = torch.cat(leaves, dim=1).view(-1)
        else:
            at = 0
            for reading, leaf in zip(readings, leaves, strict=True):
                buffer[at : at + reading.rows, : reading.length] = leaf
                buffer[at : at + reading.rows, reading.length :] = group.pad_values[index]
                at += reading.rows
    return rows


def _places(lengths: Sequence[int], width: int) -> torch.Tensor:
    """Where row i's ``lengths[i]`` elements, concatenated, go in a flat [rows, width] buffer."""
    counts = torch.tensor(lengths)
    ends = counts.cumsum(0)
    # Row i starts at i * width instead of at the sum of the lengths before it.
    shifts = torch.arange(len(lengths)) * width - (ends - counts)
    return torch.arange(int(ends[-1])) + shifts.repeat_interleave(counts)
