"""Counts which operations took which path, for tests and curious users."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ._choose import Choice
from ._state import observed


class Record:
    """How often each operation took each path. Safe to read while calls run.

    Attributes:
        counts: Calls by (operation, path).
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._guard = threading.Lock()

    def of(self, op: str, path: str) -> int:
        """Calls of one operation on one path."""
        return self.counts[op, path]

    def __call__(self, choice: Choice, run: Callable[..., Any], *args: Any) -> Any:
        with self._guard:
            self.counts[choice.signature.op, choice.path] += 1
        return run(*args)


@contextmanager
def record() -> Iterator[Record]:
    """Counts, in a ``with`` block, the calls of the calling thread or task by operation and path."""
    counted = Record()
    with observed(counted):
        yield counted
