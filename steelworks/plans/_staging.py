"""Filling pinned input buffers: one call an input where shapes allow, never a loop over requests there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steelworks.plans.inputs import Group, Reading


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
