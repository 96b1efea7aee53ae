"""A request while the queue has it, and the ways its end reaches the one who asked.

A request is in one of four states. It moves to ENDED exactly once, under the scheduler's lock (I2);
whoever moved it there delivers it, outside the lock. A :class:`Sink` delivers: one call for all the
requests of a batch that go the same way, so that a batch costs one wake-up where the way in allows it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from steelworks.plans.inputs import Reading

logger = logging.getLogger("steelworks.batching")

PARKED = 0  # accepted, but over max_pending: waits for room
PENDING = 1  # waits for a worker
RUNNING = 2  # in a batch
ENDED = 3  # has its result, its exception or its cancellation

# The ways a request ends; the names are those of QueueStatistics' counters.
COMPLETED = "completed"
FAILED = "failed"
CANCELLED = "cancelled"
EXPIRED = "expired"
DROPPED = "dropped"


class Request:
    """One call by a user."""

    __slots__ = (
        "admitted",
        "arrived",
        "attempts",
        "context",
        "deadline",
        "error",
        "order",
        "outcome",
        "reading",
        "result",
        "sink",
        "solo",
        "state",
        "token",
    )

    def __init__(self, reading: Reading, sink: Sink, token: Any, arrived: float, order: float) -> None:
        self.reading: Reading | None = reading
        self.sink = sink
        self.token = token
        self.arrived = arrived
        self.order = order
        self.state = PENDING
        self.result: Any = None
        self.error: BaseException | None = None
        self.outcome = ""
        self.deadline: float | None = None
        self.attempts = 0
        self.solo = False
        self.context: Any = None
        self.admitted: threading.Event | None = None

    @property
    def rows(self) -> int:
        """Rows of the request; 0 once its tensors were let go."""
        return self.reading.rows if self.reading is not None else 0


class Sink(ABC):
    """Brings ended requests to whoever waits for them."""

    may_abandon = False  # whether ``abandoned`` needs asking

    @abstractmethod
    def deliver(self, ended: Sequence[Request]) -> None:
        """Hand over requests that just ended; called once for each request, holding no lock."""

    def abandoned(self, request: Request) -> bool:
        """Whether the one who asked has gone; such a request is cancelled before it runs."""
        del request
        return False


class BlockingSink(Sink):
    """For callers that block: the token is a lock, held until the request ends."""

    def deliver(self, ended: Sequence[Request]) -> None:
        for request in ended:
            request.token.release()


class RequestFuture(concurrent.futures.Future[Any]):
    """The future of one request. Cancelling it takes the request out of the queue at once."""

    def __init__(self, cancel: Callable[[Request], bool]) -> None:
        super().__init__()
        self._cancel_request = cancel
        self.request: Request | None = None

    def __await__(self) -> Any:
        raise TypeError(
            "queue.submit(x) gives a future for threads; in asyncio write: await queue.asubmit(x)"
        )

    def cancel(self) -> bool:
        """Cancel the request if it has not started; True if it is cancelled now."""
        if self.request is not None and not self.done():
            self._cancel_request(self.request)
        return self.cancelled()

    def running(self) -> bool:
        """Whether the request is in a batch that runs now."""
        return self.request is not None and self.request.state == RUNNING

    def finish(self, request: Request) -> None:
        """Take over how the request ended."""
        if request.outcome == CANCELLED:
            super().cancel()
            self.set_running_or_notify_cancel()
        elif request.error is not None:
            self.set_exception(request.error)
        else:
            self.set_result(request.result)


class FutureSink(Sink):
    """For ``submit``: the token is a :class:`RequestFuture`."""

    def deliver(self, ended: Sequence[Request]) -> None:
        interrupt: KeyboardInterrupt | None = None
        for request in ended:
            future, request.token = request.token, None  # else the two keep each other alive
            try:
                future.finish(request)
            except KeyboardInterrupt as error:  # the user's; the other futures come first
                interrupt = error
            except BaseException:  # of a callback; a worker must not end by it, nor a future be left out
                logger.exception("a done-callback of a future raised")
            request.result = request.error = None  # the future has it
        if interrupt is not None:
            raise interrupt


class LoopSink(Sink):
    """For asyncio tasks of one event loop: the token is an ``asyncio.Future``; one wake-up a batch."""

    may_abandon = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.outbox: list[Request] = []  # sent in this turn of the loop, not yet submitted

    def deliver(self, ended: Sequence[Request]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, ended)
        except (RuntimeError, ReferenceError):  # the loop is closed or gone: nobody waits any more
            logger.debug("dropped %d results of a closed event loop", len(ended))

    def abandoned(self, request: Request) -> bool:
        return bool(request.token.cancelled())

    @staticmethod
    def _settle(ended: Sequence[Request]) -> None:
        for request in ended:
            future = request.token
            if future.done():  # the task was cancelled meanwhile
                continue
            error = request.error
            if error is not None:
                if isinstance(error, StopIteration):  # asyncio refuses it
                    refused, error = error, RuntimeError("the model raised StopIteration")
                    error.__cause__ = refused
                future.set_exception(error)
            elif request.outcome == CANCELLED:
                future.cancel()
            else:
                future.set_result(request.result)
                request.result = None  # the future has it


class MapSink(Sink):
    """For ``map``: ended requests gather here, and the consumer is woken once a batch."""

    def __init__(self) -> None:
        self._ready: deque[Request] = deque()
        self._signal = threading.Lock()
        self._signal.acquire()

    def leave(self) -> None:
        """The consumer goes: what waits is cancelled instead of run."""
        self.may_abandon = True

    def abandoned(self, request: Request) -> bool:
        del request
        return self.may_abandon

    def deliver(self, ended: Sequence[Request]) -> None:
        self._ready.extend(ended)
        try:
            self._signal.release()
        except RuntimeError:  # a wake-up is on its way already
            pass

    def wait(self) -> None:
        """Wait until a batch was delivered since the last wait."""
        self._signal.acquire()

    def pop(self) -> Request | None:
        """The next ended request in the order of ending, or None."""
        return self._ready.popleft() if self._ready else None

    def clear(self) -> None:
        """Forget the ended requests (for a consumer that looks at the requests themselves)."""
        self._ready.clear()


def deliver(ended: Sequence[Request]) -> None:
    """Deliver ended requests, one call a sink. Holds no lock; raises nothing but KeyboardInterrupt."""
    if not ended:
        return
    if len({request.sink for request in ended}) == 1:
        _deliver_to(ended[0].sink, ended)
        return
    by_sink: dict[int, list[Request]] = {}
    for request in ended:
        by_sink.setdefault(id(request.sink), []).append(request)
    interrupt: KeyboardInterrupt | None = None
    for requests in by_sink.values():
        try:
            _deliver_to(requests[0].sink, requests)
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _deliver_to(sink: Sink, requests: Sequence[Request]) -> None:
    try:
        sink.deliver(requests)
    except Exception:  # must not take the worker down
        logger.exception("delivering %d results failed", len(requests))
