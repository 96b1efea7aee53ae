"""Histograms count what a naive count counts; statistics add up."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest
import torch
from helpers import LONG, Held, StubPlan, assert_adds_up, in_threads, outcomes_of, row, wait_for_pending
from hypothesis import given, settings
from hypothesis import strategies as st

from steelworks.batching._request import MapSink, Request
from steelworks.batching._scheduler import Scheduler, Sleeper
from steelworks.batching.options import QueueOptions
from steelworks.batching.statistics import ROWS_EDGES, SECONDS_EDGES, Histogram, HistogramSnapshot
from steelworks.errors import InvalidInputError

POISON = 666.0


def naive(edges: tuple[float, ...], values: list[float]) -> list[int]:
    """In bucket i: above edge i - 1, up to and including edge i."""
    counts = [0] * (len(edges) + 1)
    for value in values:
        place = 0
        while place < len(edges) and value > edges[place]:
            place += 1
        counts[place] += 1
    return counts


observations = st.lists(
    st.one_of(st.floats(0.0, 200.0), st.sampled_from([0.0, *SECONDS_EDGES, *ROWS_EDGES])), max_size=60
)


@settings(max_examples=200, deadline=None)
@given(observations)
def test_observing_one_by_one_counts_as_a_naive_count_does(values: list[float]) -> None:
    histogram = Histogram(SECONDS_EDGES)
    for value in values:
        histogram.observe(value)
    snapshot = histogram.snapshot()
    assert list(snapshot.counts) == naive(SECONDS_EDGES, values)
    assert snapshot.count == len(values)
    assert snapshot.total == pytest.approx(sum(values))


@settings(max_examples=200, deadline=None)
@given(st.lists(observations, max_size=4))
def test_observing_sorted_batches_counts_as_a_naive_count_does(batches: list[list[float]]) -> None:
    histogram = Histogram(SECONDS_EDGES)
    for values in batches:
        histogram.observe_sorted(sorted(values))
    everything = [value for values in batches for value in values]
    snapshot = histogram.snapshot()
    assert list(snapshot.counts) == naive(SECONDS_EDGES, everything)
    assert snapshot.count == len(everything)
    assert snapshot.total == pytest.approx(sum(everything))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 4096), max_size=40), st.integers(0, 4096))
def test_a_shift_counts_as_if_it_had_been_added_to_each(values: list[int], shift: int) -> None:
    edges = (16.0, 64.0, 65.0, 1024.0)  # whole numbers, so that adding rounds nothing
    histogram = Histogram(edges)
    histogram.observe_sorted(sorted(map(float, values)), float(shift))
    snapshot = histogram.snapshot()
    assert list(snapshot.counts) == naive(edges, [float(v + shift) for v in values])
    assert snapshot.total == pytest.approx(sum(values) + shift * len(values))


def test_a_snapshot_does_not_change_later() -> None:
    histogram = Histogram((1.0,))
    snapshot = histogram.snapshot()
    histogram.observe(0.5)
    assert snapshot.counts == (0, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.count = 3  # type: ignore[misc]


def test_mean_and_quantiles_of_nothing_are_zero() -> None:
    empty = Histogram(SECONDS_EDGES).snapshot()
    assert empty.mean == 0.0
    assert empty.quantile(0.5) == 0.0


@pytest.mark.parametrize(
    ("q", "edge"), [(0.0, 2.0), (0.25, 2.0), (0.5, 2.0), (0.51, 4.0), (0.75, 4.0), (1.0, float("inf"))]
)
def test_a_quantile_is_the_edge_of_its_bucket(q: float, edge: float) -> None:
    snapshot = HistogramSnapshot(edges=(1.0, 2.0, 4.0), counts=(0, 2, 1, 1), total=12.0, count=4)
    assert snapshot.quantile(q) == edge
    assert snapshot.mean == 3.0


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan")])
def test_a_quantile_out_of_range_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="q is"):
        Histogram((1.0,)).snapshot().quantile(q)


# ---------------------------------------------------------------- of a queue


def test_a_fresh_queue_has_counted_nothing(start: Any) -> None:
    statistics = start(lambda x: x, num_workers=2).statistics()
    counters = {k: v for k, v in dataclasses.asdict(statistics).items() if isinstance(v, int)}
    assert {k: v for k, v in counters.items() if v} == {"workers": 2}
    assert statistics.ended == 0


def test_every_way_of_ending_is_counted_once_under_its_name(start: Any) -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        if POISON in x:
            raise ValueError
        return x * 2

    model = Held(answer)
    queue = start(model, max_pending=4, overflow="drop_oldest")
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures += [queue.submit(row(v)) for v in (1, POISON, 2)]
    futures[-1].cancel()
    futures.append(queue.submit(row(3), deadline=0.01))
    futures[-1].exception(LONG)
    futures += [queue.submit(row(v)) for v in (4, 5, 6)]  # the first of those that wait is dropped
    before = queue.statistics()
    assert (before.pending, before.running) == (4, 1)
    assert_adds_up(before)
    model.open()
    outcomes_of(futures)
    queue.drain(LONG)
    statistics = queue.statistics()
    ended = {
        name: getattr(statistics, name) for name in ("completed", "failed", "cancelled", "expired", "dropped")
    }
    assert ended == {"completed": 4, "failed": 1, "cancelled": 1, "expired": 1, "dropped": 1}
    assert statistics.accepted == statistics.ended == 8
    assert statistics.retries > 0


def test_refused_requests_are_not_accepted(start: Any) -> None:
    queue = start(lambda x: x)
    with pytest.raises(InvalidInputError):
        queue("text")
    assert queue.statistics().accepted == 0


def test_batches_and_rows_are_counted_as_they_ran(start: Any) -> None:
    model = Held()
    queue = start(model)
    futures = [queue.submit(torch.zeros(3, 1))]
    model.wait_for_call()
    futures += [queue.submit(torch.zeros(n, 1)) for n in (1, 2, 4)]
    wait_for_pending(queue, 3)
    model.open()
    outcomes_of(futures)
    queue.drain(LONG)
    statistics = queue.statistics()
    assert (statistics.batches, statistics.rows) == (2, 10)
    assert statistics.batch_rows.total == 10
    assert statistics.batch_rows.counts[:5] == (0, 0, 1, 1, 0)
    assert statistics.run_seconds.count == 2
    assert statistics.wait_seconds.count == statistics.total_seconds.count == 4
    assert statistics.total_seconds.total >= statistics.wait_seconds.total > 0


def test_statistics_add_up_at_every_moment_of_a_busy_queue(start: Any) -> None:
    queue = start(lambda x: x * 2, num_workers=2, max_batch_size=4, max_pending=8)

    def work(index: int) -> int:
        for i in range(150):
            if index == 0:
                assert_adds_up(queue.statistics())
            else:
                future = queue.submit(row(i), deadline=1e-4 if i % 5 == 0 else None)
                if i % 7 == 0:
                    future.cancel()
        return 0

    assert in_threads(6, work) == [0] * 6
    assert queue.drain(LONG)
    statistics = queue.statistics()
    assert statistics.accepted == statistics.ended == 750


def test_the_histograms_of_a_batch_count_each_request_by_its_own_waiting_time() -> None:
    scheduler = Scheduler(StubPlan(max_batch_size=8), QueueOptions(), workers=1)
    started = time.perf_counter() - 20.0  # a batch that ran for 20 seconds
    waited = [40.0, 0.03, 7.0, 0.0002, 0.8]
    for seconds in waited:
        arrived = started - seconds
        scheduler.submit(Request(scheduler.plan.reader.read(row(1)), MapSink(), None, arrived, arrived))
    batch = scheduler.take(Sleeper(), wait=False)
    assert batch is not None
    scheduler.complete(batch, [None] * len(batch), started)
    statistics = scheduler.statistics()
    ran = statistics.run_seconds.total
    assert ran >= 20.0
    wait, total = Histogram(SECONDS_EDGES), Histogram(SECONDS_EDGES)
    for seconds in waited:
        wait.observe(seconds)
        total.observe(seconds + ran)
    for found, expected in ((statistics.wait_seconds, wait), (statistics.total_seconds, total)):
        assert found.counts == expected.snapshot().counts
        assert found.total == pytest.approx(expected.snapshot().total)
