"""What of Metal and of PyTorch's MPS streams the stand-in models: buffers, encoders, queues.

A stream has one command buffer and one encoder. Encoding into a committed buffer, opening an
encoder while one is in use, and committing twice end the process on a Mac; here they raise
:class:`FakeMPSAbort` in the thread that did it, and in every later call of any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

T = TypeVar("T")

POOL_SIZE = 32
QUEUED_SINCE = (2, 15)  # from here on every operation enters its stream's serial queue

ENCODER_BUSY = "failed assertion `A command encoder is already encoding to this command buffer'"
BUFFER_COMMITTED = "failed assertion _status < MTLCommandBufferStatusCommitted"
COMMITTED_TWICE = "failed assertion `commit an already committed command buffer'"
HANDLER_LATE = "failed assertion `Completed handler provided after commit call'"
ENCODER_RELEASED = "SIGSEGV: bound an argument to an encoder that another thread had released"
DOUBLE_FREE = "malloc: Double free of object"
NOT_ON_QUEUE = "BUG IN CLIENT OF LIBDISPATCH: Assertion failed: Block was expected to execute on queue"

# Operations that keep an object shared by all streams in 2.15, by the rule they fall under.
_SHARED_KINDS = {
    "R3": frozenset({"clone", "contiguous", "copy_"}),
    "R4": frozenset({"linear", "addmm"}),
    "R5": frozenset(
        {"mm", "bmm", "baddbmm", "convolution", "conv2d", "native_batch_norm", "lstm", "mkldnn_rnn_layer"}
    ),
}


class FakeMPSAbort(BaseException):
    """The process would have ended here; not an Exception, so that no handler swallows it.

    Attributes:
        rule: the hazard it falls under, such as ``R3``, or ``E1`` to ``E3`` for those before 2.15.
    """

    def __init__(self, message: str, rule: str) -> None:
        super().__init__(f"{message} [{rule}]")
        self.rule = rule


class Hold:
    """Stops the first thread that comes to one point inside an operation, so that a test can act.

    Made by ``FakeMPS.hold()``; leaving its ``with`` block lets the thread go.
    """

    def __init__(self, kind: str, phase: str, patience: float) -> None:
        self.kind = kind
        self.phase = phase
        self._patience = patience
        self._free = threading.Lock()
        self._inside = threading.Event()
        self._go = threading.Event()

    def wait(self) -> None:
        """Wait until a thread is inside.

        Raises:
            TimeoutError: none came.
        """
        if not self._inside.wait(self._patience):
            raise TimeoutError(f"no thread came to {self.phase!r} of {self.kind!r}")

    def release(self) -> None:
        """Let the thread inside go on, and later ones pass."""
        self._go.set()

    @property
    def reached(self) -> bool:
        """Whether a thread is or was inside."""
        return self._inside.is_set()

    def stop_here(self) -> None:
        """Called at the point itself; only the first thread stops."""
        if self._go.is_set() or not self._free.acquire(blocking=False):
            return
        self._inside.set()
        if not self._go.wait(self._patience):
            raise TimeoutError(f"nobody released the hold on {self.phase!r} of {self.kind!r}")


class CommandBuffer:
    """A command buffer with at most one encoder at work."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._committed = False
        self._encoding: int | None = None  # ident of the thread at work on the encoder

    def begin_encoding(self) -> None:
        """Take the encoder for one operation of the calling thread."""
        with self._machine.fields:
            if self._committed:
                self._machine.abort(BUFFER_COMMITTED, "E1")
            if self._encoding is not None:
                self._machine.abort(ENCODER_BUSY, "E1")
            self._encoding = threading.get_ident()

    def end_encoding(self) -> None:
        """Leave the encoder open for the next operation, as coalescing does."""
        with self._machine.fields:
            self._encoding = None

    def add_completed_handler(self, rule: str = "E3") -> None:
        """Add a handler, as recording an event does."""
        with self._machine.fields:
            if self._committed:
                self._machine.abort(HANDLER_LATE, rule)
            if self._encoding not in (None, threading.get_ident()):
                self._machine.abort(ENCODER_RELEASED, rule)

    def commit(self, rule: str = "E3") -> None:
        """Hand the buffer to the GPU; once only, and with no encoder at work."""
        with self._machine.fields:
            if self._committed:
                self._machine.abort(COMMITTED_TWICE, rule)
            if self._encoding not in (None, threading.get_ident()):
                self._machine.abort(ENCODER_RELEASED, rule)
            self._committed = True


class StreamState:
    """A stream: its command buffer and, from 2.15, the serial queue all operations enter."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.number = number
        self.buffer = CommandBuffer(machine)
        self.queue = threading.RLock()
        self.queue_thread: int | None = None


class Machine:
    """One process's MPS state.

    Attributes:
        dead: the first abort, if there was one; every later call raises it again.
        latent: rules broken without a collision this time.
        overrides: what stands in front of torch's own operators, by name.
        log: (thread ident, stream number, kind) of every operation, in order.
        ready: the kinds of operation whose lazy state exists.
        global_synchronizes: idents of the threads that called the global synchronize.
    """

    def __init__(self, version: tuple[int, int]) -> None:
        self.queued = version >= QUEUED_SINCE
        self.fields = threading.RLock()
        self.dead: FakeMPSAbort | None = None
        self.latent: list[str] = []
        self.overrides: dict[str, Callable[..., Any]] = {}
        self.log: list[tuple[int, int, str]] = []
        self.ready: set[str] = set()
        self.global_synchronizes: list[int] = []
        self.streams = {0: StreamState(self, 0)}
        self._handed_out = 0
        self._starting: set[str] = set()
        self._shared: set[object] = set()
        self._holds: list[Hold] = []
        self._current = threading.local()

    def abort(self, message: str, rule: str) -> None:
        """End the process, as far as the stand-in goes."""
        with self.fields:
            if self.dead is None:
                self.dead = FakeMPSAbort(message, rule)
        self.check_alive()

    def check_alive(self) -> None:
        """Raise the first abort again, in whichever thread asks."""
        if self.dead is not None:
            raise self.dead

    def take_stream(self) -> StreamState:
        """Hand out the next of the pool, round robin, ids 1 to 32."""
        with self.fields:
            number = self._handed_out % POOL_SIZE + 1
            self._handed_out += 1
            return self.streams.setdefault(number, StreamState(self, number))

    @property
    def current(self) -> StreamState:
        """The calling thread's stream; a new thread starts on the default one."""
        stream: StreamState = getattr(self._current, "stream", self.streams[0])
        return stream

    @current.setter
    def current(self, stream: StreamState) -> None:
        self._current.stream = stream

    def operate(self, kind: str, shapes: object, body: Callable[[], T], *, wait: bool = False) -> T:
        """Encode one operation on the thread's current stream and do its arithmetic.

        Args:
            kind: what the operation is, for the rules and the log.
            shapes: with ``kind``, the key of cached vendor objects.
            body: the arithmetic.
            wait: also wait for the GPU before the stream's queue is left, as a copy does.
        """
        self.check_alive()
        stream = self.current
        self._first_use(kind)
        with self.on_queue(stream), self._shared_object(kind, shapes):
            buffer = stream.buffer
            buffer.begin_encoding()
            try:
                self.log.append((threading.get_ident(), stream.number, kind))
                self.pause(kind, "encode")
                result = body()
            finally:
                buffer.end_encoding()
            if wait:
                self._commit_and_wait(stream, "E3")
        self.check_alive()
        return result

    def synchronize(self, stream: StreamState, *, off_queue: str = "") -> None:
        """Commit and wait; ``off_queue`` names the rule broken when the queue is not entered."""
        self.check_alive()
        if off_queue:
            self.latent.append(off_queue)
            self.pause("synchronize", "off_queue")
        with nullcontext() if off_queue else self.on_queue(stream):
            self._commit_and_wait(stream, off_queue or "E3")
        self.check_alive()

    def record_event(self, stream: StreamState, *, off_queue: str = "") -> None:
        """Add a handler to the stream's buffer, on its queue or, by mistake, off it."""
        self.check_alive()
        if off_queue:
            self.latent.append(off_queue)
        with nullcontext() if off_queue else self.on_queue(stream):
            stream.buffer.add_completed_handler(off_queue or "E3")

    @contextmanager
    def on_queue(self, stream: StreamState) -> Iterator[None]:
        """Enter the stream's serial queue; before 2.15 nothing makes threads wait here."""
        if not self.queued:
            yield
            return
        with stream.queue:
            outer, stream.queue_thread = stream.queue_thread, threading.get_ident()
            try:
                yield
            finally:
                stream.queue_thread = outer

    def add_hold(self, hold: Hold) -> None:
        """Let ``hold`` stop the next thread that comes to its point."""
        self._holds.append(hold)

    def remove_hold(self, hold: Hold) -> None:
        """Forget ``hold``."""
        self._holds.remove(hold)

    def pause(self, kind: str, phase: str) -> None:
        """A point at which a hold may stop the thread."""
        for hold in tuple(self._holds):
            if hold.phase == phase and hold.kind in (kind, "any"):
                hold.stop_here()
        self.check_alive()

    def _commit_and_wait(self, stream: StreamState, rule: str) -> None:
        stream.buffer.add_completed_handler(rule)
        stream.buffer.commit(rule)
        self.pause("synchronize", "commit")
        stream.buffer = CommandBuffer(self)

    def _first_use(self, kind: str) -> None:
        """Make the kind's lazy state, which has no lock (R6)."""
        with self.fields:
            if kind in self.ready:
                return
            if kind in self._starting:
                self.abort(DOUBLE_FREE, "R6")
            self._starting.add(kind)
        try:
            self.pause(kind, "first_use")
            self.ready.add(kind)
        finally:
            self._starting.discard(kind)

    def _shared_object(self, kind: str, shapes: object) -> AbstractContextManager[None]:
        for rule, kinds in _SHARED_KINDS.items():
            if kind in kinds:
                # R3 is one object for all; R4 and R5 are one for each shape.
                return self._use_shared(rule, rule if rule == "R3" else (kind, shapes))
        return nullcontext()

    @contextmanager
    def _use_shared(self, rule: str, key: object) -> Iterator[None]:
        with self.fields:
            if key in self._shared and self.queued:
                self.abort(ENCODER_RELEASED, rule)
            self._shared.add(key)
        try:
            yield
        finally:
            self._shared.discard(key)
