"""``map``: many requests from one caller, with a bounded number of them in flight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from steelworks.batching._request import COMPLETED, ENDED, FAILED, MapSink, Request, deliver
from steelworks.batching._scheduler import Scheduler
from steelworks.errors import InvalidInputError, QueueClosedError, SteelworksError
from steelworks.plans.inputs import Reading

_PATIENCE = 0.002  # seconds to wait for a worker that is about to be idle before doing without it


def run_map(
    owner: object,
    scheduler: Scheduler,
    read: Callable[[Any], Reading],
    requests: Iterable[Any],
    *,
    ordered: bool,
    window: int,
    chunk: int,
    priority: float,
    return_exceptions: bool,
    lead: bool = False,
) -> Iterator[Any]:
    """Yield one result a request; see :meth:`steelworks.BatchQueue.map`.

    ``owner`` is the queue: it is not closed for want of references while this runs.
    """
    sink = MapSink()
    waiting: deque[Request] = deque()  # ordered: all that were sent and not yielded
    sent: set[Request] = set()  # unordered: the same
    in_flight = 0
    source = iter(requests)
    exhausted = False
    failure: Exception | None = None  # of the source, or of a queue that closed; raised at its place
    bias = priority * scheduler.options.aging

    def refill(room: int) -> int:
        nonlocal exhausted, failure
        now = time.perf_counter()
        order = now - bias
        fresh: list[Request] = []
        bad: list[Request] = []
        try:
            for item in islice(source, room):
                try:
                    fresh.append(Request(read(item), sink, None, now, order))
                except InvalidInputError as error:  # it fails in its place; the others go on
                    bad.append(_refused(sink, error, now))
                    fresh.append(bad[-1])
        except Exception as error:
            failure = error
        exhausted = len(fresh) < room
        good = [request for request in fresh if request.state != ENDED] if bad else fresh
        if good:
            try:
                scheduler.submit_many(good)
            except SteelworksError as error:
                failure, exhausted = error, True
                return 0
        if ordered:
            waiting.extend(fresh)
        else:
            sent.update(fresh)
        deliver(bad)
        return len(fresh)

    def fill() -> None:
        """Keep the window full; lead a worker's runner meanwhile where that is possible."""
        nonlocal in_flight
        sleeper = scheduler.lend(_PATIENCE) if lead else None
        if sleeper is None:
            while not exhausted and in_flight + chunk <= window:
                in_flight += refill(chunk)
            return
        worker = sleeper.owner
        try:
            for _ in range(worker.crew.depth - len(worker.in_flight)):  # no more than it can launch
                if not exhausted and in_flight + chunk <= window:
                    in_flight += refill(chunk)
            worker.lead()
        finally:
            foreign = any(request.sink is not sink for request in worker.requests())
            scheduler.give_back(sleeper, bool(worker.in_flight), foreign)

    try:
        while True:
            fill()
            if in_flight == 0:
                break
            if ordered:
                while waiting[0].state != ENDED:
                    if lead:
                        scheduler.unload()
                    sink.wait()
                sink.clear()
                # Refill before handing out: the workers go on while the consumer looks at results.
                done = []
                while waiting and waiting[0].state == ENDED:
                    done.append(waiting.popleft())
                in_flight -= len(done)
                if not lead:
                    fill()
                for request in done:
                    yield (
                        request.result
                        if request.outcome == COMPLETED
                        else _outcome(request, return_exceptions)
                    )
            else:
                ended = sink.pop()
                while ended is None:
                    if lead:
                        scheduler.unload()
                    sink.wait()
                    ended = sink.pop()
                while ended is not None:
                    in_flight -= 1
                    sent.discard(ended)
                    yield _outcome(ended, return_exceptions)
                    ended = sink.pop()
        if failure is not None:
            raise failure
    finally:
        if waiting or sent:
            sink.leave()
            scheduler.abandon(waiting or sent)
        failure = None  # its traceback holds this frame
        del owner


def _refused(sink: MapSink, error: InvalidInputError, now: float) -> Request:
    request = Request(None, sink, None, now, now)  # type: ignore[arg-type]
    request.state, request.outcome, request.error = ENDED, FAILED, error
    return request


def _outcome(request: Request, return_exceptions: bool) -> Any:
    if request.outcome == COMPLETED:
        return request.result
    error = request.error or QueueClosedError("the request was cancelled before it ran")
    if return_exceptions:
        return error
    raise error
