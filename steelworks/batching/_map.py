"""``map``: many requests from one caller, with a bounded number of them in flight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from steelworks.batching._request import COMPLETED, ENDED, FAILED, MapSink, Request, deliver
from steelworks.batching._scheduler import Scheduler
from steelworks.errors import InvalidInputError, QueueClosedError
from steelworks.plans.inputs import Reading


def run_map(
    scheduler: Scheduler,
    read: Callable[[Any], Reading],
    requests: Iterable[Any],
    *,
    ordered: bool,
    window: int,
    chunk: int,
    priority: float,
    return_exceptions: bool,
) -> Iterator[Any]:
    """Yield one result a request; see :meth:`steelworks.BatchQueue.map`."""
    sink = MapSink()
    outstanding: deque[Request] = deque()
    in_flight = 0
    source = iter(requests)
    exhausted = False
    bias = priority * scheduler.options.aging

    def refill(room: int) -> int:
        nonlocal exhausted
        now = time.perf_counter()
        order = now - bias
        fresh: list[Request] = []
        bad: list[Request] = []
        for item in islice(source, room):
            try:
                fresh.append(Request(read(item), sink, None, now, order))
            except InvalidInputError as error:  # it fails in its place; the others go on
                bad.append(_refused(sink, error, now))
                fresh.append(bad[-1])
        exhausted = len(fresh) < room
        good = [request for request in fresh if request.state != ENDED] if bad else fresh
        if good:
            scheduler.submit_many(good)
        outstanding.extend(fresh)
        deliver(bad)
        return len(fresh)

    try:
        while True:
            while not exhausted and in_flight + chunk <= window:
                in_flight += refill(chunk)
            if in_flight == 0:
                return
            if ordered:
                while outstanding[0].state != ENDED:
                    sink.wait()
                sink.clear()
                # Refill before handing out: the workers go on while the consumer looks at results.
                done = []
                while outstanding and outstanding[0].state == ENDED:
                    done.append(outstanding.popleft())
                in_flight -= len(done)
                while not exhausted and in_flight + chunk <= window:
                    in_flight += refill(chunk)
                for request in done:
                    yield request.result if request.outcome == COMPLETED else _outcome(request, return_exceptions)
            else:
                request = sink.pop()
                while request is None:
                    sink.wait()
                    request = sink.pop()
                in_flight -= 1
                yield _outcome(request, return_exceptions)
    finally:
        for request in outstanding:
            if request.state != ENDED:
                scheduler.cancel(request)


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
