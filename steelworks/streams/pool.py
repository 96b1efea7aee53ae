"""StreamPool: a device stream of its own for every thread."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from contextlib import AbstractContextManager
from types import TracebackType
from typing import get_args

import torch

from steelworks.devices import resolve
from steelworks.devices.base import Device, Stream
from steelworks.errors import DeviceRuleError, ForkedProcessError, InvalidInputError, StreamPoolClosedError
from steelworks.streams._ledger import (
    Exhausted,
    Lease,
    Ledger,
    Slot,
    StreamPoolStatistics,
)

_log = logging.getLogger(__name__)


class StreamPool:
    """Gives every thread a stream of its own.

    A thread's first ``with pool.stream()`` gives it a stream, which stays its own, also between
    ``with`` blocks, until the thread ends, however it ends, or calls :meth:`release`. What it
    queues in one block is therefore in order with what it queues in the next.

    The pool promises:

    * A stream is used by one thread at a time (I1).
    * A stream goes back when its thread ends; nobody has to ask for that. Threads that come and
      go by the thousand leave nothing behind.
    * With ``exhausted="wait"``, whoever waits longest gets the next stream that goes back, and a
      thread that comes later never gets ahead of one that waits.
    * On entry, the stream waits for what the thread had queued on its current stream. Nothing of
      the kind happens at the end of the block: copy results out, or synchronize the stream,
      inside the block; and call ``device.record(tensor, stream)`` for a tensor that was made on
      another stream and may be freed before the work is done (I5).
    * After ``fork()``, the child's pool is a fresh one on the cpu, and elsewhere raises
      :class:`~steelworks.errors.ForkedProcessError`.

    It does not promise that a wait ends: a thread that keeps its stream for ever, in a pool too
    small, makes others wait for ever. Give ``timeout``, or let idle threads call :meth:`release`.
    Waiting blocks the thread; in asyncio, call from a worker thread, and do not ``await`` inside
    the block: all tasks of a loop share the loop's thread and so its stream.

    On the cpu a stream is a share of the cores: inside the block the thread may use the usable
    cores divided by the streams in use at its entry, at least one, and afterwards what it could
    use before. On MPS there is one stream, unless several were opted into.

    Args:
        device: a device as :func:`steelworks.devices.resolve` takes it.
        size: the number of streams; devices with fewer (32 a GPU for CUDA, one for MPS) limit it.
        exhausted: what a thread gets when all streams belong to others: ``"wait"``, up to
            ``timeout``; ``"share"``, the stream that the fewest threads have, on which sharers
            take turns: only one of them is inside ``with pool.stream()`` at a time, the order of
            their work is by turns, and ``synchronize`` waits for the other's work too;
            ``"error"``, a StreamPoolExhaustedError at once.
        timeout: seconds to wait for a stream, or for a turn on a shared one; None for no limit.

    Raises:
        InvalidInputError: an argument is out of range, or the device does not exist here.
    """

    def __init__(
        self,
        device: str | torch.device | Device,
        size: int = 32,
        exhausted: Exhausted = "wait",
        timeout: float | None = None,
    ) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidInputError(f"size={size!r} was given; give a whole number of streams, 1 or more")
        if exhausted not in get_args(Exhausted):
            raise InvalidInputError(f"exhausted={exhausted!r} was given; use 'wait', 'share' or 'error'")
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout >= 0):
            raise InvalidInputError(f"timeout={timeout!r} was given; give seconds, 0 or more, or None")
        self._device = resolve(device)
        self._exhausted: Exhausted = exhausted
        self._timeout = timeout
        self._size = self._limit(size)
        self._broken_by_fork = False
        self._start()
        _pools.add(self)

    def _limit(self, size: int) -> int:
        capabilities = self._device.capabilities
        if capabilities.device_type == "cpu" or size <= capabilities.max_streams:
            return size  # shares of the cores can be as many as there are threads
        _log.info(
            "%s has %d streams; the pool has that many and not %d",
            self._device.torch_device,
            capabilities.max_streams,
            size,
        )
        return capabilities.max_streams

    def _start(self) -> None:
        # The ledger does not refer to the pool, nor a lease to the thread-local that holds it: a
        # pool that is dropped goes at once, and its threads' leases with it.
        self._ledger = Ledger(self._size, self._exhausted, f"StreamPool({self._device.torch_device})")
        self._local = threading.local()

    @property
    def device(self) -> Device:
        """The device whose streams these are."""
        return self._device

    @property
    def size(self) -> int:
        """How many streams the pool has."""
        return self._size

    def stream(self) -> AbstractContextManager[Stream]:
        """Return a context manager that makes the thread's own stream current.

        Inside another such block of the same thread, it is the same stream. Entering it may wait
        for a stream, by the pool's policy.

        Raises:
            StreamPoolExhaustedError: no stream, by the pool's policy (on entry).
            StreamPoolClosedError: the pool is closed (on entry).
            ForkedProcessError: the process is a forked child (on entry; not on the cpu).
        """
        return _Use(self)

    def release(self) -> None:
        """Give the calling thread's stream back now; without one, do nothing.

        Raises:
            DeviceRuleError: the thread is inside ``with pool.stream()``.
        """
        lease: Lease | None = getattr(self._local, "lease", None)
        if lease is None:
            return
        if lease.depth:
            raise DeviceRuleError(
                "release() was called inside 'with pool.stream()', whose stream is still in use; "
                "leave the block first"
            )
        del self._local.lease
        lease.give_back("Release")

    def statistics(self) -> StreamPoolStatistics:
        """Return a consistent snapshot of the pool."""
        return self._ledger.statistics()

    def close(self) -> None:
        """Close the pool: waiting threads and later uses get StreamPoolClosedError.

        Blocks that threads are inside of end as usual. Closing twice is the same as once.
        """
        self._ledger.close()

    def __enter__(self) -> StreamPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        device = str(self._device.torch_device)
        return f"StreamPool({device!r}, size={self._size}, exhausted={self._exhausted!r})"

    def _lease(self) -> tuple[Lease, bool]:
        """Return the calling thread's lease, and whether it had to be got."""
        if self._broken_by_fork:
            raise ForkedProcessError(
                f"{self!r} was made before fork() and used in the child, where the device can't be used; "
                "start the child with multiprocessing's 'spawn' method and make the pool there"
            )
        if self._ledger.closed:
            raise StreamPoolClosedError(f"{self!r} is closed; make a new one")
        lease: Lease | None = getattr(self._local, "lease", None)
        if lease is not None:
            return lease, False
        lease = Lease(self._ledger)
        self._ledger.acquire(lease, self._timeout)
        self._local.lease = lease
        return lease, True

    def _stream_of(self, slot: Slot) -> Stream:
        """Return the slot's stream, made by whoever comes first; under no lock that others need."""
        stream = slot.stream
        if stream is None:
            with slot.making:
                stream = slot.stream
                if stream is None:
                    stream = slot.stream = self._device.new_stream()
        return stream

    def _share_cores(self) -> None:
        """Let the calling thread use its part of the cores; the device ignores it if it has none."""
        users = max(1, self._ledger.in_use)
        self._device.set_thread_share(max(1, self._device.capabilities.max_streams // users))

    def _after_fork(self) -> None:
        """Start afresh in a child: the threads that held locks and streams are not there."""
        self._start()
        self._broken_by_fork = not self._device.capabilities.survives_fork


class _Use:
    """One ``with pool.stream()`` block."""

    __slots__ = ("_block", "_has_turn", "_lease", "_pool")

    def __init__(self, pool: StreamPool) -> None:
        self._pool = pool
        self._lease: Lease | None = None
        self._block: AbstractContextManager[None] | None = None
        self._has_turn = False

    def __enter__(self) -> Stream:
        if self._lease is not None:
            raise DeviceRuleError("this context manager is in use; call pool.stream() for another block")
        pool = self._pool
        lease, fresh = pool._lease()
        try:
            stream = self._begin(lease)
        except BaseException:
            if fresh:
                pool.release()
            raise
        lease.depth += 1
        self._lease = lease
        return stream

    def _begin(self, lease: Lease) -> Stream:
        pool, slot = self._pool, lease.slot
        assert slot is not None
        stream = pool._stream_of(slot)
        if pool._exhausted == "share" and lease.depth == 0:
            pool._ledger.take_turn(slot, pool._timeout)
            self._has_turn = True
        try:
            stream.follow_current()
            block = stream.use()
            block.__enter__()
        except BaseException:
            self._end_turn(lease)
            raise
        self._block = block
        pool._share_cores()
        return stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Forgotten before anything else: an object that a traceback keeps must not keep the lease.
        lease, self._lease = self._lease, None
        block, self._block = self._block, None
        assert lease is not None and block is not None
        lease.depth -= 1
        try:
            block.__exit__(kind, error, trace)
        finally:
            self._end_turn(lease)

    def _end_turn(self, lease: Lease) -> None:
        if self._has_turn:
            self._has_turn = False
            assert lease.slot is not None
            self._pool._ledger.end_turn(lease.slot)


_pools: weakref.WeakSet[StreamPool] = weakref.WeakSet()


def _restart_pools() -> None:
    for pool in list(_pools):
        pool._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_pools)
