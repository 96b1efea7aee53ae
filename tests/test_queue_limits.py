"""Limits: how many requests wait, which of them go first, and how much memory they may take."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import threading
import time
from typing import Any

import pytest
import torch
from helpers import (
    LONG,
    Held,
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
)

import steelworks as sw
from steelworks.batching._request import Request
from steelworks.errors import DeadlineExceededError, QueueClosedError, QueueFullError


def occupied(start: Any, model: Held, **options: Any) -> tuple[sw.BatchQueue, Any]:
    """A queue whose worker is busy with the request 0, and that request's future."""
    queue = start(model, **options)
    first = queue.submit(row(0))
    model.wait_for_call()
    return queue, first


def requests_alive() -> int:
    gc.collect()
    return sum(type(thing) is Request for thing in gc.get_objects())


# ---------------------------------------------------------------- overflow="block"


def test_submit_waits_while_max_pending_requests_wait(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, max_pending=2, max_batch_size=1)
    futures = [queue.submit(row(v)) for v in (1, 2)]
    submitting = in_thread(lambda: queue.submit(row(3)))
    wait_for_pending(queue, 3)
    with watched() as steps:
        admitting = steps.stop("after", "Take")
        model.step()
        admitting.wait()  # the first of those that waited runs, so there is room
        futures.append(submitting())
        admitting.release()
    model.open()
    assert_values(outcomes_of([first, *futures]), [0, 2, 4, 6])
    assert model.batches == [[0], [1], [2], [3]]


def test_as_many_come_up_as_there_is_room_for(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, max_pending=2, max_batch_size=1)
    mapping = in_thread(lambda: list(queue.map([row(v) for v in range(1, 6)], window=5)))
    wait_for_pending(queue, 5)
    model.step()
    model.wait_for_call()
    assert (queue._scheduler._pending.count, queue._scheduler._parked_live) == (2, 2)
    model.open()
    assert_values([first.result(LONG), *mapping()], [0, 2, 4, 6, 8, 10])


def test_a_request_that_waits_for_room_can_be_cancelled(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, max_pending=1, max_batch_size=1, depth=1)
    seen: list[Any] = []

    def callback(future: Any) -> None:  # on the worker's thread submit does not wait
        parked = queue.submit(row(2))
        seen.extend([parked.cancel(), parked.cancelled()])

    first.add_done_callback(callback)
    waiting = queue.submit(row(1))
    model.open()
    assert_values(outcomes_of([first, waiting]), [0, 2])
    assert seen == [True, True]
    assert queue.drain(LONG)
    assert model.batches == [[0], [1]]


def test_an_interrupt_while_submit_waits_for_room_takes_the_request_out(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    model = Held()
    queue, first = occupied(start, model, max_pending=1)
    waiting = queue.submit(row(1))
    monkeypatch.setattr(threading, "Event", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        queue.submit(row(2))
    monkeypatch.undo()
    assert (queue.statistics().pending, queue.statistics().cancelled) == (1, 1)
    model.open()
    assert_values(outcomes_of([first, waiting]), [0, 2])
    assert model.batches == [[0], [1]]


def test_submit_does_not_return_before_there_is_room(start: Any) -> None:
    model = Held()
    queue, _ = occupied(start, model, max_pending=1)
    queue.submit(row(1))
    returned = threading.Event()

    def submit() -> Any:
        future = queue.submit(row(2))
        returned.set()
        return future

    submitting = in_thread(submit)
    wait_for_pending(queue, 2)
    assert not returned.wait(0.05)
    model.open()
    assert values(submitting().result(LONG)) == [4]


def test_blocked_calls_get_their_results_in_order_of_arrival(start: Any) -> None:
    model = Held()
    queue, _ = occupied(start, model, max_pending=1, max_batch_size=1)
    callers = []
    for v in range(1, 10):
        callers.append(in_thread(lambda v=v: values(queue(row(v)))))
        wait_for_pending(queue, v)
    model.open()
    assert [caller() for caller in callers] == [[2.0 * v] for v in range(1, 10)]
    assert model.batches == [[float(v)] for v in range(10)]


def test_cancelling_a_waiting_request_makes_room_for_a_blocked_one(start: Any) -> None:
    model = Held()
    queue, _ = occupied(start, model, max_pending=1)
    waiting = queue.submit(row(1))
    submitting = in_thread(lambda: queue.submit(row(2)))
    wait_for_pending(queue, 2)
    waiting.cancel()
    second = submitting()
    model.open()
    assert values(second.result(LONG)) == [4]
    assert model.batches == [[0], [2]]


def test_an_expiring_request_makes_room_for_a_blocked_one(start: Any) -> None:
    model = Held()
    queue, _ = occupied(start, model, max_pending=1)
    expiring = queue.submit(row(1), deadline=0.05)
    second = in_thread(lambda: queue.submit(row(2)))()
    assert isinstance(expiring.exception(LONG), DeadlineExceededError)
    model.open()
    assert values(second.result(LONG)) == [4]


def test_a_blocked_submit_ends_at_its_deadline(start: Any) -> None:
    model = Held()
    queue, _ = occupied(start, model, max_pending=1)
    queue.submit(row(1))
    future = in_thread(lambda: queue.submit(row(2), deadline=0.02))()
    assert isinstance(future.exception(LONG), DeadlineExceededError)
    with pytest.raises(DeadlineExceededError):
        queue(row(3), deadline=0.02)
    model.open()
    queue.drain(LONG)
    assert model.batches == [[0], [1]]


def test_closing_with_cancel_pending_lets_blocked_callers_go(start: Any) -> None:
    model = Held()
    queue, _ = occupied(start, model, max_pending=1)
    futures = [queue.submit(row(1))]
    submitting = [in_thread(lambda v=v: queue.submit(row(v))) for v in (2, 3)]
    calling = in_thread(lambda: queue(row(4)))
    wait_for_pending(queue, 4)
    closing = in_thread(lambda: queue.close(cancel_pending=True))
    futures += [submit() for submit in submitting]
    assert all(isinstance(end, concurrent.futures.CancelledError) for end in outcomes_of(futures))
    with pytest.raises(QueueClosedError):
        calling()
    model.open()
    assert closing()


def test_closing_runs_blocked_requests_too(start: Any) -> None:
    model = Held()
    queue, _ = occupied(start, model, max_pending=1, max_batch_size=1)
    calls = [in_thread(lambda v=v: values(queue(row(v)))) for v in range(1, 6)]
    wait_for_pending(queue, 5)
    closing = in_thread(queue.close)
    model.open()
    assert closing()
    assert [call() for call in calls] == [[2.0 * v] for v in range(1, 6)]


def test_many_threads_on_a_small_queue_all_get_their_results(start: Any) -> None:
    queue = start(doubled, num_workers=2, max_pending=2, max_batch_size=2)
    futures = in_threads(8, lambda index: [queue.submit(row(100 * index + i)) for i in range(50)])
    for index, own in enumerate(futures):
        assert_values(outcomes_of(own), [2 * (100 * index + i) for i in range(50)])


# ---------------------------------------------------------------- overflow="reject"


def test_with_reject_a_request_too_many_is_refused_and_counted(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, max_pending=2, overflow="reject")
    futures = [queue.submit(row(v)) for v in (1, 2)]
    for way in (queue, queue.submit):
        with pytest.raises(QueueFullError, match="2 requests wait already .max_pending=2.; send fewer"):
            way(row(3))
    statistics = queue.statistics()
    assert (statistics.rejected, statistics.accepted) == (2, 3)
    model.open()
    outcomes_of([first, *futures])
    assert values(queue(row(4))) == [8], "there is room again"


def test_with_reject_places_of_cancelled_requests_are_free_at_once(start: Any) -> None:
    model = Held()
    queue, _ = occupied(start, model, max_pending=2, overflow="reject")
    futures = [queue.submit(row(v)) for v in (1, 2)]
    futures[0].cancel()
    assert not queue.submit(row(3)).done()


def test_map_is_not_refused_by_reject_but_waits_its_turn(start: Any) -> None:
    queue = start(doubled, max_pending=3, overflow="reject", max_batch_size=8)
    assert_values(list(queue.map([row(v) for v in range(100)])), [2 * v for v in range(100)])


# ---------------------------------------------------------------- overflow="drop_oldest"


def test_with_drop_oldest_the_request_that_waited_longest_makes_room(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, max_pending=3, overflow="drop_oldest")
    futures = [queue.submit(row(v)) for v in range(1, 7)]
    assert [f.done() for f in futures] == [True] * 3 + [False] * 3
    model.open()
    ends = outcomes_of([first, *futures])
    assert all(isinstance(end, QueueFullError) and "dropped to make room" in str(end) for end in ends[1:4])
    assert_values([ends[0], *ends[4:]], [0, 8, 10, 12])
    statistics = queue.statistics()
    assert (statistics.dropped, statistics.rejected, statistics.accepted) == (3, 0, 7)


def test_with_drop_oldest_a_blocked_call_that_is_dropped_raises(start: Any) -> None:
    model = Held()
    queue, _ = occupied(start, model, max_pending=1, overflow="drop_oldest")
    calling = in_thread(lambda: queue(row(1)))
    wait_for_pending(queue, 1)
    queue.submit(row(2))
    with pytest.raises(QueueFullError, match="dropped"):
        calling()


def test_with_drop_oldest_priority_does_not_make_a_request_older(start: Any) -> None:
    model = Held()
    queue, _ = occupied(start, model, max_pending=3, overflow="drop_oldest", aging=1000.0)
    futures = [queue.submit(row(v), priority=p) for v, p in ((1, 0), (2, 5), (3, 1))]
    futures.append(queue.submit(row(4)))
    assert [f.done() for f in futures] == [True, False, False, False]


def test_with_drop_oldest_ended_requests_are_not_dropped_again(start: Any) -> None:
    model = Held()
    queue, _ = occupied(start, model, max_pending=2, overflow="drop_oldest")
    one, two = queue.submit(row(1)), queue.submit(row(2))
    one.cancel()
    three = queue.submit(row(3))
    assert not two.done()
    four = queue.submit(row(4))
    assert isinstance(two.exception(0), QueueFullError)
    model.open()
    assert_values(outcomes_of([three, four]), [6, 8])


def test_with_drop_oldest_max_pending_holds_beside_a_map(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, max_pending=4, overflow="drop_oldest", max_batch_size=8)
    mapping = in_thread(lambda: list(queue.map([row(v) for v in range(10, 18)], return_exceptions=True)))
    wait_for_pending(queue, 8)
    futures = [queue.submit(row(v)) for v in range(1, 11)]
    assert queue._scheduler._pending.count == 4
    model.open()
    ends = [*outcomes_of(futures), *mapping()]
    dropped = [end for end in ends if isinstance(end, QueueFullError)]
    assert len(dropped) == queue.statistics().dropped == 10
    assert all(isinstance(end, torch.Tensor) for end in ends if end not in dropped)
    first.result(LONG)


def test_with_drop_oldest_the_requests_of_a_map_are_the_oldest_if_they_came_first(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, max_pending=3, overflow="drop_oldest")
    mapping = in_thread(lambda: list(queue.map([row(10), row(11)], return_exceptions=True)))
    wait_for_pending(queue, 2)
    futures = [queue.submit(row(1)), queue.submit(row(2))]  # for the second there is no room
    model.open()
    ends = mapping()
    assert isinstance(ends[0], QueueFullError)
    assert_values([ends[1], *outcomes_of([first, *futures])], [22, 0, 2, 4])


def test_with_drop_oldest_requests_that_came_up_from_behind_max_pending_have_their_age(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, max_pending=2, overflow="drop_oldest")
    mapping = in_thread(lambda: list(queue.map([row(v) for v in range(10, 14)], return_exceptions=True)))
    wait_for_pending(queue, 4)
    model.step()
    model.wait_for_call()  # 10 and 11 run, 12 and 13 came up
    futures = [queue.submit(row(1)), queue.submit(row(2))]
    model.open()
    ends = mapping()
    assert [type(end) for end in ends[2:]] == [QueueFullError, QueueFullError]
    assert_values([*ends[:2], *outcomes_of([first, *futures])], [20, 22, 0, 2, 4])


def test_with_drop_oldest_throwing_out_old_entries_keeps_those_that_wait(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, max_pending=2, overflow="drop_oldest")
    oldest = queue.submit(row(1), priority=-5)
    for v in range(200):
        assert queue.submit(row(v)).cancel()
    futures = [queue.submit(row(v)) for v in (2, 3)]
    assert isinstance(oldest.exception(LONG), QueueFullError)
    model.open()
    assert_values(outcomes_of([first, *futures]), [0, 4, 6])


def test_with_drop_oldest_a_retried_request_keeps_its_age(start: Any) -> None:
    def die(x: torch.Tensor) -> torch.Tensor:
        if x[0, 0] == 1 and x.shape[0] > 1:
            raise SystemExit
        return x * 2

    model = Held(die)
    queue, first = occupied(start, model, max_pending=2, overflow="drop_oldest")
    futures = [queue.submit(row(v)) for v in (1, 2)]
    model.step()
    model.wait_for_call()
    futures += [queue.submit(row(v)) for v in (3, 4, 5)]  # for 5 there is no room: 3 is dropped
    with watched() as steps:
        retried = steps.stop("after", "Retry")
        model.step()
        retried.wait()
        futures.append(queue.submit(row(6)))  # nor for 6: 1 came first of all
        retried.release()
    model.open()
    ends = outcomes_of(futures)
    assert [isinstance(end, QueueFullError) for end in ends] == [True, False, True, False, False, False]
    assert_values([first.result(LONG), ends[1], *ends[3:]], [0, 4, 8, 10, 12])


def test_a_retried_request_may_be_dropped_like_any_other(start: Any) -> None:
    def die(x: torch.Tensor) -> torch.Tensor:
        if x[0, 0] == 1 and x.shape[0] > 1:
            raise SystemExit
        return x * 2

    model = Held(die)
    queue, first = occupied(start, model, max_pending=2, overflow="drop_oldest")
    futures = [queue.submit(row(v)) for v in (1, 2)]
    with watched() as steps:
        retried = steps.stop("after", "Retry")
        model.step(2)
        retried.wait()
        futures.append(queue.submit(row(3)))
        retried.release()
    model.open()
    ends = outcomes_of([first, *futures])
    assert isinstance(ends[1], QueueFullError)
    assert_values([ends[0], *ends[2:]], [0, 4, 6])


def test_with_drop_oldest_retried_requests_are_as_old_as_they_were_whatever_order_they_ran_in(
    start: Any,
) -> None:
    def die(x: torch.Tensor) -> torch.Tensor:
        if x[0, 0] == 2 and x.shape[0] > 1:
            raise SystemExit
        return x * 2

    model = Held(die)
    queue, first = occupied(start, model, max_pending=2, overflow="drop_oldest", aging=1000.0)
    futures = [queue.submit(row(1)), queue.submit(row(2), priority=1)]  # 2 goes first
    with watched() as steps:
        retried = steps.stop("after", "Retry")
        model.step(2)
        retried.wait()
        futures.append(queue.submit(row(3)))  # there is no room: 1 came before 2
        retried.release()
    model.open()
    ends = outcomes_of([first, *futures])
    assert isinstance(ends[1], QueueFullError)
    assert_values([ends[0], *ends[2:]], [0, 4, 6])


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_pending", 0),
        ("max_pending", 1.5),
        ("max_batch_size", 0),
        ("max_batch_size", "many"),
        ("overflow", "panic"),
        ("max_wait", -1.0),
        ("max_wait", float("nan")),
        ("max_wait", float("inf")),
        ("aging", 0.0),
        ("aging", float("nan")),
        ("batch_timeout", 0.0),
        ("batch_timeout", float("nan")),
        ("num_workers", 0),
        ("depth", 0),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_name_and_value(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} is {value!r}"):
        sw.BatchQueue(doubled, **{option: value})


def test_a_batch_timeout_of_infinity_is_none(start: Any) -> None:
    queue = start(doubled, batch_timeout=float("inf"))
    assert isinstance(queue.submit(row(1), deadline=1e-9).exception(LONG), DeadlineExceededError)
    assert values(queue(row(1))) == [2]


# ---------------------------------------------------------------- order


def test_requests_of_higher_priority_run_first_and_equals_in_order_of_arrival(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, max_batch_size=1, aging=1000.0)
    priorities = [0, 1, 0, 2, 1, -1, 2, 0.5]
    futures = [queue.submit(row(v), priority=p) for v, p in enumerate(priorities, start=1)]
    model.open()
    outcomes_of([first, *futures])
    assert [int(batch[0]) for batch in model.batches] == [0, 4, 7, 2, 5, 8, 1, 3, 6]


def test_priority_works_across_shapes(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, aging=1000.0)
    futures = [queue.submit(row(v, width), priority=p) for v, width, p in ((1, 1, 0), (2, 2, 1), (3, 3, 2))]
    model.open()
    outcomes_of([first, *futures])
    assert model.batches == [[0], [3], [2], [1]]


def test_a_request_that_waited_for_aging_seconds_is_ahead_of_newcomers_one_step_higher(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, max_batch_size=1, aging=1e-6)
    futures = [queue.submit(row(v), priority=p) for v, p in ((1, 0), (2, 1), (3, 1))]
    model.open()
    outcomes_of([first, *futures])
    assert model.batches == [[0], [1], [2], [3]], "a microsecond lies between two calls"


def test_priority_holds_for_calls_and_map_too(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, max_batch_size=1, aging=1000.0)
    low = in_thread(lambda: queue(row(1)))
    wait_for_pending(queue, 1)
    middle = in_thread(lambda: list(queue.map([row(2), row(3)], priority=1)))
    wait_for_pending(queue, 3)
    high = in_thread(lambda: queue(row(4), priority=2))
    wait_for_pending(queue, 4)
    model.open()
    for waiting in (low, middle, high, lambda: first.result(LONG)):
        waiting()
    assert model.batches == [[0], [4], [2], [3], [1]]


@pytest.mark.parametrize("way", ["call", "submit", "map"])
def test_a_step_of_priority_is_worth_aging_seconds_and_no_more(start: Any, way: str) -> None:
    model = Held()
    queue, first = occupied(start, model, max_batch_size=1, aging=1e-9)
    earlier = queue.submit(row(1))
    later = in_thread(
        lambda: {
            "call": lambda: queue(row(2), priority=1),
            "submit": lambda: queue.submit(row(2), priority=1).result(LONG),
            "map": lambda: next(queue.map([row(2)], priority=1)),
        }[way]()
    )
    wait_for_pending(queue, 2)
    model.open()
    assert values(later()) == [4]
    outcomes_of([first, earlier])
    assert model.batches == [[0], [1], [2]]


def test_a_priority_that_is_no_number_is_refused(start: Any) -> None:
    queue = start(doubled)
    for way in (queue, queue.submit, lambda x, priority: queue.map([x], priority=priority)):
        with pytest.raises(ValueError, match="priority is nan"):
            way(row(1), priority=float("nan"))
    assert queue.statistics().accepted == 0


def test_a_stream_of_high_priority_does_not_starve_a_low_one(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, max_batch_size=1, aging=1e-4)
    low = queue.submit(row(-1))
    running = [queue.submit(row(1), priority=1)]
    eventually(lambda: time.perf_counter() - low.request.arrived > 1e-3, "a millisecond passed")
    for v in range(2, 50):
        running.append(queue.submit(row(v), priority=1))
    model.open()
    outcomes_of([first, low, *running])
    assert [-1.0] in model.batches[:3]


def test_threads_that_share_a_queue_get_equal_shares(start: Any) -> None:
    model = Held()
    queue, first = occupied(start, model, max_batch_size=4)
    futures: list[Any] = []
    for i in range(20):  # one sends singles, the other sends requests of two rows
        futures += [queue.submit(row(i)), queue.submit(torch.full((2, 1), 100.0 + i))]
    model.open()
    outcomes_of([first, *futures])
    flat = [v for batch in model.batches[1:] for v in batch]
    assert flat == [v for i in range(20) for v in (i, 100 + i, 100 + i)]


# ---------------------------------------------------------------- memory


def test_a_flood_of_cancelled_requests_holds_no_memory(start: Any) -> None:
    for overflow in ("block", "reject", "drop_oldest"):
        queue, _ = occupied(start, Held(), overflow=overflow)
        kept = queue.submit(row(1))
        for v in range(5000):
            assert queue.submit(row(v)).cancel()
        assert requests_alive() < 600
        assert not kept.done()


def test_a_flood_of_cancelled_blocked_requests_holds_no_memory(start: Any) -> None:
    model = Held()
    queue, _ = occupied(start, model, max_pending=1)
    kept = [queue.submit(row(1)), in_thread(lambda: queue.submit(row(2), deadline=LONG))]
    wait_for_pending(queue, 2)
    for _ in range(300):
        with pytest.raises(DeadlineExceededError):
            queue(row(3), deadline=1e-6)
    assert requests_alive() < 250
    model.open()
    assert values(kept[0].result(LONG)) == [2]
    assert values(kept[1]().result(LONG)) == [4]


def test_deadlines_far_ahead_do_not_keep_ended_requests_alive(start: Any) -> None:
    queue = start(doubled)
    for _ in range(40):
        outcomes_of([queue.submit(row(v), deadline=3600.0) for v in range(100)])
    assert requests_alive() < 400
    assert len(queue._scheduler._deadlines) < 400


def test_cleaning_old_deadlines_keeps_those_of_running_requests(start: Any) -> None:
    model = Held()
    queue = start(model)
    running = queue.submit(row(0), deadline=LONG)
    model.wait_for_call()
    for v in range(200):
        assert queue.submit(row(v), deadline=LONG).cancel()
    queue._scheduler.expire(time.perf_counter() + 2 * LONG)
    assert isinstance(running.exception(0), DeadlineExceededError)
    model.open()


def test_cleaning_old_deadlines_loses_none_that_is_still_wanted(start: Any) -> None:
    model = Held()
    queue, _ = occupied(start, model)
    waiting = [queue.submit(row(v), deadline=3600.0 - v) for v in range(200)]
    for v in range(2000):
        queue.submit(row(v), deadline=7200.0).cancel()
    queue._scheduler.expire(time.perf_counter() + 3500.0)
    assert [f.done() for f in waiting] == [v >= 100 for v in range(200)]


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
@pytest.mark.parametrize("overflow", ["block", "reject", "drop_oldest"])
def test_memory_stays_bounded_under_overload_and_every_request_ends(start: Any, overflow: Any) -> None:
    ended = [0] * 8

    def slow(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.001)  # the capacity: 8 requests a millisecond at most
        return x * 2

    queue = start(slow, max_batch_size=8, max_pending=32, overflow=overflow)
    queue(torch.zeros(1, 16384))
    gc.collect()
    before = resident_bytes()
    end = time.monotonic() + 1.5

    def work(index: int) -> int:
        sent = 0

        def count(future: Any) -> None:
            ended[index] += 1

        while time.monotonic() < end:
            try:
                queue.submit(torch.full((1, 16384), float(index))).add_done_callback(count)
                sent += 1
            except QueueFullError:
                pass
        return sent

    sent = in_threads(8, work)
    assert resident_bytes() - before < 100e6, "some 40 requests of 64 KiB are there at a time"
    assert queue.drain(LONG)
    assert sum(sent) == sum(ended)
    statistics = queue.statistics()
    assert_adds_up(statistics)
    assert statistics.accepted == sum(sent) + 1
    if overflow == "reject":
        assert statistics.rejected > 0
    if overflow == "drop_oldest":
        assert statistics.dropped > 0


def test_a_service_that_sees_endless_new_shapes_and_constants_forgets_old_ones(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import steelworks.plans.inputs as inputs

    monkeypatch.setattr(inputs, "_MAX_SHAPES_REMEMBERED", 50)
    monkeypatch.setattr(inputs, "_MAX_GROUPS_REMEMBERED", 60)
    queue = start(lambda x, seed: x + seed)
    model = start(doubled)
    for seed in range(300):
        assert values(queue({"x": row(1), "seed": seed})) == [1.0 + seed]
        assert values(model(row(2, 1 + seed))) == [4]
    for reader in (queue.plan.reader, model.plan.reader):
        assert len(reader._shapes) <= 50
        assert len(reader._groups) <= 60
        assert len(reader._lanes) <= 60


@pytest.mark.parametrize(
    ("option", "value"), [("max_wait", "5ms"), ("aging", None), ("batch_timeout", "1 s")], ids=str
)
def test_a_time_that_is_no_number_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{option} is {value!r}; it must be a number, in seconds"):
        sw.BatchQueue(torch.nn.Identity(), **{option: value})


@pytest.mark.parametrize(("option", "value"), [("deadline", "50ms"), ("priority", "high")])
def test_a_request_s_option_that_is_no_number_is_refused_by_name(start: Any, option: str, value: str) -> None:
    queue = start(torch.nn.Identity())
    with pytest.raises(ValueError, match=f"{option} is '{value}'"):
        queue(torch.ones(1, 2), **{option: value})


def test_awaiting_the_future_of_a_thread_names_the_way_for_asyncio(start: Any) -> None:
    queue = start(torch.nn.Identity())

    async def wrong() -> None:
        await queue.submit(torch.ones(1, 2))

    with pytest.raises(TypeError, match="asubmit"):
        asyncio.run(wrong())
