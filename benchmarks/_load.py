"""Load generators: a closed loop of blocking threads, and one of asyncio tasks.

Closed loop: a caller sends its next request when it has the answer to the last. The clock is host
time around the whole call, tokenising included.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks._common import short_error

HANG_GRACE_S = 20.0


@dataclass
class LoadResult:
    """What one closed loop gave; in ``latencies_ms`` NaN and in ``outputs`` None stand for "not answered"."""

    latencies_ms: np.ndarray
    outputs: list[Any]
    wall_s: float
    errors: list[str] = field(default_factory=list)
    hung_callers: int = 0
    truncated: bool = False

    @property
    def completed(self) -> int:
        """Requests that were answered with a result."""
        return int(np.count_nonzero(~np.isnan(self.latencies_ms)))


class _Book:
    """Hands out requests and keeps the results; every caller writes only its own entries."""

    def __init__(self, items: Sequence[Any], limit_s: float) -> None:
        self.items = items
        self.limit_s = limit_s
        self.counter = itertools.count()
        self.latencies = np.full(len(items), np.nan)
        self.outputs: list[Any] = [None] * len(items)
        self.errors: list[str] = []
        self.started = 0.0
        self.ended = 0.0

    def next(self) -> int | None:
        """The next request's number; None when there is none, or no time left."""
        if time.perf_counter() - self.started > self.limit_s:
            return None
        number = next(self.counter)
        return number if number < len(self.items) else None

    def keep(self, number: int, output: Any, began: float) -> None:
        self.ended = time.perf_counter()
        self.outputs[number] = output
        self.latencies[number] = (self.ended - began) * 1e3

    def result(self, hung: int) -> LoadResult:
        unsent = next(self.counter) < len(self.items)
        wall = max(self.ended - self.started, 1e-9)
        return LoadResult(self.latencies, self.outputs, wall, self.errors, hung, unsent)


def closed_loop_threads(
    call: Callable[[Any], Any], items: Sequence[Any], callers: int, limit_s: float
) -> LoadResult:
    """Send ``items`` from ``callers`` blocking threads; stop sending after ``limit_s`` seconds."""
    book = _Book(items, limit_s)
    gate = threading.Barrier(callers + 1)

    def caller() -> None:
        gate.wait()
        while (number := book.next()) is not None:
            began = time.perf_counter()
            try:
                output = call(items[number])
            except Exception as error:
                book.errors.append(short_error(error))
            else:
                book.keep(number, output, began)

    threads = [threading.Thread(target=caller, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    book.started = time.perf_counter()
    gate.wait()
    give_up = book.started + limit_s + HANG_GRACE_S
    for thread in threads:
        thread.join(max(give_up - time.perf_counter(), 0.0))
    return book.result(sum(thread.is_alive() for thread in threads))


async def closed_loop_tasks(
    call: Callable[[Any], Awaitable[Any]], items: Sequence[Any], callers: int, limit_s: float
) -> LoadResult:
    """The same from ``callers`` asyncio tasks of the running loop."""
    book = _Book(items, limit_s)

    async def caller() -> None:
        while (number := book.next()) is not None:
            began = time.perf_counter()
            try:
                output = await call(items[number])
            except Exception as error:
                book.errors.append(short_error(error))
            else:
                book.keep(number, output, began)

    book.started = time.perf_counter()
    tasks = [asyncio.create_task(caller()) for _ in range(callers)]
    _, pending = await asyncio.wait(tasks, timeout=limit_s + HANG_GRACE_S)
    for task in pending:
        task.cancel()
    return book.result(len(pending))
