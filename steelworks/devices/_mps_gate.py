"""Who may put work on the Apple GPU now: one owner thread, or one encoder at a time."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from steelworks.errors import DeviceRuleError, ForkedProcessError

_log = logging.getLogger(__name__)


class Gate:
    """Guards one MPS backend of one process.

    In *owner* mode the device has at most one owner, a thread; any other thread is refused, not
    queued, because work it queued would come from a second thread in the end. In *streams* mode
    threads take turns at encoding; a thread that only waits for the GPU lets the next one encode.
    The first use sets the mode for the whole process.

    One of PyTorch's own operators that the path selector runs takes a turn of its own, in a block
    or outside (:meth:`enter_vendor`), unless the process is in owner mode. Our kernels take none.
    """

    def __init__(self) -> None:
        self.warmed: set[str] = set()
        self._pid = os.getpid()
        self._fields = threading.Lock()
        self._streams: bool | None = None
        self._turn = threading.Lock()
        self._holder: threading.Thread | None = None
        self._has_turn = False  # whether the holder holds `_turn`; in owner mode it does not
        self._depth = 0  # how often the holder has entered

    def enter(self, streams: bool, what: str) -> threading.Thread:
        """Become the holder, or enter once more; return the holder, for :meth:`leave`.

        Raises:
            DeviceRuleError: another thread owns the device, or the process uses the other mode.
            ForkedProcessError: the process is a forked child.
        """
        self._settle_mode(streams, what)
        me = threading.current_thread()
        if streams:
            self._take_turn(me)
        elif self._holder is me:
            self._claim(me, what)
        else:
            with self._turn:  # a vendor call that began before the mode was set ends first
                self._claim(me, what)
        return me

    def enter_vendor(self) -> threading.Thread | None:
        """Take a turn for one vendor call; return the holder, for :meth:`leave`; None in owner mode.

        It does not set the mode.
        """
        if self._in_owner_mode():
            return None
        me = threading.current_thread()
        self._take_turn(me)
        if self._in_owner_mode():  # since a moment ago
            self.leave(me)
            return None
        return me

    def _in_owner_mode(self) -> bool:
        return self._streams is False

    def _take_turn(self, me: threading.Thread) -> None:
        if self._holder is not me:
            self._turn.acquire()
            self._holder, self._has_turn = me, True
        self._depth += 1

    def leave(self, holder: threading.Thread) -> None:
        """Undo one :meth:`enter` of ``holder``, from whatever thread."""
        with self._fields:
            if self._holder is not holder:
                return  # it ended, and another took over
            self._depth -= 1
            if self._depth == 0:
                self._holder = None
                if self._has_turn:
                    self._has_turn = False
                    self._turn.release()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let other threads encode while this one waits for the GPU (streams mode only)."""
        me = threading.current_thread()
        depth = self._depth if self._holder is me else 0
        if depth:
            self._holder, self._has_turn, self._depth = None, False, 0
            self._turn.release()
        try:
            yield
        finally:
            if depth:
                self._turn.acquire()
                self._holder, self._has_turn, self._depth = me, True, depth

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

    def _claim(self, me: threading.Thread, what: str) -> None:
        with self._fields:
            owner = self._holder
            if owner is not None and owner is not me:
                if owner.is_alive():
                    raise DeviceRuleError(
                        f"{what} was called from thread {me.name!r}, but thread {owner.name!r} owns the "
                        "Apple GPU, and only one thread at a time may use it here; run the model through "
                        "one BatchQueue, or let the owner leave its worker_scope() first"
                    )
                _log.warning("thread %r ended while it owned the Apple GPU; taking over", owner.name)
                self._depth = 0
            self._holder = me
            self._depth += 1


class Held(AbstractContextManager[None]):
    """Holds a gate for a ``with`` block; a thread that holds it may enter again."""

    __slots__ = ("_gate", "_holder", "_streams", "_what")

    def __init__(self, gate: Gate, streams: bool, what: str) -> None:
        self._gate = gate
        self._streams = streams
        self._what = what
        self._holder: threading.Thread | None = None

    def __enter__(self) -> None:
        self._holder = self._gate.enter(self._streams, self._what)

    def __exit__(self, *_: object) -> None:
        assert self._holder is not None
        self._gate.leave(self._holder)


_gates: weakref.WeakKeyDictionary[Any, Gate] = weakref.WeakKeyDictionary()
_gates_lock = threading.Lock()


def gate_of(backend: Any) -> Gate:
    """Return the one gate of ``backend`` (torch itself, outside tests)."""
    with _gates_lock:
        gate = _gates.get(backend)
        if gate is None:
            gate = _gates[backend] = Gate()
        return gate
