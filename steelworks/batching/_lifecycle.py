"""What happens to live queues when the process forks or the interpreter exits."""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from typing import Protocol

logger = logging.getLogger("steelworks.batching")

EXIT_SECONDS = 10.0  # how long interpreter exit waits for requests that are still there, in all


class Live(Protocol):
    """What the life cycle needs of a queue."""

    def forked(self) -> None:
        """Called in a forked child, by the only thread there."""

    def at_exit(self, seconds: float) -> None:
        """Called once when the interpreter exits."""


_live: dict[int, weakref.ref[Live]] = {}


def register(queue: Live) -> None:
    """Have ``queue`` told about fork and exit for as long as it is alive."""
    key = id(queue)
    _live[key] = weakref.ref(queue, lambda _: _live.pop(key, None))


def unregister(queue: Live) -> None:
    """Forget ``queue``."""
    _live.pop(id(queue), None)


def _all() -> list[Live]:
    return [queue for reference in list(_live.values()) if (queue := reference()) is not None]


def _after_fork_in_child() -> None:
    for queue in _all():
        queue.forked()
    _live.clear()


def _at_exit() -> None:
    end = time.monotonic() + EXIT_SECONDS
    for queue in _all():
        try:
            queue.at_exit(max(0.0, end - time.monotonic()))
        except Exception:
            logger.exception("closing a queue at exit failed")


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
