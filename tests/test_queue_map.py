"""``map``: many requests from one caller, a window of them in flight."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import (
    LONG,
    Held,
    StubPlan,
    assert_values,
    doubled,
    eventually,
    in_thread,
    in_threads,
    outcomes_of,
    row,
    values,
    wait_for_pending,
)

import steelworks as sw
from steelworks.batching import _scheduler
from steelworks.batching._request import ENDED, BlockingSink, Request
from steelworks.batching.options import QueueOptions
from steelworks.errors import (
    InvalidInputError,
    ModelOutputError,
    QueueClosedError,
    WorkerDiedError,
    WorkerHungError,
)

POISON = 666.0


def refuse_poison(x: torch.Tensor) -> torch.Tensor:
    if POISON in values(x):
        raise ArithmeticError("poison")
    return x * 2


def requests_alive() -> int:
    gc.collect()
    return sum(type(thing) is Request for thing in gc.get_objects())


class Source:
    """An iterable that counts what was read of it."""

    def __init__(self, items: Any) -> None:
        self._items = items
        self.read = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        for item in self._items:
            self.read += 1
            yield item if isinstance(item, torch.Tensor | str) else row(item)


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 3, 32, 33, 500])
def test_results_come_in_the_order_of_the_requests(start: Any, count: int, workers: int) -> None:
    queue = start(doubled, num_workers=workers)
    assert_values(list(queue.map(Source(range(count)))), [2 * v for v in range(count)])


@pytest.mark.parametrize("window", [1, 2, 5, 1000])
@pytest.mark.parametrize("ordered", [True, False])
def test_any_window_gives_every_result_once(start: Any, window: int, ordered: bool) -> None:
    queue = start(doubled, num_workers=2, max_batch_size=4)
    results = [values(r)[0] for r in queue.map(Source(range(100)), window=window, ordered=ordered)]
    assert (results if ordered else sorted(results)) == [2.0 * v for v in range(100)]


def test_unordered_results_come_as_they_complete(start: Any) -> None:
    slow = threading.Event()

    def model(x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] == 2:
            assert slow.wait(LONG)
        return x * 2

    queue = start(model, num_workers=2, max_batch_size=1)
    results = queue.map([row(1, 2), row(2), row(3)], ordered=False)
    assert [values(next(results))[0] for _ in range(2)] == [4, 6]
    slow.set()
    assert [values(r)[0] for r in results] == [2]


def test_requests_of_several_rows_and_shapes_may_be_mixed(start: Any) -> None:
    queue = start(doubled, num_workers=2, max_batch_size=4)
    requests = [torch.full((1 + i % 3, 1 + i % 4), float(i)) for i in range(100)]
    for request, result in zip(requests, queue.map(requests), strict=True):
        assert torch.equal(result, request * 2)


def test_nothing_is_read_before_the_first_result_is_asked_for(start: Any) -> None:
    source = Source(range(10))
    results = start(doubled).map(source)
    assert source.read == 0
    next(results)
    assert source.read > 0


def test_an_endless_source_is_read_as_results_are_consumed(start: Any) -> None:
    queue = start(doubled, max_batch_size=4)
    source = Source(itertools.count())
    results = queue.map(source, window=16)
    for v in range(200):
        assert values(next(results)) == [2.0 * v]
        assert source.read - (v + 1) <= 2 * 16, "one window in flight, one of results at hand"
    results.close()


def test_no_more_than_a_window_of_requests_is_in_flight(start: Any) -> None:
    model = Held()
    queue = start(model, max_batch_size=2)
    source = Source(range(100))
    mapping = in_thread(lambda: list(queue.map(source, window=7)))
    model.wait_for_call()
    eventually(lambda: queue.statistics().accepted == 6, "as many chunks of 2 as fit into 7")
    assert source.read == 6
    model.open()
    assert len(mapping()) == 100


def test_a_window_larger_than_max_pending_works(start: Any) -> None:
    queue = start(doubled, max_pending=3, max_batch_size=4)
    assert_values(list(queue.map(Source(range(100)), window=64)), [2 * v for v in range(100)])


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_below_one_is_refused(start: Any, window: int) -> None:
    with pytest.raises(ValueError, match=f"window is {window}"):
        start(doubled).map([row(1)], window=window)


def test_maps_of_many_threads_share_the_queue(start: Any) -> None:
    queue = start(doubled, num_workers=2, max_batch_size=8)

    def work(index: int) -> list[float]:
        return [values(r)[0] for r in queue.map(Source(range(1000 * index, 1000 * index + 200)))]

    assert in_threads(8, work) == [[2.0 * (1000 * n + v) for v in range(200)] for n in range(8)]


def test_two_maps_of_one_thread_may_be_interleaved(start: Any) -> None:
    queue = start(doubled, max_batch_size=4)
    for a, b in zip(queue.map(Source(range(50))), queue.map(Source(range(100, 150))), strict=True):
        assert values(b)[0] - values(a)[0] == 200


def test_a_map_keeps_its_queue_open_though_nobody_else_has_it() -> None:
    results = sw.BatchQueue(doubled, num_workers=1).map(Source(range(100)))
    gc.collect()
    assert_values(list(results), [2 * v for v in range(100)])


def test_progress_shows_and_changes_nothing(start: Any, capsys: pytest.CaptureFixture[str]) -> None:
    queue = start(doubled, name="embedding")
    assert_values(list(queue.map([row(v) for v in range(50)], progress=True)), [2 * v for v in range(50)])
    assert_values(list(queue.map(Source(range(50)), progress=True)), [2 * v for v in range(50)])
    assert "embedding" in capsys.readouterr().out


# ---------------------------------------------------------------- errors


def test_a_failed_request_raises_at_its_place_and_the_rest_is_cancelled(start: Any) -> None:
    model = Held(refuse_poison, held=0)
    queue = start(model, max_batch_size=4)
    results = queue.map(Source([1, 2, POISON, *range(4, 500)]))
    assert_values([next(results), next(results)], [2, 4])
    with pytest.raises(ArithmeticError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    queue.drain(LONG)
    statistics = queue.statistics()
    assert statistics.failed == 1
    assert statistics.completed + statistics.cancelled + 1 == statistics.accepted < 100


@pytest.mark.parametrize("ordered", [True, False])
def test_with_return_exceptions_failures_stand_at_their_places(start: Any, ordered: bool) -> None:
    queue = start(refuse_poison, max_batch_size=4)
    ends = list(
        queue.map(Source([1, POISON, "text", 4, torch.zeros(0, 1)]), return_exceptions=True, ordered=ordered)
    )
    kinds = [type(end) for end in ends]
    wanted = [torch.Tensor, ArithmeticError, InvalidInputError, torch.Tensor, InvalidInputError]
    if ordered:
        assert kinds == wanted
    else:
        assert sorted(kinds, key=str) == sorted(wanted, key=str)


def test_an_input_that_does_not_fit_raises_at_its_place(start: Any) -> None:
    results = start(doubled).map(Source([1, 2, "text", 4]))
    assert_values([next(results), next(results)], [2, 4])
    with pytest.raises(InvalidInputError, match="no tensor"):
        next(results)


def test_a_source_of_bad_inputs_only_ends(start: Any) -> None:
    ends = list(start(doubled, max_batch_size=4).map(["text"] * 30, return_exceptions=True))
    assert [type(end) for end in ends] == [InvalidInputError] * 30


@pytest.mark.parametrize("ordered", [True, False])
def test_an_error_of_the_source_comes_after_the_results_of_what_it_gave(start: Any, ordered: bool) -> None:
    def source() -> Iterator[torch.Tensor]:
        for v in range(50):
            yield row(v)
        raise KeyError("the source's own")

    got: list[float] = []
    with pytest.raises(KeyError, match="own"):
        for result in start(doubled, max_batch_size=4).map(source(), ordered=ordered):
            got.append(values(result)[0])
    assert sorted(got) == [2.0 * v for v in range(50)]


def test_results_that_are_there_when_the_queue_closes_are_still_given(start: Any) -> None:
    queue = start(doubled, max_batch_size=4)
    results = queue.map(Source(itertools.count()), window=8)
    got = [next(results)]
    queue.close()
    with pytest.raises(QueueClosedError):
        for result in results:
            got.append(result)
    assert len(got) == queue.statistics().completed
    assert_values(got, [2 * v for v in range(len(got))])


def test_requests_that_closing_cancels_raise_at_their_place(start: Any) -> None:
    model = Held()
    queue = start(model, max_batch_size=1)
    got: list[float] = []

    def work() -> None:
        for result in queue.map(Source(range(20)), window=20):
            got.append(values(result)[0])

    mapping = in_thread(work)
    model.wait_for_call()
    eventually(lambda: queue.statistics().accepted == 20, "all were sent")
    closing = in_thread(lambda: queue.close(cancel_pending=True))
    wait_for_pending(queue, 0)
    model.open()
    assert closing()
    with pytest.raises(QueueClosedError, match="closed before the request ran"):
        mapping()
    assert got == [0]


def test_a_killed_worker_fails_one_request_of_a_map(start: Any) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        if POISON in values(x):
            raise SystemExit
        return x * 2

    ends = list(start(model, max_batch_size=4).map(Source([1, 2, POISON, 4, 5, 6]), return_exceptions=True))
    assert isinstance(ends.pop(2), WorkerDiedError)
    assert_values(ends, [2, 4, 8, 10, 12])


def test_a_hung_batch_fails_its_requests_of_a_map(start: Any) -> None:
    queue = start(Held(held=1), batch_timeout=0.05, max_batch_size=2, leaves_threads=True)
    ends = list(queue.map(Source(range(1, 7)), return_exceptions=True))
    hung = [end for end in ends if isinstance(end, WorkerHungError)]
    assert 1 <= len(hung) <= 2
    assert_values(ends[len(hung) :], [2 * v for v in range(1 + len(hung), 7)])


def test_a_stop_iteration_of_the_model_does_not_look_like_the_end(start: Any) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        raise StopIteration("the model's")

    with pytest.raises(RuntimeError) as caught:
        list(start(model).map([row(1)]))
    assert isinstance(caught.value.__cause__, StopIteration)


def test_a_plan_that_gives_too_few_results_fails_a_map(start: Any) -> None:
    with pytest.raises(ModelOutputError):
        list(start(StubPlan(finish=lambda batch: [])).map([row(1), row(2)]))


# ---------------------------------------------------------------- leaving early


@pytest.mark.parametrize("ordered", [True, False])
def test_leaving_a_map_early_cancels_what_has_not_started(start: Any, ordered: bool) -> None:
    model = Held(held=2)
    queue = start(model, max_batch_size=2)
    results = queue.map(Source(range(1000)), window=100, ordered=ordered)
    model.step()
    next(results)
    model.wait_for_call(2)
    results.close()
    assert queue.statistics().pending == 0
    model.open()
    assert queue.drain(LONG)
    statistics = queue.statistics()
    assert statistics.completed == 4
    assert statistics.cancelled == statistics.accepted - 4
    assert len(model.batches) == 2


@pytest.mark.parametrize("ordered", [True, False])
def test_a_map_that_is_forgotten_cancels_what_has_not_started(start: Any, ordered: bool) -> None:
    model = Held()
    queue = start(model, max_batch_size=1)
    results = queue.map(Source(range(1000)), window=100, ordered=ordered)
    model.step()
    next(results)
    model.wait_for_call(2)
    del results
    gc.collect()
    assert queue.statistics().pending == 0
    model.open()
    assert queue.drain(LONG)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_map_may_be_collected_in_a_thread_that_holds_the_queue_s_lock(start: Any, ordered: bool) -> None:
    model = Held()
    queue = start(model, max_batch_size=1)
    results = queue.map(Source(range(100)), window=50, ordered=ordered)
    model.step()
    next(results)
    model.wait_for_call(2)
    with queue._scheduler.lock:
        in_thread(results.close)()
    del results
    model.open()
    assert queue.drain(LONG)
    assert len(model.batches) == 2, "what waited was cancelled all the same"
    assert queue.statistics().cancelled == queue.statistics().accepted - 2


def test_an_error_in_the_loop_over_a_map_cancels_the_rest(start: Any) -> None:
    model = Held()
    queue = start(model, max_batch_size=1)
    model.step()

    def work() -> None:
        for _ in queue.map(Source(range(1000)), window=50):
            model.wait_for_call(2)
            raise KeyError

    with pytest.raises(KeyError):
        in_thread(work)()
    gc.collect()
    model.open()
    assert queue.drain(LONG)
    assert len(model.batches) == 2


def test_abandoned_maps_hold_no_memory_while_the_model_hangs(start: Any) -> None:
    class Leave(BaseException):
        pass

    def source() -> Iterator[torch.Tensor]:
        yield from (row(v) for v in range(64))
        raise Leave

    model = Held()
    queue = start(model, max_pending=10)
    queue.submit(row(0))
    model.wait_for_call()
    for _ in range(50):
        with pytest.raises(Leave):
            next(queue.map(source(), window=100))
    assert queue.statistics().accepted == 1 + 50 * 64
    assert requests_alive() < 300


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("ordered", [True, False])
def test_a_long_map_holds_only_a_window_of_requests(start: Any, ordered: bool) -> None:
    queue = start(doubled, max_batch_size=8)
    most = 0
    for i, _ in enumerate(queue.map(Source(range(3000)), ordered=ordered)):
        if i % 500 == 499:
            most = max(most, requests_alive())
    assert most < 200


def test_a_result_that_was_given_out_is_not_kept(start: Any) -> None:
    queue = start(doubled, max_batch_size=1)
    results = queue.map(Source(range(50)), window=2)
    gone = weakref.ref(next(results))
    for _ in range(10):
        next(results)
    assert gone() is None


# ---------------------------------------------------------------- a race


def test_a_request_looks_ended_only_when_its_result_is_there() -> None:
    # ``map`` looks at requests without the lock.
    class Recorded(Request):
        __slots__ = ("seen",)

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "state" and value == ENDED:
                super().__setattr__("seen", (self.outcome, self.result, self.error))

    plan = StubPlan()
    scheduler = _scheduler.Scheduler(plan, QueueOptions(), 1)

    def running() -> Any:
        gate = threading.Lock()
        gate.acquire()
        request = Recorded(plan.reader.read(row(1)), BlockingSink(), gate, 0.0, 0.0)
        request.seen = None
        scheduler.submit(request)
        assert scheduler.take(_scheduler.Sleeper(), wait=False) == [request]
        return request

    completed, failed = running(), running()
    error = ValueError()
    scheduler.complete([completed], ["result"], 0.0)
    scheduler.fail([failed], [error])
    assert completed.seen == ("completed", "result", None)
    assert failed.seen == ("failed", None, error)


def test_an_unused_map_costs_nothing(start: Any) -> None:
    queue = start(doubled)
    queue.map([row(1)])
    gc.collect()
    assert queue.statistics().accepted == 0
    assert_values(outcomes_of([queue.submit(row(1))]), [2])
