"""asyncio: any number of tasks, any number of event loops."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Coroutine
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
    row,
    values,
    wait_for_pending,
    watched,
)

import steelworks as sw
from steelworks.batching._request import Request
from steelworks.errors import (
    DeadlineExceededError,
    InvalidInputError,
    QueueClosedError,
    QueueFullError,
    WorkerDiedError,
    WorkerHungError,
)

POISON = 666.0


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run ``work`` in a loop of its own, in debug mode: use from a wrong thread raises there."""

    async def bounded() -> Any:
        return await asyncio.wait_for(work, LONG)

    return asyncio.run(bounded(), debug=True)


async def until(condition: Any) -> None:
    """Let the loop turn until a state is reached that nothing signals."""
    for _ in range(20000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("this did not come true")


async def settled(futures: Any) -> list[Any]:
    """Results or exceptions."""
    return list(await asyncio.gather(*futures, return_exceptions=True))


def test_a_task_gets_what_the_model_returns(start: Any) -> None:
    queue = start(doubled)

    async def work() -> Any:
        return await queue.asubmit(row(3))

    assert values(run(work())) == [6]


def test_300_tasks_get_their_own_results_in_order(start: Any) -> None:
    queue = start(doubled, num_workers=2, max_batch_size=8)

    async def work() -> Any:
        return await asyncio.gather(*(queue.asubmit(row(v)) for v in range(300)))

    assert_values(run(work()), [2 * v for v in range(300)])


def test_what_the_tasks_of_one_turn_send_is_one_batch(start: Any) -> None:
    model = Held(held=0)
    queue = start(model)

    async def one(v: int) -> Any:
        return await queue.asubmit(row(v))

    async def work() -> Any:
        return await asyncio.gather(*(one(v) for v in range(20)))

    assert_values(run(work()), [2 * v for v in range(20)])
    assert model.batches == [[float(v) for v in range(20)]]


def test_a_turn_that_sends_very_many_requests_loses_none(start: Any) -> None:
    queue = start(doubled)

    async def work() -> Any:
        return await asyncio.gather(*(queue.asubmit(row(v)) for v in range(1500)))

    assert_values(run(work()), [2 * v for v in range(1500)])


def test_a_long_turn_is_sent_before_it_ends(start: Any) -> None:
    queue = start(doubled)

    async def work() -> Any:
        futures = [queue.asubmit(row(v)) for v in range(1000)]
        assert queue.statistics().accepted > 500, "the workers need not wait for the end of the turn"
        return await asyncio.gather(*futures)

    assert_values(run(work()), [2 * v for v in range(1000)])


def test_results_of_a_batch_cost_the_loop_one_wake_up(start: Any) -> None:
    model = Held()
    queue = start(model)

    async def work() -> int:
        loop = asyncio.get_running_loop()
        first = queue.asubmit(row(0))
        await until(lambda: model.batches)
        futures = [queue.asubmit(row(v)) for v in range(1, 20)]
        await until(lambda: queue.statistics().pending == 19)
        calls = []
        real = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args, **kwargs: (calls.append(args), real(*args, **kwargs))[1]  # type: ignore[method-assign]
        model.open()
        await asyncio.gather(first, *futures)
        return len(calls)

    assert run(work()) == 2


# ---------------------------------------------------------------- several loops


def test_a_second_event_loop_works_as_the_first(start: Any) -> None:
    queue = start(doubled)

    async def work(v: float) -> Any:
        return await queue.asubmit(row(v))

    for v in range(5):
        assert values(run(work(v))) == [2.0 * v]


def test_event_loops_in_several_threads_share_a_queue(start: Any) -> None:
    queue = start(doubled, num_workers=2, max_batch_size=8)

    async def work(index: int) -> Any:
        results = []
        for i in range(20):
            results += await asyncio.gather(
                *(queue.asubmit(row(1000 * index + 10 * i + j)) for j in range(5))
            )
        return [values(r)[0] for r in results]

    outcomes = in_threads(8, lambda index: run(work(index)))
    assert outcomes == [
        [2.0 * (1000 * n + 10 * i + j) for i in range(20) for j in range(5)] for n in range(8)
    ]


def test_tasks_and_threads_share_batches(start: Any) -> None:
    model = Held()
    queue = start(model)

    async def work() -> Any:
        first = queue.asubmit(row(0))
        await until(lambda: model.batches)
        tasks = [queue.asubmit(row(v)) for v in range(1, 4)]
        await until(lambda: queue.statistics().pending == 3)
        calls = [in_thread(lambda v=v: values(queue(row(v)))) for v in range(4, 7)]
        await until(lambda: queue.statistics().pending == 6)
        futures = [queue.submit(row(v)) for v in range(7, 10)]
        model.open()
        await asyncio.gather(first, *tasks)
        loop = asyncio.get_running_loop()
        return [await loop.run_in_executor(None, call) for call in calls] + [
            values(await asyncio.wrap_future(f)) for f in futures
        ]

    assert run(work()) == [[2.0 * v] for v in range(4, 10)]
    assert sorted(model.batches[1]) == [float(v) for v in range(1, 10)]


def test_an_event_loop_that_closes_with_requests_in_flight_harms_nobody(
    start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = Held()
    queue = start(model)

    async def leave() -> None:
        queue.asubmit(row(0))
        await until(lambda: model.batches)
        queue.asubmit(row(1))
        await until(lambda: queue.statistics().pending == 1)

    run(leave())
    other = queue.submit(row(2))
    model.open()
    assert values(other.result(LONG)) == [4]

    async def work() -> Any:
        return await queue.asubmit(row(3))

    assert values(run(work())) == [6]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_requests_of_a_loop_that_stopped_are_sent_when_it_goes_on(start: Any) -> None:
    queue = start(doubled)
    loop = asyncio.new_event_loop()
    try:

        async def send() -> Any:
            return queue.asubmit(row(4))

        future = loop.run_until_complete(send())
        assert values(loop.run_until_complete(asyncio.wait_for(future, LONG))) == [8]
    finally:
        loop.close()


def test_a_queue_does_not_keep_event_loops_alive(start: Any) -> None:
    queue = start(doubled)
    loops = []

    async def work() -> Any:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        return await queue.asubmit(row(1))

    for _ in range(20):
        run(work())
    gc.collect()
    assert sum(loop() is not None for loop in loops) <= 1, "the last one is remembered"
    assert len(queue._loop_sinks) <= 1


def test_without_a_running_loop_asubmit_says_so(start: Any) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        start(doubled).asubmit(row(1))


# ---------------------------------------------------------------- errors


def test_one_bad_request_of_a_batch_fails_alone(start: Any) -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        if POISON in values(x):
            raise ArithmeticError("poison")
        return x * 2

    queue = start(Held(answer, held=0))

    async def work() -> Any:
        return await settled([queue.asubmit(row(v)) for v in (1, 2, POISON, 4)])

    ends = run(work())
    assert isinstance(ends[2], ArithmeticError)
    assert_values([ends[0], ends[1], ends[3]], [2, 4, 8])


def test_a_stop_iteration_of_the_model_reaches_its_task_as_the_cause_of_an_error(start: Any) -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        if POISON in values(x):
            raise StopIteration("the model's")
        return x * 2

    queue = start(answer)

    async def work() -> Any:
        return await settled([queue.asubmit(row(v)) for v in (1, POISON, 2)])

    ends = run(work())
    assert isinstance(ends[1], RuntimeError)
    assert isinstance(ends[1].__cause__, StopIteration)
    assert_values([ends[0], ends[2]], [2, 4])


def test_an_input_that_does_not_fit_raises_in_the_task(start: Any) -> None:
    queue = start(doubled)

    async def work() -> Any:
        with pytest.raises(InvalidInputError):
            await queue.asubmit(torch.zeros(0, 1))
        with pytest.raises(ValueError, match="deadline"):
            await queue.asubmit(row(1), deadline=0)
        with pytest.raises(ValueError, match="priority"):
            await queue.asubmit(row(1), priority=float("nan"))

    run(work())
    assert queue.statistics().accepted == 0


def test_a_task_group_sees_the_error_of_its_own_request(start: Any) -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        if POISON in values(x):
            raise ArithmeticError("poison")
        return x * 2

    queue = start(answer)

    async def one(v: float) -> Any:
        return await queue.asubmit(row(v))

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            for v in (1, POISON, 3):
                group.create_task(one(v))

    with pytest.raises(ExceptionGroup) as caught:
        run(work())
    assert [type(e) for e in caught.value.exceptions] == [ArithmeticError]


def test_a_model_that_kills_its_worker_fails_the_task_that_did_it(start: Any) -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        if POISON in values(x):
            raise SystemExit
        return x * 2

    queue = start(answer)

    async def work() -> Any:
        return await settled([queue.asubmit(row(v)) for v in (1, POISON, 3)])

    ends = run(work())
    assert isinstance(ends[1], WorkerDiedError)
    assert_values([ends[0], ends[2]], [2, 6])


# ---------------------------------------------------------------- cancellation


def test_cancelling_a_task_whose_request_runs_leaves_its_neighbours_alone(start: Any) -> None:
    model = Held()
    queue = start(model)

    async def one(v: float) -> Any:
        return await queue.asubmit(row(v))

    async def work() -> Any:
        tasks = [asyncio.create_task(one(v)) for v in range(6)]
        await until(lambda: model.batches)
        tasks[2].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[2]
        model.open()
        return await asyncio.gather(*tasks[:2], *tasks[3:])

    assert_values(run(work()), [0, 2, 6, 8, 10])
    assert model.batches == [[0, 1, 2, 3, 4, 5]]


def test_a_task_cancelled_while_its_request_waits_is_not_run(start: Any) -> None:
    model = Held()
    queue = start(model)

    async def one(v: float) -> Any:
        return await queue.asubmit(row(v))

    async def work() -> Any:
        first = asyncio.create_task(one(0))
        await until(lambda: model.batches)
        tasks = [asyncio.create_task(one(v)) for v in range(1, 6)]
        await until(lambda: queue.statistics().pending == 5)
        tasks[1].cancel()
        model.open()
        return await settled([first, *tasks])

    ends = run(work())
    assert isinstance(ends[2], asyncio.CancelledError)
    assert_values(ends[:2] + ends[3:], [0, 2, 6, 8, 10])
    assert model.batches == [[0], [1, 3, 4, 5]]
    assert queue.statistics().cancelled == 1


def test_a_task_cancelled_in_the_turn_in_which_it_sent_is_not_run(start: Any) -> None:
    model = Held(held=0)
    queue = start(model)

    async def work() -> Any:
        futures = [queue.asubmit(row(v)) for v in range(3)]
        futures[1].cancel()
        return await settled(futures)

    ends = run(work())
    assert isinstance(ends[1], asyncio.CancelledError)
    assert model.batches == [[0, 2]]


def test_when_all_tasks_are_cancelled_the_model_is_not_called_and_the_queue_goes_on(start: Any) -> None:
    model = Held()
    queue = start(model)

    async def work() -> Any:
        first = queue.asubmit(row(0))
        await until(lambda: model.batches)
        futures = [queue.asubmit(row(v)) for v in range(1, 50)]
        await until(lambda: queue.statistics().pending == 49)
        for future in futures:
            future.cancel()
        model.open()
        await first
        return await queue.asubmit(row(99))

    assert values(run(work())) == [198]
    assert model.batches == [[0], [99]]


def test_wait_for_gives_up_a_request_of_a_hung_model(start: Any) -> None:
    model = Held()
    queue = start(model)

    async def work() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.asubmit(row(1)), 0.02)

    run(work())


def test_a_flood_of_cancelled_tasks_holds_no_memory_even_past_max_pending(start: Any) -> None:
    model = Held()
    queue = start(model, max_pending=100)

    async def work() -> int:
        first = queue.asubmit(row(0))
        await until(lambda: model.batches)
        for _ in range(200):
            for future in [queue.asubmit(row(v)) for v in range(50)]:
                future.cancel()
            await asyncio.sleep(0)
        gc.collect()
        alive = sum(type(thing) is Request for thing in gc.get_objects())
        model.open()
        await first
        return alive

    assert run(work()) < 1000, "10,000 were sent"
    eventually(lambda: queue.statistics().pending == 0, "the queue empties")


def test_cancelled_tasks_that_wait_for_room_hold_no_memory_while_others_wait(start: Any) -> None:
    model = Held()
    queue = start(model, max_pending=2)

    async def work() -> int:
        kept = [queue.asubmit(row(0))]
        await until(lambda: model.batches)
        kept += [queue.asubmit(row(v)) for v in (1, 2)]
        await until(lambda: queue.statistics().pending == 2)
        for _ in range(2000):
            future = queue.asubmit(row(9))
            await asyncio.sleep(0)
            future.cancel()
        alive = queue.statistics().pending
        model.open()
        assert_values(await settled(kept), [0, 2, 4])
        return alive

    assert run(work()) < 300


@pytest.mark.parametrize("overflow", ["reject", "drop_oldest"])
def test_places_of_cancelled_tasks_come_free_for_others(start: Any, overflow: Any) -> None:
    model = Held()
    queue = start(model, max_pending=10, overflow=overflow)

    async def work() -> Any:
        first = queue.asubmit(row(0))
        await until(lambda: model.batches)
        for v in range(10):
            queue.asubmit(row(v)).cancel()
        later = [queue.asubmit(row(v)) for v in range(20, 30)]
        model.open()
        return await settled([first, *later])

    assert_values(run(work()), [0, *(2 * v for v in range(20, 30))])
    assert queue.statistics().cancelled == 10


# ---------------------------------------------------------------- deadlines and hangs


def test_a_task_s_request_ends_at_its_deadline_while_the_model_hangs(start: Any) -> None:
    model = Held()
    queue = start(model)

    async def work() -> Any:
        hung = queue.asubmit(row(1), deadline=0.05)
        with pytest.raises(DeadlineExceededError):
            await hung
        with pytest.raises(DeadlineExceededError, match="waited for a worker"):
            await queue.asubmit(row(2), deadline=0.02)
        kept = queue.asubmit(row(3))
        model.open()
        return await kept

    assert values(run(work())) == [6]
    assert model.batches == [[1], [3]]


def test_a_task_s_request_ends_at_batch_timeout(start: Any) -> None:
    model = Held(held=1)
    queue = start(model, batch_timeout=0.05, leaves_threads=True)

    async def work() -> Any:
        with pytest.raises(WorkerHungError):
            await queue.asubmit(row(1))
        return await queue.asubmit(row(2))

    assert values(run(work())) == [4]


# ---------------------------------------------------------------- limits


def test_a_full_queue_does_not_block_the_event_loop(start: Any) -> None:
    model = Held()
    queue = start(model, max_pending=2, max_batch_size=1)

    async def work() -> Any:
        futures = [queue.asubmit(row(v)) for v in range(10)]
        await until(lambda: model.batches)
        assert queue.statistics().pending == 9
        model.open()
        return await asyncio.gather(*futures)

    assert_values(run(work()), [2 * v for v in range(10)])
    assert model.batches == [[float(v)] for v in range(10)]


def test_with_reject_a_task_too_many_gets_an_error(start: Any) -> None:
    model = Held()
    queue = start(model, max_pending=1, overflow="reject")

    async def work() -> Any:
        first = queue.asubmit(row(0))
        await until(lambda: model.batches)
        second = queue.asubmit(row(1))
        with pytest.raises(QueueFullError):
            await queue.asubmit(row(2))
        model.open()
        return await asyncio.gather(first, second)

    assert_values(run(work()), [0, 2])


def test_with_drop_oldest_the_task_that_waited_longest_gets_an_error(start: Any) -> None:
    model = Held()
    queue = start(model, max_pending=1, overflow="drop_oldest")

    async def work() -> Any:
        first = queue.asubmit(row(0))
        await until(lambda: model.batches)
        futures = [queue.asubmit(row(v)) for v in (1, 2, 3)]
        model.open()
        return await settled([first, *futures])

    ends = run(work())
    assert isinstance(ends[1], QueueFullError)
    assert isinstance(ends[2], QueueFullError)
    assert_values([ends[0], ends[3]], [0, 6])


def test_priority_orders_the_requests_of_tasks(start: Any) -> None:
    model = Held()
    queue = start(model, max_batch_size=1, aging=1000.0)

    async def work() -> Any:
        first = queue.asubmit(row(0))
        await until(lambda: model.batches)
        futures = [queue.asubmit(row(v), priority=v) for v in (1, 3, 2)]
        await until(lambda: queue.statistics().pending == 3)
        model.open()
        await asyncio.gather(first, *futures)

    run(work())
    assert model.batches == [[0], [3], [2], [1]]


# ---------------------------------------------------------------- closing


def test_tasks_that_wait_when_the_queue_is_closed_get_an_error_and_are_not_cancelled(start: Any) -> None:
    model = Held()
    queue = start(model)

    async def work() -> Any:
        first = queue.asubmit(row(0))
        await until(lambda: model.batches)
        futures = [queue.asubmit(row(v)) for v in range(1, 5)]
        await until(lambda: queue.statistics().pending == 4)
        closing = in_thread(lambda: queue.close(cancel_pending=True))
        ends = await settled(futures)
        model.open()
        assert values(await first) == [0]
        assert await asyncio.get_running_loop().run_in_executor(None, closing)
        return ends

    assert all(isinstance(end, QueueClosedError) for end in run(work()))


def test_a_request_sent_in_the_turn_in_which_the_queue_is_closed_gets_an_error(start: Any) -> None:
    queue = start(doubled)

    async def work() -> Any:
        futures = [queue.asubmit(row(v)) for v in range(3)]
        queue.close()
        return await settled(futures)

    ends = run(work())
    assert all(isinstance(end, QueueClosedError) for end in ends)
    assert len({id(end) for end in ends}) == 3, "each its own exception"


def test_after_closing_asubmit_raises(start: Any) -> None:
    queue = start(doubled)
    queue.close()

    async def work() -> None:
        with pytest.raises(QueueClosedError):
            queue.asubmit(row(1))  # at once, and not only where it is awaited
        with pytest.raises(QueueClosedError):
            queue.asubmit(row(1), deadline=LONG)

    run(work())


def test_closing_lets_waiting_tasks_finish(start: Any) -> None:
    model = Held()
    queue = start(model, max_batch_size=2, max_pending=3)

    async def work() -> Any:
        futures = [queue.asubmit(row(v)) for v in range(20)]
        await until(lambda: queue.statistics().accepted == 20)
        closing = in_thread(queue.close)
        model.open()
        results = await asyncio.gather(*futures)
        assert await asyncio.get_running_loop().run_in_executor(None, closing)
        return results

    assert_values(run(work()), [2 * v for v in range(20)])


def test_an_async_service_that_drops_its_queue_gets_all_results() -> None:
    async def work() -> Any:
        queue = sw.BatchQueue(doubled, num_workers=1)
        futures = [queue.asubmit(row(v)) for v in range(30)]
        del queue
        gc.collect()
        return await asyncio.gather(*futures)

    assert_values(run(work()), [2 * v for v in range(30)])


# ---------------------------------------------------------------- many


def test_1000_tasks_that_come_and_go_each_end_once(start: Any) -> None:
    queue = start(doubled, num_workers=2, max_batch_size=16, max_pending=50)
    ended = []

    async def one(v: int) -> None:
        try:
            result = await asyncio.wait_for(queue.asubmit(row(v)), 1e-4 if v % 7 == 0 else LONG)
            ended.append((v, values(result)[0]))
        except TimeoutError:
            ended.append((v, None))

    async def work() -> None:
        tasks = [asyncio.create_task(one(v)) for v in range(1000)]
        for v in range(3, 1000, 11):
            tasks[v].cancel()
        await settled(tasks)

    run(work())
    queue.drain(LONG)
    assert len({v for v, _ in ended}) == len(ended)
    assert all(result in (None, 2.0 * v) for v, result in ended)
    assert_adds_up(queue.statistics())


def test_a_loop_in_a_thread_that_never_turns_holds_nobody_up(start: Any) -> None:
    queue = start(doubled)
    stuck, release = threading.Event(), threading.Event()

    async def block() -> Any:
        future = queue.asubmit(row(1), deadline=LONG)
        stuck.set()
        release.wait(LONG)
        return await future

    blocked = in_thread(lambda: run(block()))
    assert stuck.wait(LONG)
    assert values(queue(row(2))) == [4]
    assert queue.drain(LONG)
    release.set()
    assert values(blocked()) == [2]


def test_a_request_waits_for_no_turn_of_another_loop(start: Any) -> None:
    model = Held()
    queue = start(model)
    with watched() as steps:

        async def work() -> Any:
            return await queue.asubmit(row(1))

        waiting = in_thread(lambda: run(work()))
        model.wait_for_call()
        second = in_thread(lambda: run(work()))
        wait_for_pending(queue, 1)
        model.open()
        assert values(waiting()) == values(second()) == [2]
    assert [step for step, _ in steps.seen if step == "Submit"]
