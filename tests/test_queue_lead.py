"""Callers that do a worker's work on their own threads: the express lane, and ``map`` leading a worker.

Captured plans allow both. Here a stand-in does: it may run on any thread, and records which one it was.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import (
    LONG,
    StubPlan,
    assert_adds_up,
    assert_values,
    eventually,
    in_thread,
    in_threads,
    outcomes_of,
    row,
    values,
    wait_for_pending,
    watched,
)

from steelworks.batching import _express, _scheduler
from steelworks.errors import DeadlineExceededError, InvalidInputError, QueueClosedError

POISON = 666.0


def here() -> str:
    return threading.current_thread().name


class Gate:
    """Blocks ``finish`` of chosen batches until it is opened."""

    def __init__(self, first: float) -> None:
        self._first = first
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, batch: list[float]) -> list[torch.Tensor]:
        if batch[0] == self._first:
            self.reached.set()
            assert self.opened.wait(LONG)
        return [row(2 * v) for v in batch]


def refuse_poison(batch: list[float]) -> list[torch.Tensor]:
    if POISON in batch:
        raise ArithmeticError("poison")
    return [row(2 * v) for v in batch]


# ---------------------------------------------------------------- the express lane


def test_a_lone_caller_runs_its_request_on_its_own_thread(start: Any) -> None:
    plan = StubPlan(express=True)
    queue = start(plan)
    for v in range(5):
        assert values(queue(row(v))) == [2 * v]
    assert plan.launched == [(here(), [float(v)]) for v in range(5)]


def test_express_runs_are_counted_like_all_others(start: Any) -> None:
    queue = start(StubPlan(finish=refuse_poison, express=True))
    for v in range(10):
        queue(row(v))
    with pytest.raises(ArithmeticError):
        queue(row(POISON))
    queue.submit(row(1)).result(LONG)
    statistics = queue.statistics()
    assert_adds_up(statistics)
    assert (statistics.accepted, statistics.completed, statistics.failed) == (12, 11, 1)
    assert statistics.total_seconds.count == 11
    assert queue.statistics() == statistics, "nothing is counted twice"


def test_statistics_add_up_while_an_express_run_is_under_way(start: Any) -> None:
    gate = Gate(1)
    queue = start(StubPlan(finish=gate, express=True))
    calling = in_thread(lambda: queue(row(1)))
    assert gate.reached.wait(LONG)
    assert_adds_up(queue.statistics())
    gate.opened.set()
    calling()
    assert queue.statistics().completed == 1


def test_a_request_the_express_run_is_not_made_for_goes_through_a_worker(start: Any) -> None:
    plan = StubPlan(finish=lambda batch: [torch.zeros(2, 1)], express=True)
    queue = start(plan)
    assert queue(torch.ones(2, 1)).shape == (2, 1)
    assert "-worker-" in plan.launched[0][0]
    assert queue.statistics().accepted == queue.statistics().completed == 1


def test_a_call_with_a_deadline_does_not_run_on_its_caller_s_thread(start: Any) -> None:
    gate = Gate(1)
    queue = start(StubPlan(finish=gate, express=True))
    with pytest.raises(DeadlineExceededError):
        queue(row(1), deadline=0.02)
    gate.opened.set()


def test_no_caller_overtakes_requests_that_wait(start: Any) -> None:
    gate = Gate(0)
    plan = StubPlan(finish=gate, express=True, max_batch_size=1)
    queue = start(plan)
    first = queue.submit(row(0))
    assert gate.reached.wait(LONG)
    waiting = queue.submit(row(1))
    calling = in_thread(lambda: values(queue(row(2))))
    wait_for_pending(queue, 2)
    gate.opened.set()
    assert_values(outcomes_of([first, waiting]), [0, 2])
    assert calling() == [4]
    assert [batch for _, batch in plan.launched] == [[0], [1], [2]]


def test_a_request_refused_on_the_caller_s_thread_was_never_accepted(start: Any) -> None:
    queue = start(StubPlan(express=True))
    for _ in range(3):
        with pytest.raises(InvalidInputError):
            queue("no tensor")
    assert values(queue(row(1))) == [2]
    statistics = queue.statistics()
    assert (statistics.accepted, statistics.completed, statistics.failed) == (1, 1, 0)


def test_a_failed_express_run_can_be_used_again(start: Any) -> None:
    plan = StubPlan(finish=refuse_poison, express=True)
    queue = start(plan, express=1)
    for _ in range(3):
        with pytest.raises(ArithmeticError):
            queue(row(POISON))
    assert values(queue(row(1))) == [2]
    assert {thread for thread, _ in plan.launched} == {here()}


@pytest.mark.parametrize("closed_seconds", [0.0, 1000.0])
def test_where_express_runs_are_too_few_callers_go_through_workers_for_a_while(
    start: Any, monkeypatch: pytest.MonkeyPatch, closed_seconds: float
) -> None:
    monkeypatch.setattr(_express, "_CLOSED_SECONDS", closed_seconds)
    gate = Gate(1)
    plan = StubPlan(finish=gate, express=True)
    queue = start(plan, express=1)
    busy = in_thread(lambda: values(queue(row(1))))
    assert gate.reached.wait(LONG)
    assert values(queue(row(2))) == [4], "through a worker, as the only run is in use"
    gate.opened.set()
    assert busy() == [2]
    assert values(queue(row(3))) == [6]
    own = [thread == here() for thread, batch in plan.launched if batch == [3.0]]
    assert own == [closed_seconds == 0.0]


def test_after_draining_express_runs_are_used_as_before(start: Any) -> None:
    plan = StubPlan(express=True)
    queue = start(plan, express=2)
    for v in range(3):
        assert values(queue(row(v))) == [2 * v]
        assert queue.drain(LONG)
    assert {thread for thread, _ in plan.launched} == {here()}


def test_closing_closes_every_express_run(start: Any) -> None:
    plan = StubPlan(express=True)
    made: list[Any] = []
    make = plan.express

    def express(count: int) -> list[Any]:
        made.extend(make(count))
        return made

    plan.express = express  # type: ignore[method-assign]
    queue = start(plan, express=3)
    queue(row(1))
    assert [run.closed for run in made] == [False] * 3
    assert queue.close()
    assert [run.closed for run in made] == [True] * 3


def test_an_express_run_is_used_by_one_caller_at_a_time(start: Any) -> None:
    inside = threading.Lock()

    def finish(batch: list[float]) -> list[torch.Tensor]:
        if "-worker-" not in here():
            assert inside.acquire(blocking=False), "two callers in one run"
            inside.release()
        return [row(2 * v) for v in batch]

    queue = start(StubPlan(finish=finish, express=True), express=1, num_workers=2)
    outcomes = in_threads(8, lambda index: [values(queue(row(1000 * index + i)))[0] for i in range(200)])
    assert outcomes == [[2.0 * (1000 * n + i) for i in range(200)] for n in range(8)]
    assert queue.statistics().completed == 1600
    assert_adds_up(queue.statistics())


def test_closing_and_draining_wait_for_an_express_run(start: Any) -> None:
    gate = Gate(1)
    queue = start(StubPlan(finish=gate, express=True))
    calling = in_thread(lambda: values(queue(row(1))))
    assert gate.reached.wait(LONG)
    assert not queue.drain(0.02)
    closed = threading.Event()

    def close() -> bool:
        ended = queue.close()
        closed.set()
        return ended

    closing = in_thread(close)
    assert not closed.wait(0.05)
    gate.opened.set()
    assert closing()
    assert calling() == [2]
    with pytest.raises(QueueClosedError):
        queue(row(1))


def test_closing_gives_up_a_hung_express_run_at_its_timeout(start: Any) -> None:
    gate = Gate(1)
    queue = start(StubPlan(finish=gate, express=True), leaves_threads=True)
    calling = in_thread(lambda: values(queue(row(1))))
    assert gate.reached.wait(LONG)
    assert not queue.close(timeout=0.05)
    gate.opened.set()
    assert calling() == [2]


def test_calls_racing_with_close_are_refused_or_answered_and_close_tells_the_truth(start: Any) -> None:
    for _ in range(20):
        queue = start(StubPlan(express=True), express=2)

        def work(index: int, queue: Any = queue) -> int | bool:
            if index == 0:
                return bool(queue.close())
            for i in range(2000):
                try:
                    assert values(queue(row(i))) == [2.0 * i]
                except QueueClosedError:
                    return i
            return 2000

        closed, *counts = in_threads(4, work)
        assert closed is True
        assert queue.statistics().completed == sum(counts)


# ---------------------------------------------------------------- map leads a worker


def leading(**options: Any) -> StubPlan:
    return StubPlan(any_thread=True, max_batch_size=2, **options)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 100])
def test_a_leading_map_gives_every_result(start: Any, count: int, depth: int, ordered: bool) -> None:
    plan = leading()
    queue = start(plan, depth=depth)
    got = [values(r)[0] for r in queue.map((row(v) for v in range(count)), ordered=ordered)]
    assert (got if ordered else sorted(got)) == [2.0 * v for v in range(count)]
    assert queue.drain(LONG)
    assert queue.statistics().completed == count


def test_a_leading_map_reads_no_more_than_its_window(start: Any) -> None:
    read: list[int] = []

    def source() -> Iterator[torch.Tensor]:
        for v in range(100):
            read.append(v)
            yield row(v)

    queue = start(leading(), depth=3)
    results = queue.map(source(), window=3)
    next(results)
    assert len(read) == 2, "in chunks of a batch"
    results.close()


def test_a_map_does_a_worker_s_work_on_its_own_thread(start: Any) -> None:
    plan = leading()
    queue = start(plan, depth=2)
    list(queue.map([row(v) for v in range(40)]))
    assert any(thread == here() for thread, _ in plan.launched)


def test_leading_maps_of_many_threads_and_other_callers_get_their_results(start: Any) -> None:
    queue = start(leading(), depth=2, num_workers=2)

    def work(index: int) -> list[float]:
        if index % 2:
            return [values(queue(row(1000 * index + i)))[0] for i in range(100)]
        return [values(r)[0] for r in queue.map(row(1000 * index + i) for i in range(100))]

    assert in_threads(8, work) == [[2.0 * (1000 * n + i) for i in range(100)] for n in range(8)]
    assert queue.drain(LONG)
    assert_adds_up(queue.statistics())


def test_a_failed_request_of_a_leading_map_fails_alone(start: Any) -> None:
    queue = start(leading(finish=refuse_poison), depth=2)
    ends = list(queue.map([row(v) for v in (1, 2, POISON, 4, 5)], return_exceptions=True))
    assert isinstance(ends.pop(2), ArithmeticError)
    assert_values(ends, [2, 4, 8, 10])


def test_another_caller_s_request_does_not_wait_for_a_slow_consumer_of_a_map(start: Any) -> None:
    # The leader takes what waits, others' requests too; then its consumer takes its time.
    gate = Gate(0)
    queue = start(leading(finish=gate), depth=2)
    results = queue.map([row(v) for v in range(4)], window=4)
    first = in_thread(lambda: values(next(results)))
    assert gate.reached.wait(LONG)
    others = [queue.submit(row(v)) for v in (100, 101, 102)]
    gate.opened.set()
    assert first() == [0]
    assert_values(outcomes_of(others), [200, 202, 204])
    assert_values(list(results), [2, 4, 6])


@pytest.mark.parametrize("late", [False, True])
def test_a_request_that_the_leader_launched_is_ended_though_the_leader_stays_away(
    start: Any, late: bool
) -> None:
    launched = threading.Event()
    sent: list[Any] = []

    def launch(batch: list[float]) -> None:
        if batch == [0.0, 1.0]:
            # While the leader launches its first batch somebody else sends a request: it takes that next.
            sent.append(in_thread(lambda: queue.submit(row(100)))())
            launched.set()

    queue = start(leading(launch=launch), depth=2)
    results = queue.map([row(v) for v in range(2 + 2 * late)], window=2 + 2 * late)
    assert values(next(results)) == [0]  # and the consumer never asks for more
    assert launched.is_set()
    assert_values(outcomes_of(sent), [200])
    results.close()


def test_drain_ends_what_a_leader_left_in_flight(start: Any) -> None:
    queue = start(leading(), depth=2)
    results = queue.map([row(v) for v in range(8)], window=8)
    next(results)
    assert queue.statistics().running > 0
    assert queue.drain(LONG)
    assert queue.statistics().completed == queue.statistics().accepted
    assert len(list(results)) == 7


@pytest.mark.parametrize("way", ["drain", "close"])
def test_draining_and_closing_wait_for_a_leader_at_work_and_end_what_it_gives_back(
    start: Any, way: str
) -> None:
    gate = Gate(0)
    queue = start(leading(finish=gate), depth=2)
    results = queue.map([row(v) for v in range(4)], window=4)
    first = in_thread(lambda: values(next(results)))
    assert gate.reached.wait(LONG)  # the leader has a second batch in flight
    ending = in_thread(lambda: getattr(queue, way)(timeout=LONG / 4))
    eventually(lambda: queue.closed or queue._scheduler._draining > 0, "it has begun")
    gate.opened.set()
    assert first() == [0]
    assert ending()  # though the consumer asks for nothing more
    assert queue.statistics().completed == 4
    results.close()


def test_a_map_left_early_has_its_batches_ended_though_nobody_asks(start: Any) -> None:
    queue = start(leading(), depth=3)
    results = queue.map((row(v) for v in range(100)), window=20)
    next(results)
    assert queue.statistics().running > 0
    results.close()
    eventually(lambda: queue.statistics().running == 0, "the batches in flight end")
    assert_adds_up(queue.statistics())


def test_closing_ends_what_a_leader_left_in_flight(start: Any) -> None:
    queue = start(leading(), depth=3)
    results = queue.map([row(v) for v in range(8)], window=8)
    next(results)
    assert queue.statistics().running > 0
    assert queue.close(timeout=LONG)
    got = 1
    with pytest.raises(QueueClosedError):
        for _ in results:
            got += 1
    assert got == queue.statistics().completed == queue.statistics().accepted


def test_a_map_left_early_leaves_nothing_in_flight(start: Any) -> None:
    queue = start(leading(), depth=3)
    results = queue.map((row(v) for v in range(100)), window=20)
    next(results)
    results.close()
    assert queue.drain(LONG)
    assert values(queue(row(1))) == [2]


@pytest.mark.parametrize("where", ["launch", "finish"])
@pytest.mark.parametrize("death", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_of_the_leader_reaches_it_and_the_queue_goes_on(
    start: Any, where: str, death: Any
) -> None:
    deaths = iter([death()])

    def maybe_die(batch: list[float]) -> None:
        if 2.0 in batch and here() == "MainThread":
            for error in deaths:
                raise error

    def finish(batch: list[float]) -> list[torch.Tensor]:
        if where == "finish":
            maybe_die(batch)
        return [row(2 * v) for v in batch]

    plan = leading(launch=maybe_die if where == "launch" else lambda batch: None, finish=finish)
    queue = start(plan, depth=2)
    with pytest.raises(death):
        for _ in range(50):  # until the leader has that batch in hand
            list(queue.map([row(v) for v in range(6)], window=6))
    assert queue.drain(LONG)
    assert values(queue(row(7))) == [14]
    assert_values(list(queue.map([row(v) for v in range(6)])), [2 * v for v in range(6)])


def test_an_interrupt_of_a_leader_loses_no_request_that_it_holds_back(start: Any) -> None:
    sent: list[Any] = []
    interrupts = iter([KeyboardInterrupt()])

    def launch(batch: list[float]) -> None:
        if batch == [0] and not sent and here() == "MainThread":
            sent.append(queue.submit(row(1)))
            sent[0].request.solo = True  # it is to run alone, and so waits for the batch in flight

    def finish(batch: list[float]) -> list[torch.Tensor]:
        if sent and batch == [0] and here() == "MainThread":
            for interrupt in interrupts:
                raise interrupt
        return [row(2 * v) for v in batch]

    queue = start(leading(launch=launch, finish=finish), depth=2)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(50):  # until it is the leader that has that batch in hand
            list(queue.map([row(0)]))
    assert values(sent[0].result(LONG)) == [2]
    assert queue.drain(LONG)


@pytest.mark.parametrize("given", [0, 1, 2, 5])
def test_an_interrupt_in_the_source_of_a_leading_map_costs_the_queue_no_worker(
    start: Any, given: int
) -> None:
    def source() -> Iterator[torch.Tensor]:
        yield from (row(v) for v in range(given))
        raise KeyboardInterrupt

    queue = start(leading(), depth=2)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            list(queue.map(source()))
    assert queue.drain(LONG)
    assert values(queue(row(7))) == [14]


def test_a_map_that_leads_takes_turns_with_blocking_callers(start: Any) -> None:
    queue = start(leading(), depth=2)
    for i, result in enumerate(itertools.islice(queue.map(row(v) for v in itertools.count()), 100)):
        assert values(result) == [2.0 * i]
        assert values(queue(row(5))) == [10]


def test_lending_a_worker_that_waits_for_a_batch_to_fill_does_not_deadlock(start: Any) -> None:
    # The worker waits for more (max_wait); what it waits for is cancelled; a leader borrows it; then
    # its wait ends while the leader is still at work.
    gate = Gate(50)
    queue = start(leading(finish=gate), depth=1, max_wait=0.2)
    scheduler = queue._scheduler
    with watched() as steps:
        taking = steps.stop("after", "Take", lambda seen: seen["batch"] == [])
        scheduler._crowd = 2.0  # as if two requests had been in flight lately
        future = queue.submit(row(1))
        taking.wait()
        assert future.cancel()
        mapping = in_thread(lambda: list(queue.map([row(50)])))
        assert gate.reached.wait(LONG)
        taking.release()
        # Its wait of 0.2 seconds is over in the meantime.
        assert not threading.Event().wait(0.4)
    gate.opened.set()
    assert_values(mapping(), [100])
    assert values(queue(row(3))) == [6]


@pytest.mark.parametrize("lent", [False, True])
def test_an_interrupt_while_waiting_to_be_lent_a_worker_costs_the_queue_no_worker(
    start: Any, monkeypatch: pytest.MonkeyPatch, lent: bool
) -> None:
    class Interrupted:
        def __init__(self) -> None:
            self._lock = threading.Lock()

        def acquire(self, timeout: float = -1) -> bool:
            if timeout >= 0:
                if lent:
                    busy.opened.set()
                    assert self._lock.acquire(timeout=LONG), "the worker was never lent"
                raise KeyboardInterrupt
            return self._lock.acquire()

        def release(self) -> None:
            self._lock.release()

    busy = Gate(0)
    queue = start(leading(finish=busy), depth=1)
    first = queue.submit(row(0))
    assert busy.reached.wait(LONG)

    class Borrower(_scheduler._Borrower):
        __slots__ = ()

        def __init__(self) -> None:
            self.gate: Any = Interrupted()
            self.gate.acquire()
            self.sleeper = None

    monkeypatch.setattr(_scheduler, "_Borrower", Borrower)
    with pytest.raises(KeyboardInterrupt):
        list(queue.map([row(1)]))
    monkeypatch.undo()
    busy.opened.set()
    assert values(first.result(LONG)) == [0]
    assert values(queue.submit(row(3)).result(LONG)) == [6]
    assert not queue._scheduler._borrowers
