"""Who holds which stream: the part of the pool that threads interleave in.

All shared state is here, under one lock that is held for a few assignments at a time. The steps,
announced through :mod:`steelworks.seam` with the ledger as their subject:

======================  ===================================================================
step                    what it does, and what it reports
======================  ===================================================================
``Acquire``             takes a free slot, joins the queue, shares a slot, or is refused;
                        ``outcome`` is granted, queued, shared or refused, ``slot`` its index
``Wait``                a queued thread's wait ends; ``outcome`` is granted, timeout or closed
``Release``             a thread gives its slot back
``ThreadExit``          the finalizer of an ended thread gives its slot back
``Share``, ``Unshare``  a thread takes, and leaves, the lock of a slot that has several holders
``Close``               the pool closes; every queued thread is refused
======================  ===================================================================

A finalizer may run at any point of any thread, also inside this module's own locked sections. So
it never waits for the lock: it appends to ``_returned``, and whoever holds the lock, or gets it
without waiting, takes returned slots from there. Every locked section is followed by such a look,
so a slot returned while the lock was held is not overlooked.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from steelworks import seam
from steelworks.devices.base import Stream
from steelworks.errors import StreamPoolClosedError, StreamPoolExhaustedError

_log = logging.getLogger(__name__)

Exhausted = Literal["wait", "share", "error"]
_WARN_AFTER = 10.0  # seconds a thread waits before the log says so, once a pool


@dataclass(frozen=True)
class StreamPoolStatistics:
    """A consistent snapshot of a pool.

    Attributes:
        size: how many streams the pool has.
        in_use: streams that belong to a thread now.
        free: streams that belong to none; ``in_use + free == size``.
        waiting: threads that wait for a stream.
        acquired_total: times a thread was given a stream, shared ones included.
        returned_total: times a thread's stream was given back, by release() or at its end.
        waited_total: times a thread had to wait before it was given one.
        shared_total: times a thread was given a stream that another thread had.
        exhausted_total: times a thread was refused, at once or after its timeout.
        closed: whether the pool is closed.
    """

    size: int
    in_use: int
    free: int
    waiting: int
    acquired_total: int
    returned_total: int
    waited_total: int
    shared_total: int
    exhausted_total: int
    closed: bool


class Slot:
    """A place in the pool, with its stream once a thread has made it.

    Attributes:
        index: its number, 0 to size - 1.
        stream: made by the first holder, outside every lock.
        making: held while the stream is made (with sharing, two holders may try).
        turn: with sharing, held by the holder that is using the stream.
        holders: how many threads it belongs to.
    """

    __slots__ = ("holders", "index", "making", "stream", "turn")

    def __init__(self, index: int) -> None:
        self.index = index
        self.stream: Stream | None = None
        self.making = threading.Lock()
        self.turn = threading.Lock()
        self.holders = 0


class Lease:
    """One thread's claim on a slot; when it is dropped, the slot goes back.

    It lives in the thread's local storage, which Python clears in the ending thread, however the
    thread ends. While its thread waits, the lease is the entry in the queue; a hand-over to a
    lease that nobody holds any more returns the slot at once.
    """

    __slots__ = ("__weakref__", "_ledger", "depth", "slot", "wake")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.slot: Slot | None = None
        self.depth = 0
        # A bare lock and not an Event: a finalizer may wake a thread from inside that thread's
        # own wait, where an Event holds its internal lock.
        self.wake = threading.Lock()
        self.wake.acquire()

    def give_back(self, step: str) -> None:
        """Return the slot, if there is one; no waiting, callable from a finalizer."""
        slot, self.slot = self.slot, None
        if slot is not None:
            self._ledger.give_back(slot, step)

    def __del__(self) -> None:
        self.give_back("ThreadExit")


class Ledger:
    """The slots, who waits, and the counts.

    Invariant, outside the lock: when a slot is free, nobody waits.

    Args:
        size: how many slots.
        exhausted: what to do when all are held.
        name: how messages call the pool.
    """

    def __init__(self, size: int, exhausted: Exhausted, name: str) -> None:
        self.slots = tuple(Slot(index) for index in range(size))
        self.closed = False
        self.in_use = 0
        self._exhausted = exhausted
        self._name = name
        self._lock = threading.Lock()
        self._free = list(reversed(self.slots))  # a stack: a warm stream is used again first
        self._waiting: deque[Lease] = deque()
        self._returned: deque[Slot] = deque()
        self._acquired_total = 0
        self._returned_total = 0
        self._waited_total = 0
        self._shared_total = 0
        self._exhausted_total = 0
        self._warned = False

    def acquire(self, lease: Lease, timeout: float | None) -> None:
        """Give ``lease`` a slot by the pool's policy.

        Raises:
            StreamPoolExhaustedError: none came free in ``timeout`` seconds, or at once.
            StreamPoolClosedError: the pool is closed, or was closed meanwhile.
        """
        try:
            if self._take(lease) == "queued":
                self._wait(lease, timeout)
        except BaseException:
            self._abandon(lease)
            raise

    def give_back(self, slot: Slot, step: str) -> None:
        """Return ``slot``; never waits for the lock."""
        seam.before(step, self)
        self._returned.append(slot)
        self._settle()
        seam.after(step, self, slot=slot.index)

    def close(self) -> None:
        """Refuse all who wait and all who come; those who hold a slot keep it until they end."""
        seam.before("Close", self)
        with self._section():
            self.closed = True
            refused = list(self._waiting)
            self._waiting.clear()
            for slot in self._free:
                slot.stream = None
            for lease in refused:
                lease.wake.release()
        seam.after("Close", self, refused=len(refused))

    def statistics(self) -> StreamPoolStatistics:
        """Return a consistent snapshot."""
        with self._section():
            return StreamPoolStatistics(
                size=len(self.slots),
                in_use=self.in_use,
                free=len(self._free),
                waiting=len(self._waiting),
                acquired_total=self._acquired_total,
                returned_total=self._returned_total,
                waited_total=self._waited_total,
                shared_total=self._shared_total,
                exhausted_total=self._exhausted_total,
                closed=self.closed,
            )

    def take_turn(self, slot: Slot, timeout: float | None) -> None:
        """Wait until no other holder of ``slot`` is using it.

        Raises:
            StreamPoolExhaustedError: the other did not end in ``timeout`` seconds.
        """
        seam.before("Share", self)
        taken = slot.turn.acquire(timeout=_bounded(timeout))
        seam.after("Share", self, slot=slot.index, outcome="granted" if taken else "timeout")
        if not taken:
            with self._section():
                self._exhausted_total += 1
            raise StreamPoolExhaustedError(
                f"{self._name}: the thread that shares this thread's stream used it for more than "
                f"{timeout} s; raise timeout=, size=, or leave 'with pool.stream()' sooner"
            )

    def end_turn(self, slot: Slot) -> None:
        """Let the next holder of ``slot`` use it."""
        seam.before("Unshare", self)
        slot.turn.release()
        seam.after("Unshare", self, slot=slot.index)

    def _take(self, lease: Lease) -> str:
        seam.before("Acquire", self)
        with self._section():
            self._check_open()
            if self._free:
                outcome = "granted"
                self._grant(self._free.pop(), lease)
            elif self._exhausted == "wait":
                outcome = "queued"
                self._waited_total += 1
                self._waiting.append(lease)
            elif self._exhausted == "share":
                outcome = "shared"
                self._shared_total += 1
                self._grant(min(self.slots, key=lambda slot: slot.holders), lease)
            else:
                outcome = "refused"
                self._exhausted_total += 1
        slot = lease.slot
        seam.after("Acquire", self, outcome=outcome, slot=None if slot is None else slot.index)
        if outcome == "refused":
            raise StreamPoolExhaustedError(
                f"{self._name}: all {len(self.slots)} streams belong to threads; make size= larger, call "
                "pool.release() in threads that are done, or use exhausted='wait' or 'share'"
            )
        return outcome

    def _wait(self, lease: Lease, timeout: float | None) -> None:
        seam.before("Wait", self)
        if not self._sleep(lease, timeout):
            with self._section():
                if lease.slot is None and not self.closed:
                    self._waiting.remove(lease)
                    self._exhausted_total += 1
        slot = lease.slot  # the hand-over may have come between the timeout and the lock
        outcome = "granted" if slot is not None else "closed" if self.closed else "timeout"
        seam.after("Wait", self, outcome=outcome, slot=None if slot is None else slot.index)
        if outcome == "closed":
            raise StreamPoolClosedError(f"{self._name}: the pool was closed while this thread waited")
        if outcome == "timeout":
            raise StreamPoolExhaustedError(
                f"{self._name}: none of the {len(self.slots)} streams came free in {timeout} s; make size= "
                "or timeout= larger, call pool.release() in threads that are done, or use exhausted='share'"
            )

    def _sleep(self, lease: Lease, timeout: float | None) -> bool:
        """Wait for a hand-over; True when one came."""
        if timeout is not None and timeout <= _WARN_AFTER:
            return lease.wake.acquire(timeout=timeout)
        if lease.wake.acquire(timeout=_WARN_AFTER):
            return True
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s: a thread has waited %g s for a stream; all %d belong to other threads "
                "until those end or call pool.release()",
                self._name,
                _WARN_AFTER,
                len(self.slots),
            )
        return lease.wake.acquire(timeout=_bounded(None if timeout is None else timeout - _WARN_AFTER))

    def _abandon(self, lease: Lease) -> None:
        """Take ``lease`` out of the queue, or return what it was given meanwhile."""
        with self._section():
            if lease in self._waiting:
                self._waiting.remove(lease)
        lease.give_back("Release")

    @contextmanager
    def _section(self) -> Iterator[None]:
        try:
            with self._lock:
                self._drain()
                yield
        finally:
            self._settle()

    def _settle(self) -> None:
        """Take in what was returned, unless a thread that will do so holds the lock."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self._lock.release()

    def _drain(self) -> None:
        """Take in every returned slot: to the first in the queue, else to the free ones. Locked."""
        while self._returned:
            slot = self._returned.popleft()
            self._returned_total += 1
            slot.holders -= 1
            if slot.holders:
                continue
            self.in_use -= 1
            if self._waiting:
                lease = self._waiting.popleft()
                self._grant(slot, lease)
                lease.wake.release()
            else:
                if self.closed:
                    slot.stream = None
                self._free.append(slot)

    def _grant(self, slot: Slot, lease: Lease) -> None:
        """Let ``slot`` belong to ``lease``. Locked."""
        if slot.holders == 0:
            self.in_use += 1
        slot.holders += 1
        self._acquired_total += 1
        lease.slot = slot

    def _check_open(self) -> None:
        if self.closed:
            raise StreamPoolClosedError(f"{self._name}: the pool is closed; make a new one")


def _bounded(timeout: float | None) -> float:
    """Return ``timeout`` as ``Lock.acquire`` takes it: -1 for none."""
    return -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)
