"""Who may put work on the Apple GPU now: one owner thread, or one encoder at a time."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from steelworks.errors import DeviceRuleError, ForkedProcessError

_log = logging.getLogger(__name__)


class Gate:
    """Guards one MPS backend of one process.

    In *owner* mode the device has at most one owner, a thread; any other thread is refused, not
    queued, because work it queued would come from a second thread in the end. In *streams* mode
    threads take turns at encoding; a thread that only waits for the GPU lets the next one encode.
    The first use sets the mode for the whole process.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._fields = threading.Lock()
        self._streams: bool | None = None
        self._owner: threading.Thread | None = None
        self._claims = 0
        self._turn = threading.Lock()
        self._mine = threading.local()
        self.warmed: set[str] = set()

    @contextmanager
    def held(self, streams: bool, what: str) -> Iterator[None]:
        """Hold the gate for a ``with`` block; a thread that holds it may enter again.

        Raises:
            DeviceRuleError: another thread owns the device, or the process uses the other mode.
            ForkedProcessError: the process is a forked child.
        """
        self._settle_mode(streams, what)
        enter, leave = (self._take_turn, self._end_turn) if streams else (self._claim, self._disclaim)
        enter(what)
        try:
            yield
        finally:
            leave()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let other threads encode while this one waits for the GPU (streams mode only)."""
        depth = getattr(self._mine, "depth", 0)
        if depth:
            self._mine.depth = 0
            self._turn.release()
        try:
            yield
        finally:
            if depth:
                self._turn.acquire()
                self._mine.depth = depth

    def held_by_me(self) -> bool:
        """Whether the calling thread owns the device or is encoding."""
        return self._owner is threading.current_thread() or getattr(self._mine, "depth", 0) > 0

    def _settle_mode(self, streams: bool, what: str) -> None:
        if os.getpid() != self._pid:
            raise ForkedProcessError(
                f"{what} was called in a forked child; the Apple GPU can't be used after fork(): "
                "start the process with multiprocessing's 'spawn' method"
            )
        with self._fields:
            if self._streams is None:
                self._streams = streams
            elif self._streams is not streams:
                raise DeviceRuleError(
                    f"{what} was called with streams={streams}, but this process already uses MPS with "
                    f"streams={self._streams}; use one setting for the whole process"
                )

    def _claim(self, what: str) -> None:
        me = threading.current_thread()
        with self._fields:
            owner = self._owner
            if owner is not None and owner is not me:
                if owner.is_alive():
                    raise DeviceRuleError(
                        f"{what} was called from thread {me.name!r}, but thread {owner.name!r} owns the "
                        "Apple GPU, and only one thread at a time may use it here; run the model through "
                        "one BatchQueue, or let the owner leave its worker_scope() first"
                    )
                _log.warning("thread %r ended while it owned the Apple GPU; taking over", owner.name)
                self._claims = 0
            self._owner = me
            self._claims += 1

    def _disclaim(self) -> None:
        with self._fields:
            if self._owner is not threading.current_thread():
                return
            self._claims -= 1
            if self._claims == 0:
                self._owner = None

    def _take_turn(self, what: str) -> None:
        depth = getattr(self._mine, "depth", 0)
        if depth == 0:
            self._turn.acquire()
        self._mine.depth = depth + 1

    def _end_turn(self) -> None:
        self._mine.depth -= 1
        if self._mine.depth == 0:
            self._turn.release()


_gates: weakref.WeakKeyDictionary[Any, Gate] = weakref.WeakKeyDictionary()
_gates_lock = threading.Lock()


def gate_of(backend: Any) -> Gate:
    """Return the one gate of ``backend`` (torch itself, outside tests)."""
    with _gates_lock:
        gate = _gates.get(backend)
        if gate is None:
            gate = _gates[backend] = Gate()
        return gate
