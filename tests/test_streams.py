"""StreamPool: a stream of its own for every thread, for as long as the thread lives."""

from __future__ import annotations

import gc
import os
import random
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from steelworks import seam
from steelworks.devices import CPUDevice, Device, MPSDevice, Stream
from steelworks.devices.base import Capabilities, Hazard
from steelworks.errors import (
    DeviceRuleError,
    ForkedProcessError,
    InvalidInputError,
    StreamPoolExhaustedError,
)
from steelworks.streams import StreamPool, StreamPoolClosedError, _ledger
from steelworks.streams._ledger import Lease
from steelworks.testing import FakeMPS

PATIENCE = 30.0


class CountingStream(Stream):
    """Counts the threads inside, and notes what was asked of it."""

    def __init__(self, device: GPU, number: int) -> None:
        self._device = device
        self._id = number
        self.inside = 0
        self.most_inside = 0
        self._lock = threading.Lock()

    @property
    def id(self) -> int:
        return self._id

    def use(self) -> AbstractContextManager[None]:
        if self._device.refuse:
            raise DeviceRuleError("refused")
        return CurrentStream(self)

    def synchronize(self) -> None:
        pass

    def follow_current(self) -> None:
        now = self._device.now()
        if now is not self:
            self._device.followed.append((self._id, None if now is None else now.id))


class CurrentStream(AbstractContextManager[None]):
    """Makes a stream its thread's current one."""

    def __init__(self, stream: CountingStream) -> None:
        self.stream = stream
        self.before: CountingStream | None = None
        self.thread = threading.get_ident()

    def __enter__(self) -> None:
        with self.stream._lock:
            self.stream.inside += 1
            self.stream.most_inside = max(self.stream.most_inside, self.stream.inside)
        self.before = self.stream._device.now()
        self.stream._device.current.stream = self.stream

    def __exit__(self, *_: object) -> None:
        if self.thread == threading.get_ident():
            self.stream._device.current.stream = self.before
        with self.stream._lock:
            self.stream.inside -= 1


class GPU(Device):
    """A device with streams, and nothing else, that does not survive fork()."""

    def __init__(self, max_streams: int = 32) -> None:
        self.torch_device = torch.device("cuda", 0)
        self.max_streams = max_streams
        self.made: list[CountingStream] = []
        self.current = threading.local()
        self.followed: list[tuple[int, int | None]] = []
        self.refuse = False
        self.fail_new = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("cuda", "GPU", True, self.max_streams, False, False, 1, 99, 2)

    def now(self) -> CountingStream | None:
        return getattr(self.current, "stream", None)

    def hazards(self) -> tuple[Hazard, ...]:
        return ()

    def new_stream(self) -> Stream:
        if self.fail_new:
            raise MemoryError("no stream")
        self.made.append(CountingStream(self, len(self.made) + 1))
        return self.made[-1]

    def worker_scope(self, index: int, count: int) -> AbstractContextManager[None]:
        raise NotImplementedError

    def set_thread_share(self, cores: int) -> None:
        pass

    def copy_in(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def copy_out(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def record(self, tensor: torch.Tensor, stream: Stream) -> None:
        pass

    def warm_up(self, call: Callable[[], object]) -> None:
        call()


class Running:
    """A thread whose outcome can be had."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call: Callable[[], Any] | None = call
        self._error: BaseException | None = None
        self._value: Any = None
        self._thread = threading.Thread(target=self._body, daemon=True)
        self._thread.start()

    def _body(self) -> None:
        assert self._call is not None
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error
        self._call = None

    @property
    def ident(self) -> int | None:
        return self._thread.ident

    def result(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the thread did not end"
        if self._error is not None:
            raise self._error
        return self._value


class Holder:
    """A thread that takes its stream and keeps it until it is told to end."""

    def __init__(self, pool: StreamPool) -> None:
        self._pool = pool
        self._has = threading.Event()
        self._end = threading.Event()
        self.stream: Stream | None = None
        self._running = Running(self._body)

    def _body(self) -> None:
        try:
            with self._pool.stream() as self.stream:
                pass
        finally:
            self._has.set()
        assert self._end.wait(PATIENCE)

    def started(self) -> Holder:
        """Wait until it has its stream."""
        assert self._has.wait(PATIENCE)
        return self

    def end(self) -> None:
        """End the thread, and wait until it is gone."""
        self._end.set()
        self._running.result()


class Script:
    """A seam hook: counts steps, tells when one is taken, and can stop a thread before one."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, dict[str, Any]]] = []
        self._changed = threading.Condition()
        self._before: list[tuple[str, int]] = []
        self.gates: dict[str, threading.Event] = {}

    def before(self, step: str, subject: object) -> None:
        with self._changed:
            self._before.append((step, threading.get_ident()))
            self._changed.notify_all()
        gate = self.gates.get(step)
        if gate is not None:
            assert gate.wait(PATIENCE)

    def after(self, step: str, subject: object, observed: dict[str, Any]) -> None:
        with self._changed:
            self.taken.append((step, observed))
            self._changed.notify_all()

    def await_before(self, step: str, count: int = 1) -> None:
        """Wait until ``count`` threads have come to ``step``."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: sum(name == step for name, _ in self._before) >= count, PATIENCE
            ), f"{step} was not reached {count} times: {self._before}"

    def outcomes(self, step: str) -> list[Any]:
        return [observed.get("outcome") for name, observed in self.taken if name == step]


@pytest.fixture
def gpu() -> GPU:
    return GPU()


def stream_in(pool: StreamPool) -> Stream:
    with pool.stream() as stream:
        return stream


# A thread's own stream


def test_threads_that_live_at_the_same_time_have_different_streams(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=8)
    holders = [Holder(pool).started() for _ in range(8)]
    assert len({id(holder.stream) for holder in holders}) == 8
    for holder in holders:
        holder.end()


def test_a_thread_gets_the_same_stream_every_time(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=8)
    others = [Holder(pool).started() for _ in range(3)]
    assert len({id(stream_in(pool)) for _ in range(5)}) == 1
    for other in others:
        other.end()


def test_a_block_inside_a_block_has_the_same_stream(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1, exhausted="error")
    with pool.stream() as outer, pool.stream() as inner:
        assert inner is outer
        assert gpu.now() is outer
    assert gpu.now() is None


def test_an_inner_block_makes_the_stream_current_again(gpu: GPU) -> None:
    pool = StreamPool(gpu)
    other = gpu.new_stream()
    with pool.stream() as mine, other.use():
        assert gpu.now() is other
        with pool.stream():
            assert gpu.now() is mine
        assert gpu.now() is other


def test_on_entry_the_stream_follows_the_one_that_was_current(gpu: GPU) -> None:
    pool = StreamPool(gpu)
    other = gpu.new_stream()
    with other.use():
        with pool.stream() as mine:
            with pool.stream():
                pass
    assert gpu.followed == [(mine.id, other.id)]


def test_streams_are_made_when_they_are_needed_and_used_again(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=32)
    for _ in range(5):
        Running(lambda: stream_in(pool)).result()
    assert len(gpu.made) == 1


def test_the_block_manager_serves_one_block_at_a_time(gpu: GPU) -> None:
    use = StreamPool(gpu).stream()
    with use:
        with pytest.raises(DeviceRuleError, match=r"call pool\.stream\(\) for another"):
            use.__enter__()
    with use:
        pass


# Giving back


def test_the_stream_goes_back_when_the_thread_ends(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1, exhausted="error")
    Running(lambda: stream_in(pool)).result()
    assert pool.statistics().free == 1
    stream_in(pool)


def test_the_stream_goes_back_when_the_thread_dies_of_an_exception(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1, exhausted="error")

    def die() -> None:
        with pool.stream():
            raise SystemExit

    dead = Running(die)
    with pytest.raises(SystemExit):
        dead.result()  # the exception, and with it the thread's frames, is alive
    assert pool.statistics().free == 1


def test_a_kept_traceback_does_not_keep_the_stream(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1, exhausted="error")

    def die() -> None:
        use = pool.stream()
        with use:
            raise KeyError

    dead = Running(die)
    with pytest.raises(KeyError) as kept:
        dead.result()
    assert pool.statistics().free == 1
    assert kept.value.__traceback__ is not None


def test_release_gives_the_stream_back_while_the_thread_lives(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1, exhausted="error")
    stream_in(pool)
    with pytest.raises(StreamPoolExhaustedError):
        Running(lambda: stream_in(pool)).result()
    pool.release()
    Running(lambda: stream_in(pool)).result()


def test_release_without_a_stream_does_nothing(gpu: GPU) -> None:
    pool = StreamPool(gpu)
    pool.release()
    stream_in(pool)
    pool.release()
    pool.release()
    assert pool.statistics().returned_total == 1


def test_release_inside_the_block_is_refused_and_changes_nothing(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1)
    with pool.stream() as stream:
        with pytest.raises(DeviceRuleError, match="leave the block first"):
            pool.release()
        with pool.stream() as again:
            assert again is stream


def test_a_thread_that_comes_back_after_release_gets_a_stream_again(gpu: GPU) -> None:
    pool = StreamPool(gpu)
    first = stream_in(pool)
    pool.release()
    assert stream_in(pool) is first


def test_a_generator_left_suspended_in_the_block_keeps_the_stream_until_it_is_closed(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1, exhausted="error")

    def generate() -> Iterator[int]:
        with pool.stream():
            yield 1

    generator = generate()
    Running(lambda: next(generator)).result()
    assert pool.statistics().in_use == 1
    mine = gpu.new_stream()
    with mine.use():
        generator.close()
        assert gpu.now() is mine, "closing it in this thread changed this thread's current stream"
    assert pool.statistics().free == 1


def test_dropping_a_pool_needs_no_garbage_collection(gpu: GPU) -> None:
    pool = StreamPool(gpu)
    stream_in(pool)
    gone, ledger = weakref.ref(pool), weakref.ref(pool._ledger.slots[0].stream)  # type: ignore[arg-type]
    gpu.made.clear()
    gc.disable()
    try:
        del pool
        assert gone() is None
        assert ledger() is None
    finally:
        gc.enable()


# When all are held


def test_a_waiting_thread_gets_the_stream_of_one_that_ends(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1)
    holder = Holder(pool).started()
    with seam.installed(Script()) as script:
        waiting = Running(lambda: stream_in(pool))
        script.await_before("Wait")
        assert pool.statistics().waiting == 1
        holder.end()
        assert waiting.result() is holder.stream
    assert pool.statistics().waited_total == 1


def test_a_waiting_thread_gets_the_stream_of_one_that_releases(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1)
    mine = stream_in(pool)
    with seam.installed(Script()) as script:
        waiting = Running(lambda: stream_in(pool))
        script.await_before("Wait")
        pool.release()
        assert waiting.result() is mine


def test_who_waits_longest_is_served_first(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1)
    served: list[int] = []

    def take(number: int) -> None:
        with pool.stream():
            served.append(number)

    holder = Holder(pool).started()
    with seam.installed(Script()) as script:
        waiting = []
        for number in range(6):
            waiting.append(Running(lambda number=number: take(number)))  # type: ignore[misc]
            script.await_before("Wait", number + 1)
        holder.end()
        for thread in waiting:
            thread.result()
    assert served == [0, 1, 2, 3, 4, 5]


def test_a_thread_that_comes_later_does_not_get_ahead_of_one_that_waits(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1)
    stream_in(pool)
    with seam.installed(Script()) as script:
        script.gates["Wait"] = threading.Event()  # the waiter can't even look
        waiting = Running(lambda: Holder(pool).started())
        script.await_before("Wait")
        pool.release()
        late = Running(lambda: stream_in(pool))
        script.await_before("Wait", 2)  # queued, though the stream was given back before it came
        assert pool.statistics().in_use == 1
        script.gates["Wait"].set()
        holder = waiting.result()
        holder.end()
        late.result()


def test_a_thread_that_releases_can_not_snatch_the_stream_back(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1, timeout=0)
    stream_in(pool)
    with seam.installed(Script()) as script:
        look = script.gates["Wait"] = threading.Event()
        waiting = Running(lambda: stream_in(pool))
        script.await_before("Wait")
        pool.release()
        script.gates.clear()
        with pytest.raises(StreamPoolExhaustedError):
            stream_in(pool)
        look.set()
        waiting.result()


def test_each_return_wakes_one_waiting_thread(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=3)
    holders = [Holder(pool).started() for _ in range(3)]
    with seam.installed(Script()) as script:
        waiting = [Holder(pool) for _ in range(3)]
        script.await_before("Wait", 3)
        for left, holder in enumerate(holders, start=1):
            holder.end()
            assert pool.statistics().waiting == 3 - left
        for thread in waiting:
            thread.started().end()
    assert pool.statistics().free == 3


def test_a_wait_ends_with_an_error_after_its_timeout(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1, timeout=0.01)
    holder = Holder(pool).started()
    with pytest.raises(StreamPoolExhaustedError, match=r"none of the 1 streams came free in 0\.01 s"):
        stream_in(pool)
    statistics = pool.statistics()
    assert (statistics.waiting, statistics.exhausted_total, statistics.in_use) == (0, 1, 1)
    holder.end()
    stream_in(pool)


def test_a_wait_that_times_out_has_left_the_queue_when_it_is_reported(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1, timeout=0)
    holder = Holder(pool).started()
    waiting: list[int] = []

    class Look(Script):
        def after(self, step: str, subject: object, observed: dict[str, Any]) -> None:
            if step == "Wait":
                waiting.append(pool.statistics().waiting)

    with seam.installed(Look()), pytest.raises(StreamPoolExhaustedError):
        stream_in(pool)
    assert waiting == [0]
    holder.end()


def test_a_stream_handed_over_just_after_the_timeout_is_taken_and_not_lost(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1, timeout=0)
    stream_in(pool)

    class HandOver(Script):
        """Gives the stream back between the other thread's queueing and its look."""

        def before(self, step: str, subject: object) -> None:
            if step == "Wait":
                mine, other = threading.Event(), threading.Event()
                self.hand_over = (mine, other)
                super().before(step, subject)
                assert other.wait(PATIENCE)
            else:
                super().before(step, subject)

    script = HandOver()
    with seam.installed(script):
        waiting = Running(lambda: stream_in(pool))
        script.await_before("Wait")
        pool.release()
        script.hand_over[1].set()
        waiting.result()
    assert script.outcomes("Wait") == ["granted"]
    assert pool.statistics().exhausted_total == 0


def test_an_interrupted_wait_leaves_no_place_in_the_queue(gpu: GPU, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = StreamPool(gpu, size=1)
    holder = Holder(pool).started()

    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_ledger.Ledger, "_sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stream_in(pool)
    assert pool.statistics().waiting == 0
    holder.end()
    assert pool.statistics().free == 1


def test_a_hand_over_to_a_thread_that_is_interrupted_goes_to_the_next(
    gpu: GPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = StreamPool(gpu, size=1)
    stream_in(pool)

    def granted_then_interrupted(ledger: _ledger.Ledger, lease: Lease, timeout: float | None) -> bool:
        pool.release()
        assert lease.slot is not None
        raise KeyboardInterrupt

    # The same thread plays both parts, so that the order is certain.
    lease = Lease(pool._ledger)  # kept, as a traceback may
    with monkeypatch.context() as patch:
        patch.setattr(_ledger.Ledger, "_sleep", granted_then_interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool._ledger.acquire(lease, None)
    assert pool.statistics().free == 1
    del lease
    assert pool.statistics().returned_total == 2


def test_a_long_wait_is_told_in_the_log_once(
    gpu: GPU, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_ledger, "_WARN_AFTER", 0.01)
    pool = StreamPool(gpu, size=1, timeout=0.03)
    holder = Holder(pool).started()
    for _ in range(2):
        with pytest.raises(StreamPoolExhaustedError):
            stream_in(pool)
    assert len(caplog.records) == 1
    assert "call pool.release()" in caplog.text
    holder.end()


def test_error_refuses_at_once_and_says_what_to_do(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=2, exhausted="error")
    holders = [Holder(pool).started() for _ in range(2)]
    with pytest.raises(StreamPoolExhaustedError, match=r"all 2 streams belong to threads; make size= larger"):
        stream_in(pool)
    assert pool.statistics().exhausted_total == 1
    for holder in holders:
        holder.end()
    stream_in(pool)


# Sharing


def test_share_hands_out_the_stream_with_the_fewest_threads(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=3, exhausted="share")
    holders = [Holder(pool).started() for _ in range(7)]
    counts = sorted([holder.stream for holder in holders].count(stream) for stream in gpu.made)
    assert counts == [2, 2, 3]
    statistics = pool.statistics()
    assert (statistics.in_use, statistics.shared_total, statistics.acquired_total) == (3, 4, 7)
    for holder in holders:
        holder.end()
    assert pool.statistics().free == 3


def test_threads_that_share_a_place_make_one_stream(gpu: GPU, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = StreamPool(gpu, size=1, exhausted="share")
    first_came, second_came, make = threading.Event(), threading.Event(), gpu.new_stream

    def slow() -> Stream:
        if first_came.is_set():
            second_came.set()
        first_came.set()
        second_came.wait(0.2)  # gives a second maker, if there is one, the time to come
        return make()

    monkeypatch.setattr(gpu, "new_stream", slow)
    first = Running(lambda: stream_in(pool))
    assert first_came.wait(PATIENCE)
    second = Running(lambda: stream_in(pool))
    assert first.result() is second.result()
    assert len(gpu.made) == 1


def test_a_shared_stream_is_free_when_its_last_thread_has_ended(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1, exhausted="share")
    first, second = Holder(pool).started(), Holder(pool).started()
    first.end()
    assert pool.statistics().in_use == 1
    second.end()
    assert pool.statistics().in_use == 0


def test_threads_that_share_a_stream_take_turns_inside_the_block(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1, exhausted="share")
    with seam.installed(Script()) as script:
        with pool.stream() as stream:
            other = Running(lambda: stream_in(pool))
            script.await_before("Share", 2)
            with pool.stream() as inner:
                assert inner is stream
        other.result()
    assert gpu.made[0].most_inside == 1 + 1  # this thread's two levels, and never the other's


def test_many_threads_on_few_shared_streams_never_meet_inside_one(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=2, exhausted="share")
    all_have_theirs = threading.Barrier(8)

    def work() -> None:
        stream_in(pool)
        all_have_theirs.wait(PATIENCE)
        for _ in range(50):
            with pool.stream():
                pass

    for thread in [Running(work) for _ in range(8)]:
        thread.result()
    assert [stream.most_inside for stream in gpu.made] == [1, 1]


def test_waiting_for_a_turn_ends_with_an_error_after_the_timeout(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1, exhausted="share", timeout=0.01)
    with pool.stream():
        with pytest.raises(StreamPoolExhaustedError, match=r"leave 'with pool\.stream\(\)' sooner"):
            Running(lambda: stream_in(pool)).result()
    assert pool.statistics().exhausted_total == 1
    stream_in(pool)


# Statistics, closing, and wrong use


def test_statistics_add_up_through_a_life(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=4)
    holders = [Holder(pool).started() for _ in range(3)]
    statistics = pool.statistics()
    assert (statistics.size, statistics.in_use, statistics.free, statistics.waiting) == (4, 3, 1, 0)
    assert (statistics.acquired_total, statistics.returned_total) == (3, 0)
    for holder in holders:
        holder.end()
    statistics = pool.statistics()
    assert (statistics.in_use, statistics.free, statistics.returned_total) == (0, 4, 3)


def test_closing_refuses_those_who_wait_and_those_who_come(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1)
    holder = Holder(pool).started()
    with seam.installed(Script()) as script:
        waiting = Running(lambda: stream_in(pool))
        script.await_before("Wait")
        pool.close()
        with pytest.raises(StreamPoolClosedError, match="closed while this thread waited"):
            waiting.result()
    with pytest.raises(StreamPoolClosedError, match="is closed; make a new one"):
        stream_in(pool)
    holder.end()
    statistics = pool.statistics()
    assert (statistics.closed, statistics.free, statistics.waiting) == (True, 1, 0)


def test_a_thread_that_has_a_stream_is_refused_after_closing_too(gpu: GPU) -> None:
    pool = StreamPool(gpu)
    stream_in(pool)
    pool.close()
    with pytest.raises(StreamPoolClosedError):
        stream_in(pool)


def test_a_block_that_is_open_when_the_pool_closes_ends_as_usual(gpu: GPU) -> None:
    pool = StreamPool(gpu)
    with pool.stream() as stream:
        pool.close()
        pool.close()
        assert gpu.now() is stream
    assert gpu.now() is None


def test_the_pool_is_closed_at_the_end_of_its_with_block(gpu: GPU) -> None:
    with StreamPool(gpu) as pool:
        stream_in(pool)
    with pytest.raises(StreamPoolClosedError):
        stream_in(pool)


def test_a_closed_pool_keeps_no_stream(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=2)
    holder = Holder(pool).started()
    Running(lambda: stream_in(pool)).result()
    pool.close()
    holder.end()
    assert [slot.stream for slot in pool._ledger.slots] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size=0 was given"),
        ({"size": True}, "size=True was given"),
        ({"size": 2.0}, "size=2.0 was given"),
        ({"exhausted": "panic"}, "use 'wait', 'share' or 'error'"),
        ({"timeout": -1}, "timeout=-1 was given"),
        ({"timeout": float("nan")}, "timeout=nan was given"),
        ({"timeout": "1"}, "timeout='1' was given"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(gpu: GPU, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        StreamPool(gpu, **arguments)


def test_a_device_with_fewer_streams_limits_the_size() -> None:
    assert StreamPool(GPU(max_streams=3), size=32).size == 3


@pytest.mark.parametrize("timeout", [1e9, float("inf")])
def test_a_timeout_longer_than_the_system_allows_is_no_limit(gpu: GPU, timeout: float) -> None:
    pool = StreamPool(gpu, size=1, timeout=timeout)
    holder = Holder(pool).started()
    with seam.installed(Script()) as script:
        waiting = Running(lambda: stream_in(pool))
        script.await_before("Wait")
        holder.end()
        waiting.result()


def test_a_stream_that_can_not_be_made_costs_no_place(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1, exhausted="error")
    gpu.fail_new = True
    with pytest.raises(MemoryError):
        stream_in(pool)
    assert pool.statistics().free == 1
    gpu.fail_new = False
    stream_in(pool)


@pytest.mark.parametrize("exhausted", ["wait", "share"])
def test_a_stream_that_can_not_be_used_costs_no_place_and_no_turn(gpu: GPU, exhausted: Any) -> None:
    pool = StreamPool(gpu, size=1, exhausted=exhausted, timeout=0)
    gpu.refuse = True
    with pytest.raises(DeviceRuleError, match="refused"):
        stream_in(pool)
    assert pool.statistics().free == 1
    gpu.refuse = False
    Running(lambda: stream_in(pool)).result()


# Finalizers at any moment


def test_a_return_in_the_middle_of_a_locked_section_does_not_deadlock(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=2)
    ledger = pool._ledger
    lease = Lease(ledger)
    ledger.acquire(lease, None)
    with ledger._section():
        del lease  # as a garbage collection inside the section would
        assert ledger.in_use == 1, "the section's state changed under it"
    assert pool.statistics().free == 2


def test_a_return_while_another_thread_is_in_the_section_wakes_the_waiter(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1)
    holder = Holder(pool).started()
    with seam.installed(Script()) as script:
        waiting = Running(lambda: stream_in(pool))
        script.await_before("Wait")
        with pool._ledger._section():
            holder.end()  # its finalizer can't have the lock
            assert pool._ledger.in_use == 1
        assert waiting.result() is holder.stream


def test_a_hand_over_to_a_lease_that_nobody_holds_goes_on_to_the_next(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=1)
    stream_in(pool)
    ledger = pool._ledger
    ledger._waiting.append(Lease(ledger))  # its thread was interrupted twice
    with seam.installed(Script()) as script:
        waiting = Running(lambda: stream_in(pool))
        script.await_before("Wait")
        pool.release()
        waiting.result()
    assert pool.statistics().free == 1


# Churn


def test_ten_thousand_short_threads_leave_nothing_behind(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=4, timeout=PATIENCE)
    threads_before = threading.active_count()
    gc.collect()
    leases_before = sum(type(thing) is Lease for thing in gc.get_objects())
    failures: list[BaseException] = []

    def use() -> None:
        try:
            with pool.stream():
                pass
        except BaseException as error:
            failures.append(error)

    for _ in range(1250):
        batch = [threading.Thread(target=use) for _ in range(8)]
        for thread in batch:
            thread.start()
        for thread in batch:
            thread.join()
    statistics = pool.statistics()
    assert failures == []
    assert (statistics.acquired_total, statistics.returned_total) == (10_000, 10_000)
    assert (statistics.free, statistics.waiting) == (4, 0)
    assert len(gpu.made) <= 4
    assert [stream.most_inside for stream in gpu.made] == [1] * len(gpu.made)
    assert threading.active_count() == threads_before
    assert not pool._ledger._returned
    gc.collect()
    assert sum(type(thing) is Lease for thing in gc.get_objects()) == leases_before


def test_every_thread_is_served_when_threads_release_interrupt_and_end_at_random(gpu: GPU) -> None:
    pool = StreamPool(gpu, size=3, timeout=PATIENCE)

    def work(seed: int) -> int:
        choose = random.Random(seed)
        for _ in range(60):
            with pool.stream():
                if choose.random() < 0.3:
                    gc.collect(0)
            if choose.random() < 0.7:
                pool.release()
        return 1

    # More threads than streams: each must let others have a turn, or end.
    for round_number in range(3):
        threads = [Running(lambda seed=seed: work(seed)) for seed in range(round_number, round_number + 12)]  # type: ignore[misc]
        assert sum(thread.result() for thread in threads) == 12
    statistics = pool.statistics()
    assert statistics.free == 3
    assert statistics.acquired_total == statistics.returned_total
    assert [stream.most_inside for stream in gpu.made] == [1] * len(gpu.made)


# The seam


def test_the_steps_are_announced_with_what_they_did(gpu: GPU) -> None:
    with seam.installed(Script()) as script:
        pool = StreamPool(gpu, size=1)
        stream_in(pool)
        waiting = Running(lambda: stream_in(pool))
        script.await_before("Wait")
        pool.release()
        waiting.result()
        pool.close()
    names = [name for name, _ in script.taken]
    assert names == ["Acquire", "Acquire", "Release", "Wait", "ThreadExit", "Close"]
    assert script.outcomes("Acquire") == ["granted", "queued"]
    assert script.outcomes("Wait") == ["granted"]


def test_a_thread_that_has_its_stream_takes_no_step(gpu: GPU) -> None:
    pool = StreamPool(gpu)
    stream_in(pool)
    with seam.installed(Script()) as script:
        stream_in(pool)
    assert script.taken == []


# The CPU


def threads_in(pool: StreamPool) -> int:
    with pool.stream():
        return torch.get_num_threads()


def test_on_the_cpu_a_thread_alone_may_use_all_cores() -> None:
    assert threads_in(StreamPool(CPUDevice(cores=6), size=32)) == 6


def test_on_the_cpu_threads_share_the_cores() -> None:
    pool = StreamPool(CPUDevice(cores=6), size=32)
    holder = Holder(pool).started()
    assert threads_in(pool) == 3
    holder.end()
    assert threads_in(pool) == 6


def test_on_the_cpu_a_thread_has_at_least_one_core() -> None:
    pool = StreamPool(CPUDevice(cores=2), size=32)
    holders = [Holder(pool).started() for _ in range(4)]
    assert threads_in(pool) == 1
    for holder in holders:
        holder.end()


def test_on_the_cpu_a_thread_gets_back_what_it_had() -> None:
    pool = StreamPool(CPUDevice(cores=9))
    before = torch.get_num_threads()
    with pool.stream():
        with pool.stream():
            assert torch.get_num_threads() == 9
    assert torch.get_num_threads() == before


def test_on_the_cpu_the_pool_may_be_larger_than_the_number_of_cores() -> None:
    assert StreamPool(CPUDevice(cores=2), size=32).size == 32


# MPS


def test_on_mps_one_thread_at_a_time_has_the_only_stream() -> None:
    fake = FakeMPS("2.13.0")
    pool = StreamPool(MPSDevice(backend=fake.torch), size=32)
    assert pool.size == 1

    def work() -> None:
        with pool.stream():
            fake.run("linear")
        pool.release()

    for thread in [Running(work) for _ in range(8)]:
        thread.result()
    assert len(fake.kinds) == 8
    fake.check()


def test_on_mps_a_stream_is_refused_while_a_worker_owns_the_device() -> None:
    device = MPSDevice(backend=FakeMPS("2.13.0").torch)
    pool = StreamPool(device)
    with device.worker_scope(0, 1):
        with pytest.raises(DeviceRuleError, match="owns the Apple GPU"):
            Running(lambda: stream_in(pool)).result()
        stream_in(pool)


def test_on_mps_with_streams_every_thread_has_its_own() -> None:
    fake = FakeMPS("2.15.0")
    pool = StreamPool(MPSDevice(backend=fake.torch, streams=True), size=32)

    def work() -> None:
        for _ in range(5):
            with pool.stream() as stream:
                fake.run("linear", (8, 8))
                fake.run("clone")
                stream.synchronize()

    for thread in [Running(work) for _ in range(8)]:
        thread.result()
    fake.check()
    assert 0 not in fake.streams_used
    assert fake.global_synchronizes == ()


# Fork and exit


def in_child(call: Callable[[], object]) -> object:
    """Run ``call`` in a forked child; 'ok', or what it raised, or that it hung."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            call()
            answer = "ok"
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        if select.select([pipe], [], [], PATIENCE)[0]:
            answer = pipe.read()
        else:
            os.kill(child, signal.SIGKILL)
            answer = "hung"
    os.waitpid(child, 0)
    return answer


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@needs_fork
def test_after_a_fork_the_cpu_has_a_fresh_pool() -> None:
    pool = StreamPool(CPUDevice(cores=4), size=2, exhausted="error")
    holders = [Holder(pool).started() for _ in range(2)]

    def use() -> None:
        assert pool.statistics().acquired_total == 0
        assert threads_in(pool) == 4

    with pool._ledger._section():  # as if another thread were in it at the fork
        assert in_child(use) == "ok"
    for holder in holders:
        holder.end()
    assert pool.statistics().free == 2


@needs_fork
def test_a_fork_inside_the_block_lets_the_child_leave_it() -> None:
    pool = StreamPool(CPUDevice(cores=4), size=1, exhausted="share")
    use = pool.stream()
    use.__enter__()

    def leave() -> None:
        use.__exit__(None, None, None)
        stream_in(pool)

    assert in_child(leave) == "ok"
    use.__exit__(None, None, None)


@needs_fork
def test_after_a_fork_a_gpus_pool_says_clearly_that_it_can_not_be_used(gpu: GPU) -> None:
    pool = StreamPool(gpu)
    stream_in(pool)
    answer = str(in_child(lambda: stream_in(pool)))
    assert answer.startswith(ForkedProcessError.__name__)
    assert "'spawn'" in answer
    stream_in(pool)


@needs_fork
def test_after_a_fork_a_gpus_pool_can_still_be_closed_and_asked(gpu: GPU) -> None:
    pool = StreamPool(gpu)

    def leave() -> None:
        pool.release()
        pool.statistics()
        pool.close()

    with pool._ledger._section():
        assert in_child(leave) == "ok"


def test_a_program_that_ends_with_streams_in_use_ends_quietly() -> None:
    script = """
import threading
from steelworks.streams import StreamPool
pool = StreamPool("cpu", size=2)
held = threading.Event()
def keep():
    with pool.stream():
        held.set()
        threading.Event().wait()
threading.Thread(target=keep, daemon=True).start()
held.wait()
with pool.stream():
    pass
block = pool.stream()
block.__enter__()
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


# A real GPU


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_threads_on_a_gpu_get_right_answers_on_streams_of_their_own() -> None:
    pool = StreamPool("cuda", size=4)
    device = pool.device
    weight = torch.randn(256, 256, device=device.torch_device)
    expected = [(torch.full((8, 256), float(n)) @ weight.cpu()) for n in range(8)]

    def work(number: int) -> tuple[int, torch.Tensor]:
        for _ in range(50):
            x = torch.full((8, 256), float(number), device=device.torch_device)  # on the default stream
            with pool.stream():
                y = device.copy_out(x @ weight)
        return torch.cuda.current_stream().cuda_stream, y

    for number, thread in enumerate([Running(lambda n=n: work(n)) for n in range(8)]):  # type: ignore[misc]
        outside, answer = thread.result()
        assert outside == torch.cuda.default_stream().cuda_stream
        torch.testing.assert_close(answer, expected[number], rtol=1e-2, atol=1e-2)
    assert pool.statistics().free == 4
