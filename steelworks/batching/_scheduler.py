"""The scheduler: all state that threads share, behind one lock, changed in a few named steps.

The steps (each between ``seam.before`` and ``seam.after``) and what they promise:

* ``Submit``: a request is accepted (pending, or parked over ``max_pending``), refused, or it displaces the
  oldest. An idle worker is woken if there is one.
* ``Take``: a worker removes the next batch; its requests are running. Parked requests move up.
* ``Lend``, ``GiveBack``: a caller borrows an idle worker's runner and leads; nobody else has it meanwhile.
* ``Park``: a worker that found nothing goes to sleep; a later Submit wakes it. No wake-up is lost because
  both happen under the lock.
* ``End``: requests move to ENDED, each exactly once (I2): whoever finds a request ended leaves it alone.
* ``Retry``: running requests of a dead worker go back to wait, once, to run alone.
* ``Close``: no more requests are accepted; workers leave when nothing waits.

Nothing is compiled, captured, copied or delivered under the lock (I4).
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from steelworks import seam
from steelworks.batching._express import ExpressLane
from steelworks.batching._pending import Pending
from steelworks.batching._request import (
    CANCELLED,
    COMPLETED,
    DROPPED,
    ENDED,
    EXPIRED,
    FAILED,
    PARKED,
    PENDING,
    RUNNING,
    Request,
    deliver,
)
from steelworks.batching.options import QueueOptions
from steelworks.batching.statistics import ROWS_EDGES, SECONDS_EDGES, Histogram, QueueStatistics
from steelworks.errors import (
    DeadlineExceededError,
    ForkedProcessError,
    QueueClosedError,
    QueueFullError,
    SteelworksError,
)
from steelworks.plans.plan import Plan

logger = logging.getLogger("steelworks.batching")

_ARRIVED = attrgetter("arrived")
_FEW = 64  # ended entries that a list may hold before it is worth cleaning

OPEN, CLOSING, CLOSED, BROKEN, FORKED = "open", "closing", "closed", "broken", "forked"


class Sleeper:
    """How a worker sleeps: a lock that is held while asleep, and how many rows would wake it.

    Whoever takes a sleeper off the idle list has the worker's runner to itself: the worker's thread when
    it is woken, or a caller that leads (see ``Scheduler.lend``).

    Attributes:
        wake: released to wake the worker's thread.
        need: rows that must wait before it is woken.
        loaded: a leader left batches in flight; the worker's thread ends them when it is woken.
        owner: the worker.
    """

    __slots__ = ("loaded", "need", "owner", "wake")

    def __init__(self, owner: Any = None) -> None:
        self.wake = threading.Lock()
        self.wake.acquire()
        self.need = 1
        self.loaded = False
        self.owner = owner


class _Borrower:
    """A caller that waits for a worker to be lent to it."""

    __slots__ = ("gate", "sleeper")

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.sleeper: Sleeper | None = None


class Scheduler:
    """Requests, their order and their ends. Workers and callers meet here."""

    def __init__(self, plan: Plan, options: QueueOptions, workers: int) -> None:
        self.plan = plan
        self.options = options
        self._max_pending = options.max_pending
        self.workers = workers
        self.lock = threading.Lock()
        self.state = OPEN
        self.cause: BaseException | None = None
        self._pending = Pending()
        self._parked: deque[Request] = deque()
        self._parked_live = 0
        self._idle: deque[Sleeper] = deque()
        self._borrowers: deque[_Borrower] = deque()
        self._running = 0
        self._running_rows = 0
        self._busy: set[object] = set()  # workers that run a batch
        # Deliveries under way, of requests that ended but whose askers don't know yet: the threads at it.
        self._delivering: list[int] = []
        self._quiet = threading.Condition(self.lock)  # nothing waits, runs or is being delivered
        self._deadlines: list[tuple[float, int, Request]] = []
        self._deadlines_allowed = _FEW  # entries; then those of ended requests are thrown out
        self._ticks = itertools.count()
        self._ages: deque[Request] | None = deque() if options.overflow == "drop_oldest" else None
        self._next_sweep = 0  # count of requests seen at which to look for abandoned ones again
        self.clock_wanted = threading.Event()  # the supervisor sleeps on it
        self.express: ExpressLane | None = None
        self._draining = 0  # threads in drain()
        self._crowd = 0.0  # requests in flight lately, for max_wait
        # counters
        self._accepted = 0
        self._rejected = 0
        self._ended = {COMPLETED: 0, FAILED: 0, CANCELLED: 0, EXPIRED: 0, DROPPED: 0}
        self._retries = 0
        self._replaced = 0
        self._batches = 0
        self._rows = 0
        self._batch_rows = Histogram(ROWS_EDGES)
        self._wait = Histogram(SECONDS_EDGES)
        self._run = Histogram(SECONDS_EDGES)
        self._total = Histogram(SECONDS_EDGES)

    # ---------------------------------------------------------------- callers

    def submit(self, request: Request, clocked: bool = False, waits: bool = False) -> bool:
        """Accept ``request``; True if it waits over ``max_pending`` (parked).

        Args:
            request: the request; ``request.deadline`` is set if it has one.
            clocked: end the request at its deadline even if nobody comes to ask.
            waits: if the request is parked, its caller will wait for ``request.admitted``.

        Raises:
            QueueClosedError: the queue is closing, closed or broken.
            ForkedProcessError: this is a forked child; the workers stayed in the parent.
            QueueFullError: ``max_pending`` requests wait and ``overflow`` is ``"reject"``.
        """
        watched = seam.watched()
        if watched:
            seam.before("Submit", self)
        ended: list[Request] = []
        wake: Sleeper | None = None
        try:
            with self.lock:
                if self.state is not OPEN:
                    raise self.closed_error()
                parked = self._pending.count >= self._max_pending and self._overflowing(ended)
                self._accepted += 1
                if clocked and request.deadline is not None:
                    self._watch_deadline(request)
                if parked:
                    request.state = PARKED
                    self._parked.append(request)
                    self._parked_live += 1
                    if waits:
                        request.admitted = threading.Event()
                else:
                    self._pending.add(request)
                    if self._ages is not None:
                        self._note_ages((request,))
                    if self._idle:
                        wake = self._sleeper_to_wake()
        finally:
            # Before the delivery, which runs callbacks: one of them may raise KeyboardInterrupt.
            if wake is not None:
                wake.wake.release()
            if ended:
                self._deliver(ended)
        if watched:
            seam.after("Submit", self, request=request, parked=parked, ended=ended, woke=wake is not None)
        return parked

    def express_may_run(self) -> bool:
        """Whether a caller may run its request itself: nothing waits that came before it."""
        lane = self.express
        if lane is not None and lane.log_is_long:
            with self.lock:
                self._add_up(lane)
        return self.state is OPEN and not self._pending.count

    def _add_up(self, lane: ExpressLane) -> None:
        """Add the express lane's log to the counters; under the lock."""
        log = lane.log
        for _ in range(len(log)):
            started, ended, succeeded = log.popleft()
            self._accepted += 1
            self._ended[COMPLETED if succeeded else FAILED] += 1
            self._batches += 1
            self._rows += 1
            self._batch_rows.observe(1)
            self._run.observe(ended - started)
            if succeeded:
                self._wait.observe(0.0)
                self._total.observe(ended - started)

    def lend(self, patience: float = 0.0) -> Sleeper | None:
        """Lend an idle worker's runner to the calling thread, if nothing waits; give it back soon.

        The caller leads: it does what the worker's thread would do, without the two thread switches and
        without two threads wanting the GIL.

        Args:
            patience: seconds to wait for a worker that is about to be idle.
        """
        watched = seam.watched()
        if watched:
            seam.before("Lend", self)
        sleeper: Sleeper | None = None
        borrower: _Borrower | None = None
        with self.lock:
            if self.state is OPEN and not self._pending.count:
                if self._idle:
                    sleeper = self._idle.pop()
                elif patience > 0.0:
                    borrower = _Borrower()
                    self._borrowers.append(borrower)
        if borrower is not None:
            try:
                borrower.gate.acquire(timeout=patience)
            except BaseException:  # KeyboardInterrupt: what was lent must not be lost
                sleeper = self._borrowed(borrower)
                if sleeper is not None:
                    self.give_back(sleeper, bool(sleeper.loaded), foreign=sleeper.loaded)
                raise
            sleeper = self._borrowed(borrower)
        if watched:
            seam.after("Lend", self, sleeper=sleeper)
        return sleeper

    def _borrowed(self, borrower: _Borrower) -> Sleeper | None:
        """What the borrower was lent, if anything; it waits no longer."""
        with self.lock:
            if borrower.sleeper is None:
                self._borrowers.remove(borrower)
            return borrower.sleeper

    def _sleep(self, sleeper: Sleeper) -> None:
        """A worker found nothing: it is idle, or lent at once to a caller that waits for it."""
        sleeper.need = 1
        if self._borrowers and self.state is OPEN:
            borrower = self._borrowers.popleft()
            borrower.sleeper = sleeper
            borrower.gate.release()
        else:
            self._idle.append(sleeper)

    def give_back(self, sleeper: Sleeper, loaded: bool, foreign: bool) -> None:
        """Give a lent runner back.

        Args:
            sleeper: as lent.
            loaded: whether batches are in flight on it.
            foreign: whether others than the leader wait for those; then the worker's thread ends them now,
                for nobody knows when the leader comes back.
        """
        watched = seam.watched()
        if watched:
            seam.before("GiveBack", self)
        with self.lock:
            sleeper.loaded = loaded
            wake = foreign or bool(self._pending.count) or self.state is not OPEN or self._draining > 0
            if not wake:
                sleeper.need = 1
                self._idle.append(sleeper)
        if wake:
            sleeper.wake.release()
        if watched:
            seam.after("GiveBack", self, sleeper=sleeper, woke=wake)

    def unload(self) -> None:
        """Have the workers' threads end what leaders left in flight."""
        with self.lock:
            self._unload()

    def _unload(self) -> None:
        for sleeper in [sleeper for sleeper in self._idle if sleeper.loaded]:
            self._idle.remove(sleeper)
            sleeper.wake.release()

    def submit_many(self, requests: Sequence[Request]) -> None:
        """Accept requests of a ``map``, or of one turn of an event loop; over ``max_pending`` they park."""
        seam.before("Submit", self)
        sleepers = []
        ended: list[Request] = []
        with self.lock:
            if self.state is not OPEN:
                raise self.closed_error()
            if self._pending.count + len(requests) > self._max_pending:
                self._sweep(ended)
            self._accepted += len(requests)
            room = max(0, self._max_pending - self._pending.count)
            self._pending.add_many(requests[:room])
            if self._ages is not None:
                self._note_ages(requests[:room])
            for request in requests[room:]:
                request.state = PARKED
                self._parked.append(request)
                self._parked_live += 1
            for _ in range(min(len(self._idle), len(requests))):
                sleeper = self._sleeper_to_wake()
                if sleeper is not None:
                    sleepers.append(sleeper)
        for sleeper in sleepers:
            sleeper.wake.release()
        seam.after("Submit", self, requests=len(requests), ended=ended, woke=len(sleepers))
        if ended:
            self._deliver(ended)

    def cancel(self, request: Request, error: BaseException | None = None) -> bool:
        """End a request that has not started, as cancelled; False if it runs or has ended."""
        seam.before("End", self)
        with self.lock:
            done = request.state in (PENDING, PARKED)
            if done:
                self._end_one(request, CANCELLED, error)
                self._delivering.append(threading.get_ident())
        seam.after("End", self, request=request, outcome=request.outcome)
        if done:
            self._deliver([request])
        return done

    def abandon(self, requests: Iterable[Request]) -> None:
        """Cancel what has not started of requests whose asker has gone, for example by garbage collection.

        That may happen anywhere, even where this very thread holds the lock. So this does not wait for
        the lock: where it is taken, the sink's ``abandoned`` ends the requests later.
        """
        if self.lock.acquire(blocking=False):
            try:
                self._unload()
                for request in requests:
                    if request.state in (PENDING, PARKED):
                        self._end_one(request, CANCELLED, None)
            finally:
                self.lock.release()

    def withdraw(self, request: Request) -> bool:
        """The blocked caller of a request gives up (deadline, interrupt); False if it has ended.

        A running request ends too: its result will be thrown away. Nothing is delivered, since the
        caller itself asks.
        """
        seam.before("End", self)
        with self.lock:
            done = request.state != ENDED
            if done:
                expired = request.deadline is not None and time.perf_counter() >= request.deadline
                self._end_one(request, EXPIRED if expired else CANCELLED, None)
        seam.after("End", self, request=request, outcome=request.outcome)
        return done

    def drain(self, timeout: float | None) -> bool:
        """Wait until every accepted request has ended and was delivered; False on timeout."""
        with self.lock:
            if self.state is FORKED:
                raise self.closed_error()
            self._draining += 1
        end = None if timeout is None else time.monotonic() + timeout
        try:
            self.unload()
            with self.lock:
                quiet = self._quiet.wait_for(self._all_told, timeout)
            if not quiet or self.express is None:
                return quiet
            return self.express.settle(None if end is None else max(0.0, end - time.monotonic()))
        finally:
            with self.lock:
                self._draining -= 1

    # ---------------------------------------------------------------- workers

    def take(self, sleeper: Sleeper, wait: bool) -> list[Request] | None:
        """The next batch; its requests are running. None: nothing now, or (``wait``) leave for good."""
        while True:
            seam.before("Take", self)
            gather = 0.0
            skipped: list[Request] = []
            other: Sleeper | None = None
            with self.lock:
                batch = []
                wait = wait and not sleeper.loaded
                sleeper.loaded = False
                if self._pending.count:
                    gather = self._worth_waiting(sleeper) if wait else 0.0
                    if gather == 0.0:
                        batch = self._take(skipped)
                        if self._pending.count and self._idle:
                            other = self._sleeper_to_wake()
                if not batch and not gather:
                    if not wait or (self.state is not OPEN and not self._alive_waiting()):
                        if not skipped:
                            seam.after("Take", self, batch=None)
                            return None
                    elif not skipped:
                        self._sleep(sleeper)
                elif gather:
                    self._idle.append(sleeper)
                if skipped:
                    self._delivering.append(threading.get_ident())
            if other is not None:
                other.wake.release()
            if skipped:
                try:
                    self._deliver(skipped)
                except BaseException:  # the user's, by a callback: the batch is in nobody's hands yet
                    self.retry(batch, blamed=False)
                    raise
            if batch:
                seam.after("Take", self, batch=batch)
                return batch
            if skipped:
                continue
            seam.after("Take", self, batch=[])
            if gather:
                if not sleeper.wake.acquire(timeout=gather):
                    self._stop_gathering(sleeper)
            else:
                sleeper.wake.acquire()

    def _take(self, skipped: list[Request]) -> list[Request]:
        options = self.options
        limit = options.max_batch_size
        if self.workers > 1:
            # Leave the other workers their share of what is in flight.
            share = -(-(self._pending.rows + self._running_rows) // self.workers)
            limit = max(1, min(limit, share))
        now = time.perf_counter()
        batch: list[Request] = []
        before = self._pending.rows
        taken = self._pending.take(self.plan, limit)
        rows = before - self._pending.rows
        for request in taken:
            if request.deadline is not None and request.deadline <= now:
                rows -= request.rows
                self._finish(request, EXPIRED, _expired(request))
                skipped.append(request)
            elif request.sink.may_abandon and request.sink.abandoned(request):
                rows -= request.rows
                self._finish(request, CANCELLED, None)
                skipped.append(request)
            else:
                request.state = RUNNING
                batch.append(request)
        self._running += len(batch)
        self._running_rows += rows
        self._admit()
        crowd = self._pending.rows + self._running_rows
        self._crowd = max(float(crowd), self._crowd * 0.9)
        return batch

    def _admit(self) -> None:
        """Move parked requests up while there is room."""
        while self._parked and self._pending.count < self.options.max_pending:
            request = self._parked.popleft()
            if request.state == PARKED:
                self._parked_live -= 1
                request.state = PENDING
                self._pending.add(request)
                if self._ages is not None:
                    self._note_ages((request,))
                if request.admitted is not None:
                    request.admitted.set()

    def _overflowing(self, ended: list[Request]) -> bool:
        """``max_pending`` requests wait: make room for one more or raise; True if it is to be parked.

        What ends here is put into ``ended``; the caller delivers it.
        """
        self._sweep(ended)
        overflow = self.options.overflow
        parked = False
        if self._pending.count >= self._max_pending:
            if overflow == "reject":
                self._rejected += 1
                raise QueueFullError(
                    f"{self._pending.count} requests wait already (max_pending={self._max_pending}); "
                    "send fewer, raise max_pending, or use overflow='block'"
                )
            if overflow == "drop_oldest":
                dropped = self._oldest()
                error = QueueFullError(
                    f"dropped to make room: {self._max_pending} requests waited (overflow='drop_oldest')"
                )
                # The room is for the new request, not for a parked one.
                self._end_one(dropped, DROPPED, error, admit=False)
                if not ended:
                    self._delivering.append(threading.get_ident())
                ended.append(dropped)
            else:
                parked = True
        return parked

    def _note_ages(self, requests: Sequence[Request]) -> None:
        """Remember in which order requests came, for ``drop_oldest``."""
        ages = self._ages
        assert ages is not None
        ages.extend(requests)
        if len(ages) > 2 * self._pending.count + _FEW:
            self._ages = deque(request for request in ages if request.state == PENDING)

    def _oldest(self) -> Request:
        """The request that waited longest, whatever its priority; there must be one."""
        ages = self._ages
        assert ages is not None
        while ages and ages[0].state != PENDING:
            ages.popleft()
        oldest = ages[0] if ages else self._pending.oldest()
        assert oldest is not None
        return oldest

    def _sweep(self, ended: list[Request]) -> None:
        """End waiting requests whose askers have gone, so that they don't hold memory and places.

        Where the queue is not full, that is left to ``_take``. Looking at all of them costs as much as
        there are, so it is done anew only after a number of further requests that is in proportion.
        """
        seen = self._accepted + self._rejected
        if seen < self._next_sweep:
            return
        waiting = [*self._pending, *self._parked]
        for request in waiting:
            if request.state != ENDED and request.sink.may_abandon and request.sink.abandoned(request):
                self._end_one(request, CANCELLED, None)
                ended.append(request)
        if ended:
            self._delivering.append(threading.get_ident())
        self._next_sweep = seen + max(_FEW, self._alive_waiting() // 4)

    def _watch_deadline(self, request: Request) -> None:
        heap = self._deadlines
        if len(heap) >= self._deadlines_allowed:
            # Ended requests stay until their deadline passes, which may be hours ahead.
            heap = self._deadlines = [entry for entry in heap if entry[2].state != ENDED]
            heapq.heapify(heap)
            self._deadlines_allowed = max(_FEW, 2 * len(heap))
        assert request.deadline is not None
        heapq.heappush(heap, (request.deadline, next(self._ticks), request))
        if heap[0][2] is request:
            self.clock_wanted.set()

    def _worth_waiting(self, sleeper: Sleeper) -> float:
        """Seconds to wait for more requests before the next batch, 0.0 for none."""
        if self.options.max_wait <= 0.0 or self.state is not OPEN or sleeper.need > 1:
            sleeper.need = 1
            return 0.0
        share = min(int(self._crowd - self._running_rows), self.options.max_batch_size)
        if self.workers > 1:
            share = min(share, -(-int(self._crowd) // self.workers))
        if self._pending.rows >= share:
            return 0.0
        if self._pending.count >= self._max_pending:
            return 0.0  # whoever comes now is parked or refused until a batch is taken
        sleeper.need = share
        return self.options.max_wait

    def _stop_gathering(self, sleeper: Sleeper) -> None:
        """The wait was in vain: expect fewer from now on."""
        with self.lock:
            self._crowd = float(self._pending.rows + self._running_rows)
            try:
                self._idle.remove(sleeper)
                return
            except ValueError:
                pass
        # Woken in this very moment, or lent: the wake-up comes, so take it along.
        sleeper.wake.acquire()

    def _sleeper_to_wake(self) -> Sleeper | None:
        if self._idle and self._pending.count >= self._max_pending:
            return self._idle.popleft()  # no more may wait, whatever it waits for
        for place, sleeper in enumerate(self._idle):
            if sleeper.need <= self._pending.rows:
                del self._idle[place]
                return sleeper
        return None

    def complete(self, requests: Sequence[Request], results: Sequence[Any], started: float) -> None:
        """End running requests with their results and deliver them."""
        watched = seam.watched()
        if watched:
            seam.before("End", self)
        now = time.perf_counter()
        ended: list[Request] = []
        with self.lock:
            rows = 0
            for request, result in zip(requests, results, strict=True):
                reading = request.reading
                request.reading = None
                if request.state == RUNNING:
                    assert reading is not None
                    rows += reading.rows
                    request.outcome = COMPLETED
                    request.result = result
                    request.state = ENDED  # the last: ``map`` looks at it without the lock
                    ended.append(request)
            self._running -= len(ended)
            self._running_rows -= rows
            self._ended[COMPLETED] += len(ended)
            self._batches += 1
            self._rows += rows
            self._batch_rows.observe(rows)
            self._run.observe(now - started)
            waits = [started - request.arrived for request in ended]
            waits.sort()
            self._wait.observe_sorted(waits)
            self._total.observe_sorted(waits, now - started)
            self._delivering.append(threading.get_ident())
        if watched:
            seam.after("End", self, requests=ended, outcome=COMPLETED)
        self._deliver(ended)

    def fail(
        self, requests: Sequence[Request], errors: Sequence[BaseException], outcome: str = FAILED
    ) -> None:
        """End requests that have not ended yet with their exceptions, and deliver them."""
        seam.before("End", self)
        ended: list[Request] = []
        with self.lock:
            for request, error in zip(requests, errors, strict=True):
                if request.state != ENDED:
                    self._end_one(request, outcome, error)
                    request.reading = None  # the worker is through with it
                    ended.append(request)
            self._delivering.append(threading.get_ident())
        seam.after("End", self, requests=ended, outcome=outcome)
        self._deliver(ended)

    def retry(self, requests: Sequence[Request], blamed: bool = True) -> None:
        """Running requests of a dead worker wait again.

        Args:
            requests: the requests.
            blamed: one of them may have ended the worker: each is run alone, and at most this once.
        """
        if not requests:
            return
        seam.before("Retry", self)
        wake: Sleeper | None = None
        again = []
        with self.lock:
            for request in requests:
                if request.state == RUNNING:
                    again.append(request)
                    self._running -= 1
                    self._running_rows -= request.rows
                    request.state = PENDING
                    if blamed:
                        request.solo = True
                        request.attempts += 1
                    self._pending.add(request)
            if self._ages is not None:
                # By arrival: they ran in another order, and others may have come back before.
                ages = (*again, *(request for request in self._ages if request.state == PENDING))
                self._ages = deque(sorted(dict.fromkeys(ages), key=_ARRIVED))
            if self._pending.count:
                wake = self._sleeper_to_wake()
        if wake is not None:
            wake.wake.release()
        seam.after("Retry", self, requests=again)

    def alone(self) -> bool:
        """Whether the calling worker has the only running batch and nothing waits."""
        return len(self._busy) == 1 and not self._pending.count

    def busy(self, worker: object, is_busy: bool) -> None:
        """Note whether ``worker`` runs a batch; may be said twice."""
        with self.lock:
            if is_busy:
                self._busy.add(worker)
            else:
                self._busy.discard(worker)

    def count(self, retries: int = 0, replaced: int = 0) -> None:
        """Add to the counters of batches run again and of workers replaced."""
        with self.lock:
            self._retries += retries
            self._replaced += replaced

    # ---------------------------------------------------------------- time and closing

    def expire(self, now: float) -> float | None:
        """End every request whose deadline has passed; when the next one passes, or None."""
        seam.before("End", self)
        ended: list[Request] = []
        with self.lock:
            heap = self._deadlines
            while heap and (heap[0][0] <= now or heap[0][2].state == ENDED):
                request = heapq.heappop(heap)[2]
                if request.state != ENDED:
                    self._end_one(request, EXPIRED, _expired(request))
                    ended.append(request)
            upcoming = heap[0][0] if heap else None
            self._delivering.append(threading.get_ident())
        seam.after("End", self, requests=ended, outcome=EXPIRED)
        self._deliver(ended)
        return upcoming

    def close(self, cancel_pending: bool) -> None:
        """Accept nothing more; with ``cancel_pending`` end what has not started."""
        seam.before("Close", self)
        ended: list[Request] = []
        with self.lock:
            if self.state is OPEN:
                self.state = CLOSING
            if cancel_pending:
                for request in [*self._pending, *(r for r in self._parked if r.state == PARKED)]:
                    error = QueueClosedError("the queue was closed before the request ran")
                    self._end_one(request, CANCELLED, error)
                    ended.append(request)
            sleepers = list(self._idle)
            self._idle.clear()
            self._delivering.append(threading.get_ident())
        for sleeper in sleepers:
            sleeper.wake.release()
        self.clock_wanted.set()
        seam.after("Close", self, cancelled=len(ended))
        self._deliver(ended)

    def finish_closing(self) -> None:
        """All workers have left."""
        with self.lock:
            if self.state is CLOSING:
                self.state = CLOSED

    def break_down(self, cause: BaseException) -> None:
        """No worker can run any more: end everything with ``cause`` and refuse what comes."""
        seam.before("Close", self)
        with self.lock:
            self.state = BROKEN
            self.cause = cause
            waiting = [*self._pending, *(r for r in self._parked if r.state == PARKED)]
            for request in waiting:
                self._end_one(request, FAILED, self.closed_error())
            sleepers = list(self._idle)
            self._idle.clear()
            self._delivering.append(threading.get_ident())
        for sleeper in sleepers:
            sleeper.wake.release()
        seam.after("Close", self, failed=len(waiting))
        self._deliver(waiting)

    def forked(self) -> None:
        """This is a forked child: the workers, and whoever held the lock, stayed in the parent."""
        self.lock = threading.Lock()
        self._quiet = threading.Condition(self.lock)
        self.state = FORKED

    def closed_error(self) -> SteelworksError:
        """The error for a request that comes too late."""
        if self.state is FORKED:
            return ForkedProcessError(
                "the queue was made before fork(); its workers stayed in the parent: make a queue in the "
                "child, or start processes with the 'spawn' method"
            )
        if self.state is BROKEN:
            error = QueueClosedError(f"the queue stopped working ({self.cause}); make a new one")
            error.__cause__ = self.cause
            return error
        return QueueClosedError(f"the queue is {self.state}; make a new one, or send requests before close()")

    def statistics(self) -> QueueStatistics:
        """A consistent snapshot."""
        with self.lock:
            express = 0
            if self.express is not None:
                express = self.express.running
                self._add_up(self.express)
            return QueueStatistics(
                accepted=self._accepted + express,
                rejected=self._rejected,
                pending=self._pending.count + self._parked_live,
                running=self._running + express,
                batches=self._batches,
                rows=self._rows,
                retries=self._retries,
                workers=self.workers,
                workers_replaced=self._replaced,
                batch_rows=self._batch_rows.snapshot(),
                wait_seconds=self._wait.snapshot(),
                run_seconds=self._run.snapshot(),
                total_seconds=self._total.snapshot(),
                **self._ended,
            )

    # ---------------------------------------------------------------- under the lock

    def _end_one(
        self, request: Request, outcome: str, error: BaseException | None, admit: bool = True
    ) -> None:
        """End a request that is in the queue in any state but ENDED, without a result."""
        if request.state == PENDING:
            self._pending.remove(request)
            self._finish(request, outcome, error)
            if admit:
                self._admit()
        elif request.state == PARKED:
            self._parked_live -= 1
            if request.admitted is not None:
                request.admitted.set()
            self._finish(request, outcome, error)
            if len(self._parked) > _FEW and self._parked_live * 2 < len(self._parked):
                self._parked = deque(r for r in self._parked if r.state == PARKED)
        else:
            self._running -= 1
            self._running_rows -= request.rows
            self._finish(request, outcome, error)

    def _finish(self, request: Request, outcome: str, error: BaseException | None) -> None:
        if request.state != RUNNING:
            request.reading = None  # a running request's tensors are still in the worker's hands
        request.outcome = outcome
        request.error = error
        request.state = ENDED  # the last: ``map`` looks at it without the lock
        self._ended[outcome] += 1
        if self._draining and not self._alive():
            self._quiet.notify_all()

    def _alive_waiting(self) -> int:
        return self._pending.count + self._parked_live

    def _alive(self) -> int:
        return self._pending.count + self._parked_live + self._running

    def _all_told(self) -> bool:
        """Whether every request has ended and was delivered, but for what this thread itself delivers."""
        me = threading.get_ident()
        return not self._alive() and all(other == me for other in self._delivering)

    # ---------------------------------------------------------------- outside the lock

    def _deliver(self, ended: Sequence[Request]) -> None:
        """Deliver what just ended; under the lock, this thread was put on ``_delivering`` for it."""
        try:
            deliver(ended)
        finally:
            with self.lock:
                self._delivering.remove(threading.get_ident())
                if self._draining:
                    self._quiet.notify_all()


def _expired(request: Request) -> DeadlineExceededError:
    assert request.deadline is not None
    allowed = request.deadline - request.arrived
    where = "was running" if request.state == RUNNING else "waited for a worker"
    return DeadlineExceededError(
        f"the request's deadline of {allowed:.3g} s passed while it {where}; give it longer, or send fewer at once"
    )
