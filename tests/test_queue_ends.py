"""I2: every accepted request ends exactly once, whatever the model, the callers and the process do."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import (
    LONG,
    Held,
    StubPlan,
    assert_adds_up,
    assert_values,
    doubled,
    eventually,
    in_thread,
    in_threads,
    outcomes_of,
    row,
    values,
    wait_for_pending,
    watched,
    workers_of,
)

import steelworks as sw
from steelworks.devices import CPUDevice
from steelworks.errors import (
    DeadlineExceededError,
    ForkedProcessError,
    ModelOutputError,
    QueueClosedError,
    WorkerDiedError,
    WorkerHungError,
)

POISON = 666.0


def refuse_poison(x: torch.Tensor) -> torch.Tensor:
    for value in values(x):
        if value == POISON:
            raise ArithmeticError(f"no, not {value}")
    return x * 2


def batch_of(queue: sw.BatchQueue, model: Held, requests: list[float]) -> list[Any]:
    """Have ``requests`` run as one batch: they wait while the model is held; then it is opened."""
    first = queue.submit(row(0))
    model.wait_for_call()
    futures = [queue.submit(row(v)) for v in requests]
    model.open()
    first.result(LONG)
    return futures


# ---------------------------------------------------------------- errors of the model


def test_one_bad_request_among_8_fails_alone_and_its_neighbours_succeed(start: Any) -> None:
    model = Held(refuse_poison)
    queue = start(model)
    ends = outcomes_of(batch_of(queue, model, [1, 2, 3, 4, 5, POISON, 7, 8]))
    assert isinstance(ends[5], ArithmeticError)
    assert_values(ends[:5] + ends[6:], [2, 4, 6, 8, 10, 14, 16])
    statistics = queue.statistics()
    assert (statistics.completed, statistics.failed) == (8, 1)


def test_a_failed_request_gets_the_traceback_of_its_own_run(start: Any) -> None:
    model = Held(refuse_poison)
    queue = start(model)
    error = outcomes_of(batch_of(queue, model, [1, POISON, 3]))[1]
    text = "".join(traceback.format_exception(error))
    assert "in refuse_poison" in text
    assert model.batches[-2:] != [[1.0, POISON, 3.0]]
    assert [POISON] in model.batches, "it ran alone"


def test_a_failed_call_raises_the_model_s_own_exception_in_the_caller(start: Any) -> None:
    queue = start(refuse_poison)
    with pytest.raises(ArithmeticError, match="no, not 666") as caught:
        queue(row(POISON))
    assert any(entry.name == "refuse_poison" for entry in caught.traceback)


@pytest.mark.parametrize("bad", [{0}, {7}, {0, 7}, {2, 3}, {0, 2, 4, 6}, set(range(8))], ids=str)
def test_wherever_the_bad_requests_stand_exactly_they_fail(start: Any, bad: set[int]) -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        if any(v < 0 for v in values(x)):
            raise ValueError(str(min(values(x))))
        return x * 2

    model = Held(answer)
    queue = start(model)
    requests = [float(-i - 1 if i in bad else i + 1) for i in range(8)]
    ends = outcomes_of(batch_of(queue, model, requests))
    for request, end in zip(requests, ends, strict=True):
        if request < 0:
            assert isinstance(end, ValueError)
            assert str(end) == str(request), "its own exception, not a neighbour's"
        else:
            assert values(end) == [2 * request]
    # At worst every half down to single requests is run: 8 + 4 + 2 + 1 and the first call.
    assert len(model.batches) <= 1 + 15


def test_one_bad_request_among_64_costs_few_runs(start: Any) -> None:
    model = Held(refuse_poison)
    queue = start(model, max_batch_size=64)
    outcomes_of(batch_of(queue, model, [POISON if v == 40 else float(v) for v in range(64)]))
    assert len(model.batches) <= 2 + 2 * 6
    assert queue.statistics().retries == len(model.batches) - 2
    assert queue.statistics().retries <= 2 * 6


def test_an_error_that_only_large_batches_meet_fails_nobody(start: Any) -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 2:
            raise MemoryError("out of memory")
        return x * 2

    model = Held(answer)
    queue = start(model)
    assert_values(outcomes_of(batch_of(queue, model, [1, 2, 3, 4, 5])), [2, 4, 6, 8, 10])


def test_nobody_gets_the_error_of_a_neighbour_that_expired_while_it_ran(start: Any) -> None:
    model = Held(refuse_poison)
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    innocent, bad = queue.submit(row(1)), queue.submit(row(POISON), deadline=LONG)
    model.step()
    model.wait_for_call()
    queue._scheduler.expire(time.perf_counter() + 2 * LONG)
    assert isinstance(bad.exception(0), DeadlineExceededError)
    model.open()
    assert_values(outcomes_of([first, innocent]), [0, 2])
    assert model.batches[2:] == [[1]], "nor is it run again"


def test_a_single_failed_request_is_not_run_twice(start: Any) -> None:
    model = Held(refuse_poison, held=0)
    queue = start(model)
    with pytest.raises(ArithmeticError):
        queue(row(POISON))
    assert len(model.batches) == 1


@pytest.mark.parametrize("rows", [lambda x: x[:-1], lambda x: torch.cat([x, x[:1]]), lambda x: x[:0]])
def test_a_model_that_returns_too_few_or_too_many_results_fails_with_a_clear_error(
    start: Any, rows: Any
) -> None:
    model = Held(rows)
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    futures = [queue.submit(row(v)) for v in range(1, 5)]
    model.open()
    for end in outcomes_of([first, *futures]):
        assert isinstance(end, ModelOutputError)
        assert "for a batch of 1 rows" in str(end)


def test_a_model_that_returns_too_few_results_for_large_batches_only_fails_nobody(start: Any) -> None:
    model = Held(lambda x: x[:3] * 2)
    queue = start(model)
    assert_values(outcomes_of(batch_of(queue, model, [1, 2, 3, 4, 5, 6])), [2, 4, 6, 8, 10, 12])


@pytest.mark.parametrize(
    "error", [StopIteration("x"), KeyError("x"), TimeoutError(), concurrent.futures.CancelledError()]
)
def test_any_exception_of_the_model_reaches_the_future_as_it_is(start: Any, error: Exception) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        raise error

    assert start(model).submit(row(1)).exception(LONG) is error


def test_a_plan_that_gives_the_wrong_number_of_results_fails_its_requests(start: Any) -> None:
    queue = start(StubPlan(finish=lambda batch: []))
    assert isinstance(queue.submit(row(1)).exception(LONG), ModelOutputError)


def test_a_kept_exception_keeps_no_neighbour_alive(start: Any) -> None:
    model = Held(refuse_poison, held=1)
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    neighbour = row(1)
    seen = weakref.ref(neighbour)
    futures = [queue.submit(neighbour), queue.submit(row(POISON)), queue.submit(row(2))]
    model.open()
    first.result(LONG)
    error = futures[1].exception(LONG)
    futures[0].result(LONG)
    queue.drain(LONG)
    del neighbour, futures
    gc.collect()
    assert isinstance(error, ArithmeticError)
    assert seen() is None


def test_an_idle_worker_keeps_no_result_alive(start: Any) -> None:
    queue = start(doubled)
    result = weakref.ref(queue(row(1)))
    eventually(lambda: result() is None, "the result is freed, though no other request comes")


def test_a_refused_request_is_freed_at_once(start: Any) -> None:
    model = Held()
    queue = start(model, max_pending=1, overflow="reject")
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures.append(queue.submit(row(1)))
    gc.collect()
    gc.disable()
    try:
        tensor = row(2)
        refused = weakref.ref(tensor)
        with contextlib.suppress(sw.QueueFullError):
            queue.submit(tensor)
        del tensor
        assert refused() is None
    finally:
        gc.enable()
    model.open()
    outcomes_of(futures)


def test_a_done_future_and_its_result_go_without_the_garbage_collector(start: Any) -> None:
    queue = start(doubled)
    gc.collect()
    gc.disable()
    try:
        future = queue.submit(row(1))
        result = weakref.ref(future.result(LONG))
        queue.drain(LONG)
        gone = weakref.ref(future)
        del future
        assert gone() is None
        # The worker's frame may hold its last batch until the next one.
        queue(row(2))
        eventually(lambda: result() is None, "the result is freed")
    finally:
        gc.enable()


# ---------------------------------------------------------------- death of a worker


def kill_once() -> Any:
    died = threading.Event()

    def model(x: torch.Tensor) -> torch.Tensor:
        if POISON in values(x) and not died.is_set():
            died.set()
            raise SystemExit("once")
        return x * 2

    return model


def kill_always(x: torch.Tensor) -> torch.Tensor:
    if POISON in values(x):
        raise SystemExit("always")
    return x * 2


def test_after_a_worker_died_once_all_its_requests_get_their_results(start: Any) -> None:
    model = Held(kill_once())
    queue = start(model)
    ends = outcomes_of(batch_of(queue, model, [1, POISON, 3]))
    assert_values(ends, [2, 2 * POISON, 6])
    assert queue.statistics().workers_replaced == 1


def test_a_request_that_always_kills_its_worker_fails_alone_after_one_retry(start: Any) -> None:
    model = Held(kill_always)
    queue = start(model)
    ends = outcomes_of(batch_of(queue, model, [1, POISON, 3, 4]))
    assert isinstance(ends[1], WorkerDiedError)
    assert isinstance(ends[1].__cause__, SystemExit)
    assert_values([ends[0], *ends[2:]], [2, 6, 8])
    assert Counter(POISON in batch for batch in model.batches)[True] == 2, "once with the others, once alone"


def test_after_a_death_each_request_of_the_batch_is_run_alone(start: Any) -> None:
    model = Held(kill_always)
    queue = start(model)
    outcomes_of(batch_of(queue, model, [1, POISON, 3, 4]))
    assert model.batches[:2] == [[0], [1, POISON, 3, 4]]
    assert sorted(model.batches[2:]) == [[1], [3], [4], [POISON]]


@pytest.mark.parametrize("death", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_callers_of_a_model_that_always_kills_its_worker_do_not_hang_and_later_callers_work(
    start: Any, death: BaseException
) -> None:
    healthy = threading.Event()

    def model(x: torch.Tensor) -> torch.Tensor:
        if not healthy.is_set():
            raise death
        return x * 2

    queue = start(model, num_workers=2)
    for outcome in in_threads(8, lambda index: queue(row(index))):
        assert isinstance(outcome, WorkerDiedError)
    healthy.set()
    assert_values(in_threads(8, lambda index: queue(row(index))), [2 * v for v in range(8)])


def test_closing_waits_for_the_requests_of_a_worker_that_is_dying(start: Any) -> None:
    model = Held(kill_once())
    queue = start(model)
    done_at_close: list[bool] = []
    closed = threading.Event()
    with watched() as steps:
        dying = steps.stop("before", "Retry")
        future = queue.submit(row(POISON))
        model.open()
        dying.wait()

        def close() -> None:
            queue.close()
            done_at_close.append(future.done())
            closed.set()

        closing = in_thread(close)
        # The dead worker was the only one: close() must not take that for the end.
        assert not closed.wait(0.1)
        dying.release()
        closing()
    assert done_at_close == [True]
    assert values(future.result(0)) == [2 * POISON]


def test_a_request_of_a_dying_worker_may_be_withdrawn_before_its_retry(start: Any) -> None:
    model = Held(kill_once())
    queue = start(model)
    with watched() as steps:
        dying = steps.stop("before", "Retry")
        future = queue.submit(row(POISON), deadline=0.01)
        model.open()
        dying.wait()
        assert isinstance(future.exception(LONG), DeadlineExceededError)
        dying.release()
    assert values(queue(row(1))) == [2]
    assert len(model.batches) == 2, "it is not run again"


def test_a_worker_that_dies_while_an_earlier_batch_fails_loses_no_request(start: Any) -> None:
    let_go = threading.Event()
    deaths = iter([SystemExit("while finishing")])

    def launch(batch: list[float]) -> None:
        if batch == [0]:
            assert let_go.wait(LONG)
        if POISON in batch:
            raise ValueError("launch")

    def finish(batch: list[float]) -> list[Any]:
        if 1.0 in batch:
            for death in deaths:
                raise death
        return [row(2 * v) for v in batch]

    queue = start(StubPlan(launch, finish, max_batch_size=2), depth=2)
    futures = [queue.submit(row(v)) for v in (0, 1, 2, POISON, 4)]
    let_go.set()
    ends = outcomes_of(futures)
    assert isinstance(ends.pop(3), ValueError)
    assert_values(ends, [0, 2, 4, 8])


def test_batches_are_finished_in_the_order_of_their_launches_though_one_fails(start: Any) -> None:
    launched: list[list[float]] = []
    finished: list[list[float]] = []
    let_go = threading.Event()

    def launch(batch: list[float]) -> None:
        launched.append(batch)
        assert let_go.wait(LONG)

    def finish(batch: list[float]) -> list[Any]:
        finished.append(batch)
        if POISON in batch:
            raise ValueError("finish")
        return [row(2 * v) for v in batch]

    queue = start(StubPlan(launch, finish, max_batch_size=2), depth=3)
    futures = [queue.submit(row(0))]
    eventually(lambda: len(launched) == 1, "the worker is busy")
    futures += [queue.submit(row(v)) for v in (1, POISON, 2, 3, 4, 5)]
    let_go.set()
    ends = outcomes_of(futures)
    assert isinstance(ends.pop(2), ValueError)
    assert_values(ends, [0, 2, 4, 6, 8, 10])
    assert finished == launched


def test_two_failing_batches_in_flight_both_end(start: Any) -> None:
    let_go = threading.Event()

    def launch(batch: list[float]) -> None:
        assert let_go.wait(LONG)

    def finish(batch: list[float]) -> list[Any]:
        if POISON in batch:
            raise ValueError("finish")
        return [row(2 * v) for v in batch]

    queue = start(StubPlan(launch, finish, max_batch_size=2), depth=2)
    futures = [queue.submit(row(v)) for v in (POISON, 1, POISON, 2, 3, POISON)]
    let_go.set()
    ends = outcomes_of(futures)
    assert [type(end) for end in ends[::5]] == [ValueError, ValueError]
    assert isinstance(ends[2], ValueError)
    assert_values([ends[1], ends[3], ends[4]], [2, 4, 6])


class FrailDevice(CPUDevice):
    """A CPU whose workers can be set up ``times`` times."""

    def __init__(self, times: int) -> None:
        super().__init__(cores=1)
        self._times = times

    def worker_scope(self, index: int, count: int) -> Any:
        self._times -= 1
        if self._times < 0:
            raise OSError("no such core")
        return super().worker_scope(index, count)


def test_with_two_batches_in_flight_a_death_is_blamed_on_nobody_else(start: Any) -> None:
    model = Held(kill_always)
    queue = start(model, depth=2, max_batch_size=1)
    futures = [queue.submit(row(v)) for v in (0, 1, POISON, 3, 4)]
    model.open()
    ends = outcomes_of(futures)
    assert isinstance(ends.pop(2), WorkerDiedError)
    assert_values(ends, [0, 2, 6, 8])


def test_a_request_taken_by_a_worker_that_dies_over_an_earlier_batch_is_neither_lost_nor_blamed(
    start: Any,
) -> None:
    # The one worker dies over 1, which is to run alone from now on. The other has 2 in flight when it takes
    # 1, so it ends 2 first, and dies over that.
    retried = threading.Event()
    deadly = {1.0, 2.0}

    def launch(batch: list[float]) -> None:
        if batch == [2]:
            assert retried.wait(LONG)

    def finish(batch: list[float]) -> list[Any]:
        if batch[0] in deadly:
            deadly.discard(batch[0])
            raise SystemExit
        return [row(2 * v) for v in batch]

    plan = StubPlan(launch, finish, max_batch_size=1)
    queue = start(plan, depth=2, num_workers=2)
    second = queue.submit(row(2))
    eventually(lambda: len(plan.launched) == 1, "the other is busy")
    with watched() as steps:
        dying = steps.stop("after", "Retry")
        first = queue.submit(row(1))
        dying.wait()
        again = steps.stop("after", "Retry")
        retried.set()
        again.wait()
        again.release()
        dying.release()
        assert_values(outcomes_of([first, second]), [2, 4])
    assert queue.statistics().workers_replaced == 2


def test_when_no_worker_can_be_set_up_any_more_requests_fail_with_the_cause_and_new_ones_are_refused(
    start: Any,
) -> None:
    queue = start(kill_always, device=FrailDevice(1))
    end = queue.submit(row(POISON)).exception(LONG)
    assert isinstance(end, QueueClosedError)
    assert isinstance(end.__cause__, OSError)
    with pytest.raises(QueueClosedError, match="stopped working.*no such core"):
        queue(row(1))
    assert queue.drain(LONG)


def test_where_a_dead_worker_can_t_be_replaced_another_one_runs_its_requests(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Held(kill_once())
    queue = start(model, num_workers=2)
    future = queue.submit(row(POISON))
    model.wait_for_call()
    eventually(lambda: len(queue._scheduler._idle) == 1, "the other worker sleeps")
    real = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if "-worker-" in thread.name:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    model.open()
    assert values(future.result(LONG)) == [2 * POISON]


def test_when_no_worker_is_left_requests_that_wait_for_room_fail_too(start: Any) -> None:
    model = Held(kill_always)
    queue = start(model, device=FrailDevice(1), max_pending=1)
    futures = [queue.submit(row(POISON))]
    model.wait_for_call()
    futures.append(queue.submit(row(1)))
    parked = in_thread(lambda: queue.submit(row(2)))
    wait_for_pending(queue, 2)
    model.open()
    for end in outcomes_of([*futures, parked()]):
        assert isinstance(end, QueueClosedError)


def test_when_a_queue_breaks_down_its_idle_workers_leave(start: Any) -> None:
    queue = start(doubled, num_workers=2)
    eventually(lambda: len(queue._scheduler._idle) == 2, "both sleep")
    queue._scheduler.break_down(OSError("gone"))
    eventually(lambda: queue._crew.alive() == 0, "both leave")


def test_when_no_thread_can_be_started_any_more_requests_fail_and_nobody_hangs(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = start(kill_always)
    real = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if "-worker-" in thread.name:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert isinstance(queue.submit(row(POISON)).exception(LONG), QueueClosedError)
    with pytest.raises(QueueClosedError, match="can't start new thread"):
        queue(row(1))


# ---------------------------------------------------------------- a model that hangs


def test_a_blocking_call_ends_at_its_deadline_while_the_model_hangs(start: Any) -> None:
    model = Held()
    queue = start(model)
    with pytest.raises(DeadlineExceededError, match=r"deadline of 0\.05 s passed while it was running"):
        queue(row(1), deadline=0.05)
    assert queue.statistics().expired == 1


def test_a_future_ends_at_its_deadline_while_the_model_hangs(start: Any) -> None:
    model = Held()
    queue = start(model)
    end = queue.submit(row(1), deadline=0.05).exception(LONG)
    assert isinstance(end, DeadlineExceededError)
    assert isinstance(end, TimeoutError)


def test_requests_that_wait_behind_a_hung_model_end_at_their_deadline_and_are_not_run(start: Any) -> None:
    model = Held()
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    waiting = queue.submit(row(1), deadline=0.02)
    with pytest.raises(DeadlineExceededError, match="waited for a worker"):
        queue(row(2), deadline=0.02)
    assert isinstance(waiting.exception(LONG), DeadlineExceededError)
    kept = queue.submit(row(3))
    model.open()
    assert_values(outcomes_of([first, kept]), [0, 6])
    assert model.batches == [[0], [3]]


def test_a_neighbour_of_an_expired_request_gets_its_result(start: Any) -> None:
    model = Held()
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    expiring, neighbour = queue.submit(row(1), deadline=LONG), queue.submit(row(2))
    model.step()
    model.wait_for_call()
    # Both run now; the clock is turned instead of waited for.
    queue._scheduler.expire(time.perf_counter() + 2 * LONG)
    assert isinstance(expiring.exception(0), DeadlineExceededError)
    model.open()
    assert_values(outcomes_of([first, neighbour]), [0, 4])


def test_a_worker_skips_requests_whose_deadline_passed_even_before_the_clock_rings(start: Any) -> None:
    model = Held()
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    caller = in_thread(lambda: queue(row(1), deadline=0.001))
    other = queue.submit(row(2))
    with pytest.raises(DeadlineExceededError):
        caller()
    model.open()
    assert_values(outcomes_of([first, other]), [0, 4])
    assert model.batches == [[0], [2]]


def test_a_batch_of_expired_requests_only_is_not_run_and_the_worker_goes_on(start: Any) -> None:
    model = Held()
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    with watched() as steps:
        rings = steps.stop("before", "End")  # the clock is held, so the worker is the first to see
        late = queue.submit(row(1), deadline=1e-9)
        rings.wait()
        model.step()
        assert isinstance(late.exception(LONG), DeadlineExceededError)
        rings.release()
    model.open()
    first.result(LONG)
    assert values(queue(row(2))) == [4]
    assert model.batches == [[0], [2]]


@pytest.mark.parametrize("deadline", [0, -1, float("nan")])
def test_a_deadline_that_is_none_is_refused(start: Any, deadline: float) -> None:
    queue = start(doubled)
    for way in (queue, queue.submit):
        with pytest.raises(ValueError, match="deadline is"):
            way(row(1), deadline=deadline)
    assert queue.statistics().accepted == 0


@pytest.mark.parametrize("deadline", [float("inf"), 1e300, 1e12])
def test_a_deadline_beyond_what_clocks_can_wait_for_does_no_harm(start: Any, deadline: float) -> None:
    model = Held()
    queue = start(model)
    far = queue.submit(row(1), deadline=deadline)
    blocked = in_thread(lambda: queue(row(2), deadline=deadline))
    model.wait_for_call()
    assert isinstance(queue.submit(row(3), deadline=0.01).exception(LONG), DeadlineExceededError)
    model.open()
    assert values(far.result(LONG)) == [2]
    assert values(blocked()) == [4]


def test_a_deadline_that_passes_after_the_end_changes_nothing(start: Any) -> None:
    queue = start(doubled)
    future = queue.submit(row(1), deadline=LONG)
    assert values(future.result(LONG)) == [2]
    queue._scheduler.expire(time.perf_counter() + 2 * LONG)
    assert (queue.statistics().completed, queue.statistics().expired) == (1, 0)


def test_the_oldest_of_the_batches_in_flight_decides_whether_a_worker_hangs(start: Any) -> None:
    let_go = threading.Event()

    def finish(batch: list[float]) -> list[Any]:
        assert let_go.wait(LONG)
        return [row(2 * v) for v in batch]

    plan = StubPlan(finish=finish, max_batch_size=1)
    queue = start(plan, depth=2, batch_timeout=1000.0, leaves_threads=True)
    with watched() as steps:
        taking = steps.stop("before", "Take")
        futures = [queue.submit(row(v)) for v in (1, 2)]
        taking.wait()
        taking.release()
    eventually(lambda: len(plan.launched) == 2, "both are in flight")
    (worker,) = queue._crew._workers
    worker.in_flight[0].started -= 2000.0
    queue._crew.check_hung(time.perf_counter())
    assert all(isinstance(end, WorkerHungError) for end in outcomes_of(futures))
    let_go.set()


def with_one_held_back(start: Any, **options: Any) -> tuple[sw.BatchQueue, list[Any], threading.Event]:
    """A queue whose worker hangs over 0, and has taken 1, which is to run alone and so waits for that.

    Returns:
        The queue, the futures of both, and an event that ends the hanging.
    """
    let_go = threading.Event()
    sent: list[Any] = []

    def launch(batch: list[float]) -> None:
        if batch == [0]:
            sent.append(queue.submit(row(1)))
            sent[0].request.solo = True

    def finish(batch: list[float]) -> list[Any]:
        if batch == [0]:
            assert let_go.wait(2 * LONG), "longer than any test waits"
        return [row(2 * v) for v in batch]

    queue = start(StubPlan(launch, finish), depth=2, leaves_threads=True, **options)
    first = queue.submit(row(0))
    (worker,) = queue._crew._workers
    eventually(lambda: bool(worker.held), "1 is held back")
    return queue, [first, *sent], let_go


def test_what_a_hung_worker_holds_back_is_run_by_the_new_one(start: Any) -> None:
    queue, (first, second), let_go = with_one_held_back(start, batch_timeout=1000.0)
    queue._crew.check_hung(time.perf_counter() + 2000.0)
    assert isinstance(first.exception(LONG), WorkerHungError)
    assert values(second.result(LONG)) == [2]
    let_go.set()


def test_a_hung_worker_that_dies_later_is_not_replaced_once_more(start: Any) -> None:
    def die(x: torch.Tensor) -> torch.Tensor:
        raise SystemExit

    model = Held(die)
    queue = start(model, batch_timeout=1000.0)
    hung = queue.submit(row(1))
    model.wait_for_call()
    (worker,) = queue._crew._workers
    queue._crew.check_hung(time.perf_counter() + 2000.0)
    assert isinstance(hung.exception(LONG), WorkerHungError)
    model.step()
    worker.thread.join(LONG)
    assert not worker.thread.is_alive()
    assert (queue.statistics().workers_replaced, queue._crew.alive()) == (1, 1)


def test_a_request_that_expired_in_a_hung_batch_is_not_ended_again(start: Any) -> None:
    model = Held(held=2)
    queue = start(model, batch_timeout=1000.0, leaves_threads=True)
    first = queue.submit(row(0))
    model.wait_for_call()
    futures = [queue.submit(row(1), deadline=LONG), queue.submit(row(2))]
    model.step()
    model.wait_for_call()
    # Both run now; the clock is turned instead of waited for.
    queue._scheduler.expire(time.perf_counter() + 2 * LONG)
    queue._crew.check_hung(time.perf_counter() + 2000.0)
    ends = outcomes_of([first, *futures])
    assert values(ends[0]) == [0]
    assert isinstance(ends[1], DeadlineExceededError)
    assert isinstance(ends[2], WorkerHungError)
    statistics = queue.statistics()
    assert (statistics.expired, statistics.failed, statistics.running) == (1, 1, 0)
    model.open()


def test_a_result_that_comes_at_the_deadline_is_not_taken_back(start: Any) -> None:
    model = Held()
    queue = start(model)
    caller = in_thread(lambda: queue(row(1), deadline=LONG))
    model.wait_for_call()
    (worker,) = queue._crew._workers
    (request,) = worker.requests()
    model.open()
    assert values(caller()) == [2]
    assert not queue._scheduler.withdraw(request)
    assert (queue.statistics().completed, queue.statistics().expired) == (1, 0)


def test_a_batch_that_runs_past_batch_timeout_fails_and_another_worker_takes_over(start: Any) -> None:
    model = Held(held=1)
    queue = start(model, batch_timeout=0.05, leaves_threads=True)
    hung = queue.submit(row(1))
    assert isinstance(hung.exception(LONG), WorkerHungError)
    assert isinstance(hung.exception(), TimeoutError)
    assert values(queue(row(2))) == [4]
    statistics = queue.statistics()
    assert (statistics.failed, statistics.completed, statistics.workers_replaced) == (1, 1, 1)


def test_requests_behind_a_hung_batch_are_run_by_the_new_worker(start: Any) -> None:
    model = Held(held=1)
    queue = start(model, batch_timeout=0.05, leaves_threads=True)
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures += [queue.submit(row(v)) for v in range(1, 5)]
    ends = outcomes_of(futures)
    assert isinstance(ends[0], WorkerHungError)
    assert_values(ends[1:], [2, 4, 6, 8])


def test_a_hung_call_that_returns_late_changes_nothing(start: Any) -> None:
    model = Held(held=1)
    queue = start(model, batch_timeout=0.05)
    hung = queue.submit(row(1))
    error = hung.exception(LONG)
    threads = workers_of(queue)
    model.step()
    eventually(
        lambda: sum(t.is_alive() for t in threads if "-worker-" in t.name) == 1, "the hung thread ends"
    )
    assert hung.exception() is error
    assert values(queue(row(2))) == [4]
    assert queue.statistics().completed == 1


def test_closing_does_not_wait_for_a_hung_worker_that_was_given_up(start: Any) -> None:
    model = Held(held=1)
    queue = start(model, batch_timeout=0.05, leaves_threads=True)
    assert isinstance(queue.submit(row(1)).exception(LONG), WorkerHungError)
    closed = in_thread(queue.close)
    assert closed()


def test_a_closing_queue_gives_a_hung_batch_up_too(start: Any) -> None:
    model = Held(held=1)
    queue = start(model, batch_timeout=0.1, leaves_threads=True)
    hung = queue.submit(row(1))
    model.wait_for_call()
    behind = queue.submit(row(2))
    closed = in_thread(queue.close)
    assert closed()
    assert isinstance(hung.exception(0), WorkerHungError)
    assert values(behind.result(0)) == [4]


def test_a_batch_taken_while_its_worker_is_given_up_still_ends(start: Any) -> None:
    launching, launch, finish = threading.Event(), threading.Event(), threading.Event()

    def on_launch(batch: list[float]) -> None:
        if batch == [0]:
            launching.set()
            assert launch.wait(LONG)

    def on_finish(batch: list[float]) -> list[Any]:
        assert finish.wait(LONG)
        return [row(2 * v) for v in batch]

    queue = start(StubPlan(on_launch, on_finish, max_batch_size=1), depth=2, batch_timeout=0.05)
    with watched() as steps:
        first = queue.submit(row(0))
        assert launching.wait(LONG)
        taken = steps.stop("after", "Take", lambda seen: bool(seen["batch"]))
        second = queue.submit(row(1))
        launch.set()
        taken.wait()  # the second batch is in the hands of a worker that is given up now
        assert isinstance(first.exception(LONG), WorkerHungError)
        taken.release()
        finish.set()
        assert values(second.result(LONG)) == [2]


def test_batch_timeout_is_for_each_run_of_a_batch_and_not_for_all_its_halves_together(start: Any) -> None:
    model = Held(refuse_poison)
    queue = start(model, batch_timeout=1000.0)
    first = queue.submit(row(0))
    model.wait_for_call()
    futures = [queue.submit(row(v)) for v in (1, POISON)]
    model.step()
    model.wait_for_call()
    (worker,) = queue._crew._workers
    worker.in_flight[0].started -= 2000.0  # its first run took that long, and was not given up
    model.step()
    model.wait_for_call()
    queue._crew.check_hung(time.perf_counter())
    model.open()
    ends = outcomes_of([first, *futures])
    assert isinstance(ends[2], ArithmeticError)
    assert_values(ends[:2], [0, 2])


class OwnerDevice(CPUDevice):
    """A CPU with the rule of the Apple GPU: all work comes from one thread, the owner."""

    @property
    def capabilities(self) -> Any:
        return dataclasses.replace(super().capabilities, owner_thread=True, max_workers=1, default_workers=1)


def test_a_hung_worker_that_owns_its_device_is_not_replaced_and_the_queue_says_so(start: Any) -> None:
    model = Held(held=1)
    queue = start(model, device=OwnerDevice(), batch_timeout=0.05, leaves_threads=True)
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures.append(queue.submit(row(1)))
    ends = outcomes_of(futures)
    assert isinstance(ends[0], WorkerHungError)
    assert isinstance(ends[1], QueueClosedError)
    with pytest.raises(QueueClosedError, match="stopped working"):
        queue(row(2))


def test_more_workers_than_the_device_allows_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers is 2"):
        sw.BatchQueue(doubled, device=OwnerDevice(), num_workers=2)


# ---------------------------------------------------------------- cancellation


def test_a_future_cancelled_before_its_batch_is_never_run(start: Any) -> None:
    model = Held()
    queue = start(model)
    futures = [queue.submit(row(v)) for v in range(1)]
    model.wait_for_call()
    futures += [queue.submit(row(v)) for v in range(1, 5)]
    assert futures[2].cancel()
    assert futures[2].cancelled()
    model.open()
    assert_values(outcomes_of(futures[:2] + futures[3:]), [0, 2, 6, 8])
    with pytest.raises(concurrent.futures.CancelledError):
        futures[2].result(0)
    assert model.batches == [[0], [1, 3, 4]]
    assert queue.statistics().cancelled == 1


def test_a_future_runs_while_its_batch_does_and_not_while_it_waits(start: Any) -> None:
    model = Held()
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    waiting = queue.submit(row(1))
    assert first.running()
    assert not waiting.running()
    model.open()
    outcomes_of([first, waiting])
    assert not first.running()


def test_cancelling_a_running_request_fails_and_its_result_arrives(start: Any) -> None:
    model = Held()
    queue = start(model)
    future = queue.submit(row(3))
    model.wait_for_call()
    assert future.running()
    assert not future.cancel()
    model.open()
    assert values(future.result(LONG)) == [6]
    assert not future.running()
    assert not future.cancel()


def test_cancelling_one_request_of_a_running_batch_leaves_its_neighbours_alone(start: Any) -> None:
    model = Held()
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    futures = [queue.submit(row(v)) for v in range(1, 7)]
    model.step()
    model.wait_for_call()
    assert not futures[3].cancel()
    model.open()
    assert_values(outcomes_of([first, *futures]), [2 * v for v in range(7)])


def test_a_cancelled_future_that_is_kept_keeps_no_tensor_alive(start: Any) -> None:
    model = Held()
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    tensor = row(1)
    seen = weakref.ref(tensor)
    kept = queue.submit(tensor)
    assert kept.cancel()
    del tensor
    gc.collect()
    assert seen() is None
    model.open()
    first.result(LONG)


def test_a_cancelled_future_wakes_those_who_wait_for_it(start: Any) -> None:
    model = Held()
    queue = start(model)
    queue.submit(row(0))
    model.wait_for_call()
    future = queue.submit(row(1))
    waiting = in_thread(lambda: concurrent.futures.wait([future], LONG))
    future.cancel()
    assert future in waiting().done
    assert future.cancel(), "cancelling twice says so twice"


def test_a_cancelled_future_runs_its_callbacks_once(start: Any) -> None:
    model = Held()
    queue = start(model)
    queue.submit(row(0))
    model.wait_for_call()
    called: list[bool] = []
    future = queue.submit(row(1))
    future.add_done_callback(lambda f: called.append(f.cancelled()))
    future.cancel()
    model.open()
    queue.drain(LONG)
    assert called == [True]


def test_a_cancelled_request_ends_while_nobody_else_may_decide_about_it(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Held()
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    second = queue.submit(row(1))
    scheduler = queue._scheduler
    end_one, free = scheduler._end_one, []

    def watched(*given: Any, **named: Any) -> None:
        free.append(
            scheduler.lock.acquire(blocking=False)
        )  # it must be held by the thread that ends a request
        if free[-1]:
            scheduler.lock.release()
        end_one(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "_end_one", watched)
        assert second.cancel()
    assert free == [False]
    model.open()
    assert_values(outcomes_of([first]), [0])


def test_of_many_cancels_and_a_worker_exactly_one_wins(start: Any) -> None:
    queue = start(doubled, num_workers=2, max_batch_size=4)
    for _ in range(30):
        futures = [queue.submit(row(v)) for v in range(8)]
        won = in_threads(4, lambda index, futures=futures: [f.cancel() for f in futures])
        for i, future in enumerate(futures):
            if not future.cancelled():
                assert values(future.result(LONG)) == [2.0 * i]
                assert not any(answers[i] for answers in won)
    queue.drain(LONG)
    assert_adds_up(queue.statistics())


# ---------------------------------------------------------------- closing and draining


def test_closing_with_100_pending_gives_each_its_result(start: Any) -> None:
    model = Held()
    queue = start(model, max_batch_size=8)
    ended: Counter[int] = Counter()
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures += [queue.submit(row(v)) for v in range(1, 101)]
    for i, future in enumerate(futures):
        future.add_done_callback(lambda f, i=i: ended.update([i]))
    callers = [in_thread(lambda v=v: values(queue(row(v)))) for v in range(200, 205)]
    wait_for_pending(queue, 105)
    closed = in_thread(queue.close)
    model.open()
    assert closed()
    assert_values([f.result(0) for f in futures], [2 * v for v in range(101)])
    assert [caller() for caller in callers] == [[2.0 * v] for v in range(200, 205)]
    assert ended == Counter(range(101)), "each ended exactly once"


def test_closing_with_cancel_pending_runs_only_what_has_started(start: Any) -> None:
    model = Held()
    queue = start(model)
    running = queue.submit(row(0))
    model.wait_for_call()
    futures = [queue.submit(row(v)) for v in range(1, 50)]
    callers = [in_thread(lambda v=v: queue(row(v))) for v in range(200, 205)]
    wait_for_pending(queue, 54)
    closed = in_thread(lambda: queue.close(cancel_pending=True))
    assert all(isinstance(end, concurrent.futures.CancelledError) for end in outcomes_of(futures))
    for caller in callers:
        with pytest.raises(QueueClosedError, match="closed before the request ran"):
            caller()
    model.open()
    assert closed()
    assert values(running.result(0)) == [0]
    assert model.batches == [[0]]


def test_a_closed_queue_refuses_requests_with_a_clear_error(start: Any) -> None:
    queue = start(doubled)
    queue.close()
    for way in (queue, queue.submit, lambda x: next(iter(queue.map([x])))):
        with pytest.raises(QueueClosedError, match="the queue is closed"):
            way(row(1))
    assert queue.statistics().accepted == 0


def test_closing_again_does_nothing(start: Any) -> None:
    queue = start(doubled)
    assert queue.close()
    assert queue.close(cancel_pending=True, timeout=0)


def test_closing_from_many_threads_at_once_works(start: Any) -> None:
    queue = start(doubled, num_workers=2)
    assert in_threads(8, lambda index: queue.close()) == [True] * 8


def test_closing_a_hung_queue_returns_at_its_timeout_and_ends_every_request(start: Any) -> None:
    model = Held()
    queue = start(model, leaves_threads=True)
    running = queue.submit(row(0))
    model.wait_for_call()
    pending = queue.submit(row(1))
    caller = in_thread(lambda: queue(row(2)))
    wait_for_pending(queue, 2)
    assert not queue.close(timeout=0.05)
    assert isinstance(outcomes_of([running])[0], concurrent.futures.CancelledError)
    assert isinstance(outcomes_of([pending])[0], concurrent.futures.CancelledError)
    with pytest.raises(QueueClosedError):
        caller()
    assert queue.statistics().running == 0


def test_closing_a_hung_queue_ends_what_its_worker_holds_back_too(start: Any) -> None:
    queue, futures, let_go = with_one_held_back(start)
    assert not queue.close(timeout=0.05)
    assert all(isinstance(end, concurrent.futures.CancelledError) for end in outcomes_of(futures))
    let_go.set()


def test_closing_a_hung_queue_gives_each_caller_an_exception_of_its_own(start: Any) -> None:
    let_go = threading.Event()

    def finish(batch: list[float]) -> list[Any]:
        assert let_go.wait(LONG)
        return [row(2 * v) for v in batch]

    plan = StubPlan(finish=finish, max_batch_size=1)
    queue = start(plan, depth=2, leaves_threads=True)
    with watched() as steps:
        taking = steps.stop("before", "Take")
        callers = [in_thread(lambda v=v: queue(row(v))) for v in (1, 2)]
        wait_for_pending(queue, 2)
        taking.wait()
        taking.release()
    eventually(lambda: len(plan.launched) == 2, "both are in flight")
    assert not queue.close(timeout=0.05)
    errors = []
    for caller in callers:
        with pytest.raises(QueueClosedError, match="while the request was running") as caught:
            caller()
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    let_go.set()


def test_closing_ends_the_runner_of_every_worker(start: Any) -> None:
    plan = StubPlan()
    made: list[Any] = []
    closed: list[Any] = []
    make = plan.runner

    def runner(depth: int = 1) -> Any:
        one = make(depth)
        one.close = lambda: closed.append(one)
        made.append(one)
        return one

    plan.runner = runner  # type: ignore[method-assign]
    queue = start(plan, num_workers=3)
    queue.submit(row(1)).result(LONG)
    assert queue.close()
    assert len(made) == 3
    assert sorted(map(id, closed)) == sorted(map(id, made))


def test_closing_a_hung_queue_again_does_not_hang(start: Any) -> None:
    model = Held()
    queue = start(model, leaves_threads=True)
    queue.submit(row(0))
    model.wait_for_call()
    assert not queue.close(timeout=0.01)
    again = in_thread(queue.close)
    assert not again(), "the thread is still there"


def test_leaving_the_with_block_runs_what_waits() -> None:
    model = Held()
    with sw.BatchQueue(model, num_workers=1) as queue:
        futures = [queue.submit(row(v)) for v in range(20)]
        model.open()
    assert_values([f.result(0) for f in futures], [2 * v for v in range(20)])


def test_leaving_the_with_block_by_an_error_cancels_what_waits() -> None:
    model = Held()
    with pytest.raises(KeyError), sw.BatchQueue(model, num_workers=1) as queue:
        running = queue.submit(row(0))
        model.wait_for_call()
        waiting = queue.submit(row(1))
        waiting.add_done_callback(lambda f: model.open())
        raise KeyError
    assert waiting.cancelled()
    assert values(running.result(0)) == [0]


def test_requests_racing_with_close_are_either_refused_or_answered(start: Any) -> None:
    for _ in range(20):
        queue = start(doubled, num_workers=2)

        def work(index: int, queue: sw.BatchQueue = queue) -> int:
            if index == 0:
                queue.close()
                return 0
            for i in range(1000):
                try:
                    assert values(queue(row(i))) == [2.0 * i]
                except QueueClosedError:
                    return i
            return 1000

        accepted = in_threads(5, work)
        assert all(isinstance(n, int) for n in accepted), accepted
        assert queue.statistics().completed == sum(accepted)


def test_drain_waits_until_every_future_is_done_and_leaves_the_queue_open(start: Any) -> None:
    queue = start(doubled, num_workers=2, max_batch_size=4)
    for _ in range(20):
        futures = [queue.submit(row(v)) for v in range(50)]
        assert queue.drain(LONG)
        assert all(f.done() for f in futures)


def test_drain_waits_for_a_delivery_that_is_under_way(start: Any) -> None:
    queue = start(doubled, num_workers=2)
    inside, leave = threading.Event(), threading.Event()
    future = queue.submit(row(1))

    def callback(f: Any) -> None:
        inside.set()
        assert leave.wait(LONG)

    future.result(LONG)
    slow = queue.submit(row(2))
    slow.add_done_callback(callback)
    if inside.wait(0.05):
        assert not queue.drain(0.01)
    leave.set()
    assert queue.drain(LONG)


def test_drain_ends_when_the_last_request_is_withdrawn_though_the_model_hangs(start: Any) -> None:
    model = Held()
    queue = start(model)
    caller = in_thread(lambda: queue(row(1), deadline=1.0))
    model.wait_for_call()
    draining = in_thread(queue.drain)
    with pytest.raises(DeadlineExceededError):
        caller()
    assert draining()
    model.open()


def test_drain_gives_up_at_its_timeout(start: Any) -> None:
    model = Held()
    queue = start(model)
    queue.submit(row(1))
    assert not queue.drain(timeout=0.01)
    model.open()
    assert queue.drain(LONG)


def test_drain_of_an_idle_queue_returns_at_once(start: Any) -> None:
    assert start(doubled).drain(0)


# ---------------------------------------------------------------- inside the queue's own threads


def test_a_callback_may_submit(start: Any) -> None:
    queue = start(doubled)
    chain: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def again(future: Any) -> None:
        if values(future.result())[0] >= 64:
            chain.set_result(future.result())
        else:
            queue.submit(future.result()).add_done_callback(again)

    queue.submit(row(1)).add_done_callback(again)
    assert values(chain.result(LONG)) == [64]


def test_a_callback_may_submit_even_when_the_queue_is_full(start: Any) -> None:
    model = Held()
    queue = start(model, max_pending=1, max_batch_size=1)
    inner: list[Any] = []
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures[0].add_done_callback(lambda f: inner.extend(queue.submit(row(v)) for v in (5, 6, 7)))
    futures.append(queue.submit(row(1)))
    model.open()
    outcomes_of(futures)
    assert_values(outcomes_of(inner), [10, 12, 14])


def test_an_interrupt_in_a_callback_leaves_no_blocked_caller_waiting(start: Any) -> None:
    def callback(future: Any) -> None:
        raise KeyboardInterrupt

    model = Held()
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    future = queue.submit(row(1))
    future.add_done_callback(callback)
    wait_for_pending(queue, 1)
    caller = in_thread(lambda: values(queue(row(2))))
    wait_for_pending(queue, 2)
    model.open()
    assert caller() == [4]
    assert_values(outcomes_of([first, future]), [0, 2])
    assert [1.0, 2.0] in model.batches


@pytest.mark.parametrize("error", [ValueError("callback"), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_callback_that_raises_harms_neither_the_worker_nor_the_neighbours(
    start: Any, error: BaseException
) -> None:
    def callback(future: Any) -> None:
        raise error

    model = Held()
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    futures = [queue.submit(row(v)) for v in range(1, 5)]
    futures[1].add_done_callback(callback)
    model.open()
    assert_values(outcomes_of([first, *futures]), [0, 2, 4, 6, 8])
    assert values(queue(row(9))) == [18]


def test_a_blocking_call_on_the_queue_s_own_worker_raises_instead_of_waiting_for_itself(start: Any) -> None:
    queue = start(doubled)
    raised: list[BaseException] = []

    def callback(future: Any) -> None:
        for wait in (lambda: queue(row(1)), queue.drain, lambda: list(queue.map([row(1)]))):
            try:
                wait()
            except BaseException as error:
                raised.append(error)

    model_called = queue.submit(row(0))
    model_called.add_done_callback(callback)
    again = queue.submit(row(0))
    again.add_done_callback(callback)
    outcomes_of([model_called, again])
    queue.close()
    assert all(isinstance(e, RuntimeError) for e in raised), raised


def test_a_model_that_calls_its_own_queue_gets_a_clear_error(start: Any) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = queues[0](x)
        return result

    queues = [start(model, num_workers=2)]
    with pytest.raises(RuntimeError, match="would wait for itself"):
        queues[0](row(1))


@pytest.mark.parametrize("cancel_pending", [False, True])
def test_closing_inside_a_worker_s_callback_does_not_hang(start: Any, cancel_pending: bool) -> None:
    model = Held()
    queue = start(model, max_batch_size=1)
    first = queue.submit(row(0))
    model.wait_for_call()
    first.add_done_callback(lambda f: queue.close(cancel_pending))
    second = queue.submit(row(1))
    threads = workers_of(queue)
    model.open()
    end = outcomes_of([second])[0]
    if cancel_pending:
        assert isinstance(end, concurrent.futures.CancelledError)
    else:
        assert values(end) == [2]
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert queue.close()


def test_closing_inside_the_clock_s_callback_does_not_hang(start: Any) -> None:
    model = Held()
    queue = start(model)
    queue.submit(row(0))
    model.wait_for_call()
    closed = threading.Event()
    late = queue.submit(row(1), deadline=0.01)

    def close(future: Any) -> None:
        model.open()
        queue.close()
        closed.set()

    late.add_done_callback(close)
    assert closed.wait(LONG)


# ---------------------------------------------------------------- KeyboardInterrupt


def test_an_interrupt_reaches_a_caller_that_waits_and_the_queue_goes_on(start: Any) -> None:
    model = Held()
    queue = start(model)
    other = queue.submit(row(0))
    model.wait_for_call()
    main = threading.main_thread()
    assert threading.current_thread() is main
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs

    def interrupt() -> None:
        wait_for_pending(queue, 1)
        eventually(lambda: sys._current_frames()[main.ident].f_code.co_name == "__call__", "the caller waits")
        signal.pthread_kill(main.ident, signal.SIGINT)

    try:
        interrupting = in_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            queue(row(1))
        interrupting()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (queue.statistics().cancelled, queue.statistics().pending) == (1, 0)
    model.open()
    assert values(other.result(LONG)) == [0]
    assert values(queue(row(2))) == [4]
    assert model.batches == [[0], [2]], "what nobody waits for is not run"


# ---------------------------------------------------------------- dropped queues, leaks


def test_a_queue_dropped_without_close_runs_what_it_accepted_and_ends_its_threads() -> None:
    model = Held()
    queue = sw.BatchQueue(model, num_workers=2, name="dropped")
    futures = [queue.submit(row(v), deadline=LONG) for v in range(10)]
    threads = workers_of(queue)
    assert len(threads) == 3
    del queue
    gc.collect()
    model.open()
    assert_values(outcomes_of(futures), [2 * v for v in range(10)])
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()


def test_a_queue_may_be_collected_in_a_thread_that_holds_its_lock() -> None:
    # Garbage collection strikes anywhere; were the finalizer to wait for the lock, it would wait forever.
    queue = sw.BatchQueue(doubled, num_workers=1, name="collected")
    threads = workers_of(queue)
    scheduler = queue._scheduler
    with scheduler.lock:
        dropping = in_thread(gc.collect)
        del queue
        gc.collect()
        dropping()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()


def test_a_queue_in_a_reference_cycle_is_collected_and_ends_its_threads() -> None:
    class Service:
        def __init__(self) -> None:
            self.queue = sw.BatchQueue(self.run, num_workers=1, name="cyclic")

        def run(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    queue = Service().queue
    assert values(queue(row(1))) == [2]
    threads = workers_of(queue)
    queue.close()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_1000_start_stop_cycles_leak_neither_threads_nor_memory_nor_objects() -> None:
    def cycle() -> None:
        with sw.BatchQueue(doubled, num_workers=2, max_batch_size=4) as queue:
            queue.submit(row(1), deadline=LONG).result(LONG)
            queue(row(2))

    for _ in range(50):
        cycle()
    gc.collect()
    threads, objects, memory = threading.active_count(), len(gc.get_objects()), resident_bytes()
    for _ in range(1000):
        cycle()
    gc.collect()
    assert threading.active_count() <= threads
    assert len(gc.get_objects()) - objects < 1000, "less than one object a cycle"
    assert resident_bytes() - memory < 20e6


def test_a_queue_s_life_raises_no_resource_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        queue = sw.BatchQueue(doubled, num_workers=1)
        queue.submit(row(1), deadline=LONG).result(LONG)
        queue.close()
        del queue
        gc.collect()


# ---------------------------------------------------------------- fork


@contextlib.contextmanager
def forked(work: Any) -> Iterator[Any]:
    """Run ``work`` in a forked child; yields a function that waits for its answer, a string."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads is what is tested
        child = os.fork()
    if child == 0:
        answer = "nothing"
        try:
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, answer.encode())
            os._exit(0)
    os.close(writing)

    def answered() -> str:
        ended = []

        def look() -> bool:
            ended.append(os.waitpid(child, os.WNOHANG)[0])
            return ended[-1] == child

        try:
            eventually(look, "the child ends")
        except AssertionError:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        return os.read(reading, 10000).decode()

    try:
        yield answered
    finally:
        os.close(reading)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@needs_fork
@pytest.mark.parametrize(
    "call",
    [
        lambda queue: queue(row(1)),
        lambda queue: queue(row(1), deadline=5),
        lambda queue: queue(row(1, 77)),
        lambda queue: queue.submit(row(1)),
        lambda queue: queue.submit(row(1), deadline=5),
        lambda queue: list(queue.map([row(1)])),
        lambda queue: queue.drain(),
    ],
    ids=["call", "deadline", "new shape", "submit", "submit with deadline", "map", "drain"],
)
def test_in_a_forked_child_a_call_raises_a_clear_error_instead_of_hanging(start: Any, call: Any) -> None:
    model = Held()
    queue = start(model)
    future = queue.submit(row(3))
    model.wait_for_call()
    # The worst moment: another thread has both locks.
    with queue._scheduler.lock, queue.plan.reader._lock, forked(lambda: str(call(queue))) as answered:
        pass
    with forked(lambda: str(call(queue))) as answered:
        assert answered().startswith(ForkedProcessError.__name__)
    model.open()
    assert values(future.result(LONG)) == [6], "the parent goes on"


@needs_fork
def test_a_fork_while_another_thread_holds_the_locks_does_not_hang_the_child(start: Any) -> None:
    queue = start(doubled)
    queue(row(1))

    def work() -> str:
        return str(queue(row(1, 55)))

    with queue._scheduler.lock, queue.plan.reader._lock:
        context = forked(work)
        answered = context.__enter__()
    assert answered().startswith(ForkedProcessError.__name__)
    context.__exit__(None, None, None)


@needs_fork
def test_in_a_forked_child_closing_and_a_new_queue_work(start: Any) -> None:
    queue = start(doubled)
    queue(row(1))

    def work() -> str:
        queue.close()
        assert queue.statistics().completed == 1
        torch.set_num_threads(1)
        with sw.BatchQueue(doubled, num_workers=1) as fresh:
            return str(values(fresh(row(4))))

    with forked(work) as answered:
        assert answered() == "[8.0]"
    assert values(queue(row(2))) == [4]


# ---------------------------------------------------------------- interpreter exit


def run_script(script: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    prelude = """
        import atexit, threading, torch, sys, os
        done = []
        # Registered before the queue's own, so it runs after it.
        atexit.register(lambda: print(len(done), "done") if done else None)
        import steelworks as sw
        from steelworks.batching import _lifecycle
        torch.set_num_threads(1)
    """
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "error::ResourceWarning",
            "-c",
            textwrap.dedent(prelude) + textwrap.dedent(script),
        ],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_at_interpreter_exit_pending_work_is_finished_and_the_exit_is_clean() -> None:
    done = run_script(
        """
        queue = sw.BatchQueue(lambda x: x * 2, num_workers=2, max_batch_size=4)
        for v in range(500):
            queue.submit(torch.full((1, 1), float(v)), deadline=60).add_done_callback(
                lambda future: done.append(future.result())
            )
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "500 done\n"


def test_at_interpreter_exit_a_hung_model_holds_the_process_for_a_bounded_time_only() -> None:
    started = time.monotonic()
    done = run_script(
        """
        _lifecycle.EXIT_SECONDS = 0.2
        entered = threading.Event()
        def hang(x):
            entered.set()
            threading.Event().wait()
        queues = [sw.BatchQueue(hang, num_workers=1) for _ in range(5)]
        futures = [queue.submit(torch.ones(1, 1)) for queue in queues for _ in range(3)]
        threading.Thread(target=lambda: queues[0](torch.ones(1, 1)), daemon=True).start()
        entered.wait()
        """
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 50


def test_at_interpreter_exit_the_seconds_are_shared_by_all_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    from steelworks.batching import _lifecycle

    given: list[float] = []

    class Slow:
        def forked(self) -> None: ...

        def at_exit(self, seconds: float) -> None:
            given.append(seconds)
            clock[0] += 7.0

    clock = [100.0]
    queues = [Slow(), Slow(), Slow()]
    monkeypatch.setattr(_lifecycle, "_live", {})
    monkeypatch.setattr(_lifecycle.time, "monotonic", lambda: clock[0])
    for queue in queues:
        _lifecycle.register(queue)
    _lifecycle._at_exit()
    assert given == [10.0, 3.0, 0.0]


def test_at_interpreter_exit_blocked_callers_in_ordinary_threads_get_their_results() -> None:
    done = run_script(
        """
        go = threading.Event()
        def model(x):
            go.wait()
            return x * 2
        queue = sw.BatchQueue(model, num_workers=1)
        def work():
            sys.stdout.write(f"{float(queue(torch.ones(1, 1)))}\\n")
        for _ in range(4):
            threading.Thread(target=work).start()
        go.set()
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["2.0"] * 4


def test_an_interpreter_that_ends_by_an_error_still_exits_cleanly_from_the_queue() -> None:
    done = run_script(
        """
        queue = sw.BatchQueue(lambda x: x * 2)
        iterator = iter(queue.map(torch.ones(1, 1) for _ in range(10000)))
        next(iterator)
        raise SystemExit(3)
        """
    )
    assert (done.returncode, done.stderr) == (3, "")
