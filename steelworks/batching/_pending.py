"""The requests that wait, and which of them run next. Plain data: the scheduler holds the lock.

Order. Each request has an order key, its arrival less ``priority`` times ``aging`` seconds: a request of
priority 1 counts as one that came ``aging`` seconds earlier. So higher priorities go first, and nobody
starves: a request that waited long enough is ahead of every newcomer.

Which batch. The batch always contains the first request in that order. Which others join it is
decided by predicted time: the waiting requests of its group, lane by lane from short to long, are cut
into segments of least total predicted time, and the first request's segment runs.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator, Sequence
from operator import attrgetter

from steelworks.batching._request import PENDING, Request
from steelworks.plans.inputs import Lane
from steelworks.plans.plan import Plan

_ORDER = attrgetter("order")


class _Line:
    """The waiting requests of one lane, in order. Ended ones stay until they reach the head."""

    __slots__ = ("lane", "live", "requests", "rows", "solos")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.requests: deque[Request] = deque()
        self.rows = 0
        self.live = 0
        self.solos = 0

    def add(self, request: Request) -> None:
        requests = self.requests
        if request.solo:
            self.solos += 1
        if requests and requests[-1].order > request.order:
            insort(requests, request, key=_ORDER)
        else:
            requests.append(request)
        self.rows += request.reading.rows  # type: ignore[union-attr]
        self.live += 1

    def remove(self, request: Request, rows: int) -> None:
        """Note that ``request`` ended while it waited."""
        self.rows -= rows
        self.live -= 1
        if request.solo:
            self.solos -= 1
        if len(self.requests) > 64 and self.live * 2 < len(self.requests):
            self.requests = deque(r for r in self.requests if r.state == PENDING and r is not request)

    def head(self) -> Request:
        """The first request that still waits; there must be one."""
        requests = self.requests
        while requests[0].state != PENDING:
            requests.popleft()
        return requests[0]

    def pop(self) -> Request:
        request = self.head()
        self.requests.popleft()
        self.rows -= request.rows
        self.live -= 1
        if request.solo:
            self.solos -= 1
        return request

    def plain(self) -> bool:
        """Whether every request here waits, has one row, and may join a batch: then they go in bulk."""
        return self.live == len(self.requests) == self.rows and not self.solos


class Pending:
    """All requests that wait for a worker."""

    def __init__(self) -> None:
        self._lines: dict[Lane, _Line] = {}
        self.count = 0
        self.rows = 0

    def add(self, request: Request) -> None:
        """Add a request in state PENDING."""
        reading = request.reading
        assert reading is not None
        line = self._lines.get(reading.lane)
        if line is None:
            line = self._lines[reading.lane] = _Line(reading.lane)
        line.add(request)
        self.count += 1
        self.rows += reading.rows

    def add_many(self, requests: Sequence[Request]) -> None:
        """Add new requests in state PENDING."""
        lane: Lane | None = None
        line: _Line | None = None
        rows = 0
        for request in requests:
            reading = request.reading
            assert reading is not None
            if reading.lane is not lane or line is None:
                lane = reading.lane
                line = self._lines.get(lane)
                if line is None:
                    line = self._lines[lane] = _Line(lane)
            line.add(request)
            rows += reading.rows
        self.count += len(requests)
        self.rows += rows

    def remove(self, request: Request) -> None:
        """Take out a request that ends while it waits; call before its tensors are let go."""
        reading = request.reading
        assert reading is not None
        line = self._lines[reading.lane]
        line.remove(request, reading.rows)
        self.count -= 1
        self.rows -= reading.rows
        if line.live == 0:
            del self._lines[reading.lane]

    def oldest(self) -> Request | None:
        """The first request in order, or None."""
        if not self._lines:
            return None
        return min((line.head() for line in self._lines.values()), key=_ORDER)

    def __iter__(self) -> Iterator[Request]:
        """All waiting requests, lane by lane."""
        for line in list(self._lines.values()):
            for request in list(line.requests):
                if request.state == PENDING:
                    yield request

    def take(self, plan: Plan, limit: int) -> list[Request]:
        """Remove and return the requests of the next batch, first in order first.

        Args:
            plan: predicts times and names row buckets.
            limit: the most rows to take; one request is taken whatever its size.
        """
        lines = self._lines
        if not lines:
            return []
        if len(lines) == 1:
            line = next(iter(lines.values()))
            first = line.head()
        else:
            line = min(lines.values(), key=lambda candidate: candidate.head().order)
            first = line.head()
        if first.solo:
            return [self._pop(line)]
        group = line.lane.group
        segment = [line]
        if len(lines) > 1 and plan.may_pad(group):
            mates = sorted((c for c in lines.values() if c.lane.group is group), key=lambda c: c.lane.length)
            segment = mates if plan.packs(group) else _segment(plan, mates, line, limit)
        available = sum(c.rows for c in segment)
        longest = max(c.lane.length for c in segment) or 1
        wanted = min(plan.first_run(group, min(available, limit), longest), limit)
        taken: list[Request] = []
        if len(segment) == 1 and line.plain():
            popleft = line.requests.popleft
            wanted = min(max(wanted, 1), line.live)
            taken = [popleft() for _ in range(wanted)]
            line.live -= wanted
            line.rows -= wanted
            self.count -= wanted
            self.rows -= wanted
            if line.live == 0:
                del lines[line.lane]
            return taken
        rows = 0
        while segment:
            line = segment[0] if len(segment) == 1 else min(segment, key=lambda c: c.head().order)
            head = line.head()
            if taken and (head.solo or rows + head.rows > wanted):
                break
            rows += head.rows
            taken.append(self._pop(line))
            if line.live == 0:
                segment.remove(line)
        return taken

    def _pop(self, line: _Line) -> Request:
        request = line.pop()
        self.count -= 1
        self.rows -= request.rows
        if line.live == 0:
            del self._lines[line.lane]
        return request


def _segment(plan: Plan, lines: list[_Line], wanted: _Line, limit: int) -> list[_Line]:
    """Cut ``lines`` (short to long) into runs of least total predicted time; the run with ``wanted``."""
    group = wanted.lane.group
    best = [0.0] * (len(lines) + 1)
    cut = [0] * (len(lines) + 1)
    for end in range(1, len(lines) + 1):
        length = lines[end - 1].lane.length
        rows = 0
        best[end] = float("inf")
        for start in range(end - 1, -1, -1):
            rows += lines[start].rows
            full, rest = divmod(rows, limit)
            seconds = full * plan.predict(group, limit, length) if full else 0.0
            if rest:
                seconds += plan.predict(group, rest, length)
            if best[start] + seconds < best[end]:
                best[end], cut[end] = best[start] + seconds, start
    end = len(lines)
    while end > 0:
        start = cut[end]
        if wanted in lines[start:end]:
            return lines[start:end]
        end = start
    raise AssertionError("the wanted lane is among the lines")
