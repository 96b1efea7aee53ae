"""Which requests wait, and which of them run next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import StubPlan
from hypothesis import given, settings
from hypothesis import strategies as st

from steelworks import Padding
from steelworks.batching._pending import Pending, _Line, _segment
from steelworks.batching._request import ENDED, RUNNING, MapSink, Request
from steelworks.plans.inputs import Group, InputReader, Lane, Reading

_SINK = MapSink()


class LanePlan(StubPlan):
    """A plan that mixes lanes, with times of the test's choice."""

    def __init__(
        self, seconds: Callable[[int, int], float] = lambda rows, length: 1.0, packs: bool = False
    ) -> None:
        super().__init__()
        self._seconds = seconds
        self._packs = packs

    def predict(self, group: Group, rows: int, length: int) -> float:
        return self._seconds(rows, length)

    def first_run(self, group: Group, rows: int, length: int) -> int:
        return rows

    def packs(self, group: Group) -> bool:
        return self._packs


def request(
    reader: InputReader, length: int, order: float, rows: int = 1, solo: bool = False, wide: bool = True
) -> Request:
    ids = torch.ones(rows, length, dtype=torch.int64 if wide else torch.int32)
    made = Request(reader.read({"input_ids": ids, "attention_mask": ids}), _SINK, None, order, order)
    made.solo = solo
    return made


def pending_of(*requests: Request) -> Pending:
    pending = Pending()
    for one in requests:
        pending.add(one)
    return pending


# ---------------------------------------------------------------- the books


def assert_books(pending: Pending, waiting: Sequence[Request]) -> None:
    assert pending.count == len(waiting)
    assert pending.rows == sum(one.rows for one in waiting)
    assert set(pending) == set(waiting)
    lanes = {one.reading.lane for one in waiting if one.reading is not None}
    assert set(pending._lines) == lanes, "a lane is kept while something waits in it, and no longer"
    for lane, line in pending._lines.items():
        own = [one for one in waiting if one.reading is not None and one.reading.lane is lane]
        assert (line.live, line.rows) == (len(own), sum(one.rows for one in own))
        assert line.solos == sum(one.solo for one in own)


_REQUESTS = st.tuples(
    st.sampled_from([3, 8, 9, 20]),  # length
    st.integers(0, 5),  # priority
    st.integers(1, 3),  # rows
    st.integers(0, 5).map(lambda n: n == 0),  # solo
    st.booleans(),  # wide
)
_STEPS = st.one_of(
    st.tuples(st.just("add"), _REQUESTS),
    st.tuples(st.just("add_many"), st.lists(_REQUESTS, min_size=1, max_size=6)),
    st.tuples(st.just("end"), st.integers(0, 100)),
    st.tuples(st.just("take"), st.integers(1, 6)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_STEPS, max_size=30), st.booleans())
def test_whatever_comes_ends_and_is_taken_the_books_agree_with_what_waits(
    steps: list[tuple[str, Any]], ones: bool
) -> None:
    reader, pending, plan = InputReader(Padding()), Pending(), LanePlan()
    waiting: list[Request] = []
    clock = itertools.count()

    def make(length: int, priority: int, rows: int, solo: bool, wide: bool) -> Request:
        return request(reader, length, next(clock) - 3.1 * priority, 1 if ones else rows, solo, wide)

    for step, what in steps:
        if step == "add":
            waiting.append(make(*what))
            pending.add(waiting[-1])
        elif step == "add_many":
            fresh = [make(*one) for one in what]
            waiting.extend(fresh)
            pending.add_many(fresh)
        elif step == "end" and waiting:
            ended = waiting.pop(what % len(waiting))
            pending.remove(ended)
            ended.state = ENDED
        elif step == "take":
            taken = pending.take(plan, what)
            assert_taken_well(taken, waiting, what)
            for one in taken:
                one.state = RUNNING
                waiting.remove(one)
        assert_books(pending, waiting)
    first = pending.oldest()
    assert first is (min(waiting, key=lambda one: one.order) if waiting else None)


def assert_taken_well(taken: list[Request], waiting: list[Request], limit: int) -> None:
    assert bool(taken) == bool(waiting)
    if not taken:
        return
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(waiting)
    assert taken[0] is min(waiting, key=lambda one: one.order), "the first in order is always among them"
    assert [one.order for one in taken] == sorted(one.order for one in taken)
    assert len(taken) == 1 or sum(one.rows for one in taken) <= limit
    assert len(taken) == 1 or not any(one.solo for one in taken), "a request that is to run alone does"
    assert len({one.reading.lane.group for one in taken if one.reading is not None}) == 1


def test_ended_requests_do_not_stay_in_memory_while_others_wait() -> None:
    reader = InputReader(Padding())
    kept, *others = (request(reader, 3, float(n)) for n in range(200))
    pending = pending_of(kept, *others)
    for one in others:
        pending.remove(one)
        one.state = ENDED
    (line,) = pending._lines.values()
    assert len(line.requests) < 100
    assert list(pending) == [kept]


# ---------------------------------------------------------------- which batch


def test_lanes_are_taken_from_in_order_of_arrival_and_not_one_after_the_other() -> None:
    reader = InputReader(Padding())
    requests = [request(reader, 20 if n % 2 == 0 else 3, float(n)) for n in range(6)]
    assert pending_of(*requests).take(LanePlan(packs=True), 4) == requests[:4]


def test_lanes_whose_batches_are_cheaper_apart_are_not_mixed() -> None:
    reader = InputReader(Padding())
    short, long = request(reader, 3, 0.0), request(reader, 200, 1.0)
    pending = pending_of(short, long)
    assert pending.take(LanePlan(lambda rows, length: rows * length**2), 8) == [short]


def test_a_plan_that_packs_takes_all_lengths_together_whatever_padding_would_cost() -> None:
    reader = InputReader(Padding())
    short, long = request(reader, 3, 0.0), request(reader, 200, 1.0)
    pending = pending_of(short, long)
    assert pending.take(LanePlan(lambda rows, length: rows * length**2, packs=True), 8) == [short, long]


def line_of(lane: Lane, rows: int) -> _Line:
    line = _Line(lane)
    for n in range(rows):
        line.add(Request(Reading((), 1, lane, lane.length), _SINK, None, n, n))
    return line


def run_cost(lines: Sequence[_Line], limit: int, seconds: Callable[[int, int], float]) -> float:
    """What one run over ``lines`` costs: full batches and a rest, all as long as the longest lane."""
    full, rest = divmod(sum(line.rows for line in lines), limit)
    length = lines[-1].lane.length
    return full * seconds(limit, length) + (seconds(rest, length) if rest else 0.0)


def least(lines: Sequence[_Line], limit: int, seconds: Callable[[int, int], float]) -> float:
    """The cost of the best of all ways to cut ``lines`` into runs."""
    if not lines:
        return 0.0
    return min(
        run_cost(lines[:end], limit, seconds) + least(lines[end:], limit, seconds)
        for end in range(1, len(lines) + 1)
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(1, 8),
    st.integers(0, 50),
    st.integers(0, 3),
    st.data(),
)
def test_the_segment_is_a_run_of_the_cheapest_cut(
    rows: list[int], limit: int, launch: int, square: int, data: st.DataObject
) -> None:
    def seconds(count: int, length: int) -> float:
        return launch + count * length + square * count * length**2 / 16

    group = Group(("x",), (torch.int64,), lambda tensors: (tuple(tensors), {}), (0,))
    lines = [line_of(Lane(group, 8 * (n + 1)), count) for n, count in enumerate(rows)]
    wanted = data.draw(st.sampled_from(lines))
    segment = _segment(LanePlan(seconds), lines, wanted, limit)
    start = lines.index(segment[0])
    end = start + len(segment)
    assert segment == lines[start:end]
    assert wanted in segment
    total = (
        least(lines[:start], limit, seconds)
        + run_cost(segment, limit, seconds)
        + least(lines[end:], limit, seconds)
    )
    assert total == pytest.approx(least(lines, limit, seconds))
