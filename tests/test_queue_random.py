"""Random programs: whatever is done at whatever moment, each accepted request ends exactly once (I2)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import random
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import LONG, StubPlan, assert_adds_up, eventually, row, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import steelworks as sw
from steelworks.errors import (
    DeadlineExceededError,
    InvalidInputError,
    QueueClosedError,
    QueueFullError,
    WorkerDiedError,
)

# What the model does with a request, by its value.
RAISES, DIES = 1000.0, 2000.0

# How a request may end that was well, bad, or deadly.
ENDS: dict[str, tuple[type[BaseException], ...]] = {
    "any": (
        concurrent.futures.CancelledError,
        asyncio.CancelledError,
        DeadlineExceededError,
        QueueClosedError,
        QueueFullError,
    ),
    "bad": (ArithmeticError,),
    "deadly": (WorkerDiedError,),
}

WAYS = ("submit", "call", "async", "map")


@dataclass(frozen=True)
class Send:
    """Send one request, or a few by ``map``."""

    way: str
    kind: str  # "well", "bad" or "deadly"
    deadline: float | None
    priority: float


@dataclass(frozen=True)
class Do:
    """Something else: "cancel", "drain", "look", "close", "cancel and close"."""

    what: str
    which: int = 0


sends = st.builds(
    Send,
    way=st.sampled_from(WAYS),
    kind=st.sampled_from(["well", "well", "well", "well", "bad", "deadly"]),
    deadline=st.sampled_from([None, None, None, 1e-6, 1e-3, 60.0]),
    priority=st.sampled_from([0.0, 0.0, 1.0, -1.0]),
)
others = st.builds(
    Do, what=st.sampled_from(["cancel", "cancel", "drain", "look", "look"]), which=st.integers(0, 30)
)
programs = st.lists(st.one_of(sends, sends, sends, others), max_size=14)


def model(x: torch.Tensor) -> torch.Tensor:
    for value in values(x):
        if value >= DIES:
            raise SystemExit
        if value >= RAISES:
            raise ArithmeticError
    return x * 2


def finish(batch: list[float]) -> list[torch.Tensor]:
    return list(model(torch.tensor(batch)[:, None]).split(1))


class Run:
    """Runs a program on a queue from several threads, and keeps the books."""

    def __init__(self, queue: sw.BatchQueue) -> None:
        self.queue = queue
        self.loop = asyncio.new_event_loop()
        self._looping = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._looping.start()
        self._lock = threading.Lock()
        self._numbers = iter(range(10**6))
        self.futures: list[Any] = []
        self.ended: Counter[int] = Counter()
        self.outcomes: list[tuple[Send, float, Any]] = []
        self.refused = 0

    def value(self, kind: str) -> float:
        base = {"well": 0.0, "bad": RAISES, "deadly": DIES}[kind]
        with self._lock:
            return base + next(self._numbers) % 500

    def keep(self, send: Send, value: float, end: Any) -> None:
        with self._lock:
            self.outcomes.append((send, value, end))

    def do(self, step: Send | Do) -> None:
        if isinstance(step, Do):
            self.other(step)
            return
        value = self.value(step.kind)
        try:
            getattr(self, step.way)(step, value)
        except (QueueFullError, QueueClosedError):
            with self._lock:
                self.refused += 1

    def submit(self, send: Send, value: float) -> None:
        future = self.queue.submit(row(value), deadline=send.deadline, priority=send.priority)
        with self._lock:
            number = len(self.futures)
            self.futures.append(future)
        future.add_done_callback(lambda f: self.count(number, send, value, f))

    def count(self, number: int, send: Send, value: float, future: Any) -> None:
        with self._lock:
            self.ended[number] += 1
        self.keep(send, value, end_of(future))

    def call(self, send: Send, value: float) -> None:
        try:
            end: Any = self.queue(row(value), deadline=send.deadline, priority=send.priority)
        except (QueueFullError, QueueClosedError) as error:
            end = error
        except Exception as error:
            end = error
        self.keep(send, value, end)

    def map(self, send: Send, value: float) -> None:
        requests: list[Any] = [row(value), "no tensor", row(1.0)]
        try:
            ends = list(self.queue.map(requests, priority=send.priority, return_exceptions=True))
        except QueueClosedError as error:
            ends = [error, InvalidInputError(), error]
        assert isinstance(ends.pop(1), InvalidInputError)
        self.keep(send, value, ends[0])
        self.keep(Send("map", "well", None, 0.0), 1.0, ends[1])

    def async_(self, send: Send, value: float) -> None:
        async def work() -> Any:
            return await self.queue.asubmit(row(value), deadline=send.deadline, priority=send.priority)

        future = asyncio.run_coroutine_threadsafe(work(), self.loop)
        with self._lock:
            number = len(self.futures)
            self.futures.append(future)
        future.add_done_callback(lambda f: self.count(number, send, value, f))

    def other(self, step: Do) -> None:
        if step.what == "cancel":
            with self._lock:
                future = self.futures[step.which % len(self.futures)] if self.futures else None
            if future is not None:
                future.cancel()
        elif step.what == "drain":
            self.queue.drain(0.001)
        elif step.what == "look":
            assert_adds_up(self.queue.statistics())
        else:
            self.queue.close(cancel_pending=step.what == "cancel and close", timeout=LONG)

    def stop_loop(self) -> None:
        async def others() -> None:  # cancelled from outside, they may be a turn behind
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(others(), self.loop).result(LONG)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._looping.join(LONG)
        self.loop.close()


setattr(Run, "async", Run.async_)


def end_of(future: Any) -> Any:
    try:
        return future.result(0)
    except BaseException as error:
        return error


def check_end(send: Send, value: float, end: Any) -> None:
    if isinstance(end, torch.Tensor):
        assert send.kind == "well"
        assert values(end) == [2 * value], "another request's answer"
    else:
        allowed = ENDS["any"] + ENDS.get(send.kind, ())
        assert isinstance(end, allowed), (send, repr(end))


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    programs=st.lists(programs, min_size=1, max_size=4),
    closing=st.sampled_from([None, None, "close", "cancel and close"]),
    closing_at=st.integers(0, 14),
    workers=st.integers(1, 2),
    depth=st.integers(1, 2),
    batch=st.integers(1, 4),
    pending=st.sampled_from([1, 2, 5, 100]),
    overflow=st.sampled_from(["block", "block", "reject", "drop_oldest"]),
    kind=st.sampled_from(["model", "plan", "leading plan", "express plan"]),
    max_wait=st.sampled_from([0.0, 0.0, 0.001]),
)
def test_in_any_program_every_accepted_request_ends_exactly_once(
    programs: list[list[Send | Do]],
    closing: str | None,
    closing_at: int,
    workers: int,
    depth: int,
    batch: int,
    pending: int,
    overflow: Any,
    kind: str,
    max_wait: float,
) -> None:
    logging.disable(logging.CRITICAL)  # workers die by the dozen here
    target: Any = model
    if kind != "model":
        target = StubPlan(
            finish=finish,
            any_thread=kind == "leading plan",
            express=kind == "express plan",
            max_batch_size=batch,
        )
    queue = sw.BatchQueue(
        target,
        max_batch_size=batch,
        num_workers=workers,
        depth=depth,
        max_pending=pending,
        overflow=overflow,
        max_wait=max_wait,
        name="random",
    )
    if closing is not None:
        programs[0].insert(min(closing_at, len(programs[0])), Do(closing))
    run = Run(queue)
    failures: list[BaseException] = []

    def work(program: list[Send | Do]) -> None:
        for step in program:
            # A model that a caller runs on its own thread ends that caller's thread, not a worker.
            if kind in ("leading plan", "express plan") and isinstance(step, Send) and step.kind == "deadly":
                continue
            try:
                run.do(step)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(program,), daemon=True) for program in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive(), "a caller hangs"
    assert queue.close(timeout=LONG)
    eventually(lambda: all(future.done() for future in run.futures), "every future is done")
    run.stop_loop()
    logging.disable(logging.NOTSET)
    assert not failures, failures
    eventually(lambda: len(run.ended) == len(run.futures), "every callback was called")
    assert set(run.ended.values()) <= {1}
    for send, value, end in run.outcomes:
        check_end(send, value, end)
    statistics = queue.statistics()
    assert_adds_up(statistics)
    assert statistics.pending == statistics.running == 0
    results = sum(isinstance(end, torch.Tensor) for _, _, end in run.outcomes)
    assert statistics.completed >= results
    assert statistics.accepted <= len(run.outcomes)
    eventually(
        lambda: not any(t.name.startswith("random-") for t in threading.enumerate()),
        "all threads of the queue end",
    )


@pytest.mark.parametrize("seed", range(3))
def test_at_an_interpreter_exit_at_any_moment_every_accepted_request_has_ended(seed: int) -> None:
    script = """
        import atexit, random, sys, threading
        accepted = []

        def check():  # registered before the queue's own, so it runs after it
            print("accepted", len(accepted) > 0, "missing", sum(not f.done() for f in list(accepted)))

        atexit.register(check)
        import torch
        import steelworks as sw

        torch.set_num_threads(1)
        dice = random.Random(SEED)
        moment = dice.randint(1, 400)

        def model(x):
            if (x == 13).any():
                raise ValueError
            if (x == 17).any():
                raise SystemExit
            return x * 2

        import logging
        logging.disable(logging.CRITICAL)
        queues = [sw.BatchQueue(model, num_workers=2, max_batch_size=4, max_pending=50) for _ in range(2)]
        enough = threading.Event()

        def work(queue):
            for i in range(100000):
                try:
                    deadline = dice.choice([None, 1e-4])
                    future = queue.submit(torch.full((1, 1), float(i % 20)), deadline=deadline)
                except sw.errors.SteelworksError:
                    return
                accepted.append(future)
                if dice.random() < 0.1:
                    future.cancel()
                if i == moment:
                    enough.set()

        for queue in queues:
            for _ in range(2):
                threading.Thread(target=work, args=(queue,), daemon=True).start()
        enough.wait()
        sys.exit(random.Random(SEED).randint(0, 3))
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script).replace("SEED", str(seed))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    code = random.Random(seed).randint(0, 3)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout == "accepted True missing 0\n"
