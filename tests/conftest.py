"""Fixtures of the runtime's tests."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    # Read when triton is imported, by whichever test comes first.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from helpers import Held, assert_adds_up, eventually
from hypothesis import Phase, settings

from steelworks import BatchQueue

_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where tests/kernels runs the Metal kernels."""
    parser.addoption("--kernels-on", choices=["metalsim", "mps"], default="metalsim")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much of the corpus of planted defects was found."""
    stats, file = terminalreporter.stats, "test_metal_corpus.py::"
    found = ("test_the_planted_defect_is_found", "test_a_kernel_that_can_not_be_made_is_refused")
    for words, tests in (
        ("planted defects found", found),
        ("corrected twins without a finding", ("test_the_corrected_twin_is_silent",)),
    ):
        passed, failed = (
            sum(any(file + test in r.nodeid for test in tests) for r in stats.get(outcome, ()))
            for outcome in ("passed", "failed")
        )
        if passed + failed:
            terminalreporter.write_line(f"metalsim: {passed} of {passed + failed} {words}")


# The same examples in every run; for others: pytest --hypothesis-profile=default
settings.register_profile("same-examples", derandomize=True)
settings.load_profile("same-examples")
# For scripts/planted_bugs.py: that a property fails is enough there; the smallest example is not needed.
settings.register_profile("find-only", phases=[Phase.explicit, Phase.reuse, Phase.generate])


def assert_nothing_is_left(queue: BatchQueue) -> None:
    """The books of a queue that has closed: each thing that was counted up was counted down again."""
    scheduler = queue._scheduler
    books = {
        "rows that wait": scheduler._pending.rows,
        "rows that run": scheduler._running_rows,
        "lanes": len(scheduler._pending._lines),
        "parked": scheduler._parked_live,
        "idle workers": len(scheduler._idle),
        "borrowers": len(scheduler._borrowers),
        "busy workers": len(scheduler._busy),
        "deliveries": len(scheduler._delivering),
        "threads that drain": scheduler._draining,
        "workers": queue._crew.alive(),
    }
    assert not any(books.values()), f"{queue} is closed, and still has {books}"


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
        if ended:
            assert_nothing_is_left(queue)
        if not leaves_threads:
            name = f"{queue.options.name}-"
            eventually(
                lambda name=name: not any(t.name.startswith(name) for t in threading.enumerate()),
                "all threads of the queue end",
            )
