"""Load generators: a closed loop of blocking threads, and one of asyncio tasks.

Closed loop: a caller sends its next request when it has the answer to the last. The clock is host
time around the whole call, tokenising included. The threads are those of the package's own commands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks._common import short_error
from steelworks.cli._load import StalledError, run_callers

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


def closed_loop_threads(
    call: Callable[[Any], Any], items: Sequence[Any], callers: int, limit_s: float
) -> LoadResult:
    """Send ``items`` from ``callers`` blocking threads; stop sending after ``limit_s`` seconds."""
    run = run_callers(
        call, items, callers, warm_up=0, time_limit=limit_s, stall_seconds=limit_s + HANG_GRACE_S
    )
    unsent = len(items) - len(run.latencies)
    seconds = [np.nan if one is None else one for one in run.latencies]
    hung = sum(isinstance(error, StalledError) for error in run.failures.values())
    return LoadResult(
        np.array(seconds + [np.nan] * unsent) * 1e3,
        run.outputs + [None] * unsent,
        max(run.seconds, 1e-9),
        [short_error(error) for error in run.failures.values() if not isinstance(error, StalledError)],
        hung,
        unsent > 0,
    )


async def closed_loop_tasks(
    call: Callable[[Any], Awaitable[Any]], items: Sequence[Any], callers: int, limit_s: float
) -> LoadResult:
    """The same from ``callers`` asyncio tasks of the running loop."""
    result = LoadResult(np.full(len(items), np.nan), [None] * len(items), 0.0)
    numbers = iter(range(len(items)))
    started = time.perf_counter()

    async def caller() -> None:
        while time.perf_counter() - started <= limit_s:
            number = next(numbers, None)
            if number is None:
                return
            began = time.perf_counter()
            try:
                output = await call(items[number])
            except Exception as error:
                result.errors.append(short_error(error))
            else:
                ended = time.perf_counter()
                result.wall_s = ended - started
                result.outputs[number] = output
                result.latencies_ms[number] = (ended - began) * 1e3

    tasks = [asyncio.create_task(caller()) for _ in range(callers)]
    _, pending = await asyncio.wait(tasks, timeout=limit_s + HANG_GRACE_S)
    for task in pending:
        task.cancel()
    result.hung_callers = len(pending)
    result.truncated = next(numbers, None) is not None
    result.wall_s = max(result.wall_s, 1e-9)
    return result
