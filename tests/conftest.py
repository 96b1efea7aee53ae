"""Fixtures of the runtime's tests."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import Held, assert_adds_up, eventually

from steelworks import BatchQueue

_numbers = itertools.count()


@pytest.fixture
def start() -> Iterator[Callable[..., BatchQueue]]:
    """Makes queues that are closed when the test is over, and checks what must hold of every queue then.

    Held models are opened first, so a failed test does not hang. What must hold: each accepted request
    ended exactly once (I2), and no thread is left.
    Pass ``leaves_threads=True`` where a model hangs on purpose.
    """
    made: list[tuple[BatchQueue, Any, bool]] = []

    def make(model: Any, *, leaves_threads: bool = False, **options: Any) -> BatchQueue:
        options.setdefault("name", f"queue{next(_numbers)}")
        options.setdefault("num_workers", 1)
        queue = BatchQueue(model, **options)
        made.append((queue, model, leaves_threads))
        return queue

    yield make
    for _, model, _ in made:
        if isinstance(model, Held):
            model.open()
    for queue, _, leaves_threads in made:
        ended = queue.close(cancel_pending=True, timeout=10)
        assert ended or leaves_threads, f"{queue} did not close"
        statistics = queue.statistics()
        assert_adds_up(statistics)
        assert statistics.pending == 0
        assert statistics.running == 0
        if not leaves_threads:
            name = f"{queue.options.name}-"
            eventually(
                lambda name=name: not any(t.name.startswith(name) for t in threading.enumerate()),
                "all threads of the queue end",
            )
