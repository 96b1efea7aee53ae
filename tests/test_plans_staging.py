"""Filling and emptying the buffers that captured graphs copy from and to; nothing here needs a GPU but the pinning."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from steelworks import Padding
from steelworks.plans._staging import array_of, stage, stage_small, take_rows
from steelworks.plans.batches import merge
from steelworks.plans.inputs import InputReader, Reading

LENGTH = 6  # of the buffers
ROWS = 8


def tokens(length: int, rows: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(10 * length + rows + seed)
    ids = torch.randint(1, 50, (rows, length), generator=made)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def embedded(length: int, rows: int = 1) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(length)
    states = torch.randn(rows, length, 3, generator=made)
    return {"inputs_embeds": states, "attention_mask": torch.ones(rows, length, dtype=torch.int64)}


def readings_of(*requests: Any, values: dict[str, int] | None = None) -> list[Reading]:
    reader = InputReader(Padding(inputs=("input_ids", "inputs_embeds"), values=values or {}))
    return [reader.read(request) for request in requests]


def buffers_for(readings: list[Reading], length: int = LENGTH) -> list[torch.Tensor]:
    """As long as the bucket, and full of what an earlier batch left there."""
    group = readings[0].lane.group
    made = []
    for index, leaf in enumerate(readings[0].leaves):
        shape = [ROWS, *leaf.shape[1:]]
        if index in group.sequence:
            shape[1] = length
        made.append(torch.full(shape, 77, dtype=leaf.dtype))
    return made


def staged(way: str, readings: list[Reading], length: int = LENGTH) -> list[torch.Tensor]:
    buffers = buffers_for(readings, length)
    group = readings[0].lane.group
    if way == "small":
        assert stage_small([array_of(b) for b in buffers], readings, group, length)
    else:
        assert stage(buffers, readings, group, length) == sum(reading.rows for reading in readings)
    return buffers


BATCHES = {
    "one": [tokens(4)],
    "one of several rows": [tokens(3, rows=2)],
    "one that fills the bucket": [tokens(LENGTH)],
    "several lengths": [tokens(2), tokens(6), tokens(4), tokens(6, seed=1)],
    "several lengths and rows": [tokens(2, rows=3), tokens(6), tokens(5, rows=2)],
    "all that fill the bucket": [tokens(LENGTH), tokens(LENGTH, seed=1)],
    "states": [embedded(2), embedded(6), embedded(3)],
    "states of several rows": [embedded(2, rows=2), embedded(6)],
    "one of states": [embedded(4)],
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("way", ["small", "large"])
def test_buffers_hold_what_merging_gives_and_nothing_of_the_batch_before(way: str, name: str) -> None:
    readings = readings_of(*BATCHES[name], values={"input_ids": 9})
    rows = sum(reading.rows for reading in readings)
    for buffer, want in zip(staged(way, readings), merge(readings, LENGTH), strict=True):
        assert torch.equal(buffer[:rows], want)
        assert bool((buffer[rows:] == 77).all()), "rows behind the batch are not touched"


@pytest.mark.parametrize("way", ["small", "large"])
def test_requests_without_a_sequence_are_put_one_below_the_other(way: str) -> None:
    readings = readings_of(torch.ones(2, 5), 2 * torch.ones(1, 5), 3 * torch.ones(3, 5))
    (buffer,) = staged(way, readings, 0)
    assert buffer[:6, 0].tolist() == [1, 1, 2, 3, 3, 3]


def test_what_has_no_numpy_view_is_left_to_torch() -> None:
    half = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert array_of(half) is None
    assert array_of(torch.zeros(2, dtype=torch.complex64)) is None
    readings = readings_of(torch.ones(1, 5, requires_grad=True))
    buffers = buffers_for(readings, 0)
    assert not stage_small([array_of(b) for b in buffers], readings, readings[0].lane.group, 0)


def test_results_are_copies_of_their_own_rows() -> None:
    buffer = torch.arange(20.0).view(10, 2)
    results = take_rows(array_of(buffer), [1, 3, 2])
    wanted = [buffer[0:1].clone(), buffer[1:4].clone(), buffer[4:6].clone()]
    buffer.fill_(-1)  # the next batch
    assert all(torch.equal(a, b) for a, b in zip(results, wanted, strict=True))
    results[0].fill_(5)
    assert torch.equal(results[1], wanted[1])
