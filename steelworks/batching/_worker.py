"""Workers: threads that take batches, run them on their runner, and hand out the ends.

What a worker promises: every request of a batch it took ends, whatever the model does.

* The model raises: the batch is run again in halves, down to single requests, so a bad request fails alone,
  with the exception and traceback of its own run, and its neighbours get their results.
* The model ends the thread (``SystemExit`` and other exceptions that are no ``Exception``): another worker
  takes over; the requests wait again, each to run alone, and fail with ``WorkerDiedError`` if that ends the
  worker once more.
* The model hangs longer than ``batch_timeout``: the worker is given up and replaced.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from steelworks.batching._request import CANCELLED, RUNNING, Request
from steelworks.batching._scheduler import OPEN, Scheduler, Sleeper
from steelworks.batching._tracing import Tracer
from steelworks.devices.base import Device
from steelworks.errors import ModelOutputError, WorkerDiedError, WorkerHungError
from steelworks.plans.plan import Express, Plan, Runner, Ticket

logger = logging.getLogger("steelworks.batching")

_MAX_IDLE_DEATHS = 10  # deaths with no request in hand: a fault of ours, not of a request
_LONGEST_WAIT = 3600.0  # seconds; locks refuse to wait for much longer ones


class _Batch:
    __slots__ = ("error", "requests", "started", "ticket")

    def __init__(self, requests: list[Request], started: float) -> None:
        self.requests = requests
        self.started = started
        self.ticket: Ticket | None = None
        self.error: Exception | None = None


class Worker:
    """One worker thread; see the module's text."""

    def __init__(self, crew: Crew, index: int, plan: Plan, runner: Runner | None) -> None:
        self.crew = crew
        self.index = index
        self.plan = plan
        self.runner = runner
        self.device: Device = plan.device
        self.sleeper = Sleeper(self)
        self.in_flight: deque[_Batch] = deque()
        # Requests taken, but not launched before others have ended. Whoever pops them sees to them.
        self.held: deque[list[Request]] = deque()
        self.abandoned = False
        self.thread = threading.Thread(
            target=self._run, name=f"{crew.scheduler.options.name}-worker-{index}", daemon=True
        )

    def _run(self) -> None:
        crew = self.crew
        crew.idents.add(threading.get_ident())
        try:
            with self.device.worker_scope(self.index, crew.scheduler.workers):
                if self.runner is None:
                    self.runner = crew.make_runner(self)
                if self.runner is not None:
                    self._loop(self.runner)
        except BaseException as death:
            crew.died(self, death)
        else:
            crew.left(self)
        finally:
            crew.idents.discard(threading.get_ident())

    def _loop(self, runner: Runner) -> None:
        scheduler, in_flight, depth = self.crew.scheduler, self.in_flight, self.crew.depth
        while True:
            while len(in_flight) < depth and not self.abandoned:
                requests = scheduler.take(self.sleeper, wait=not in_flight)
                if requests is None:
                    break
                self._launch(runner, requests)
                del requests  # an idle worker keeps no results alive
            if not in_flight:
                return
            self._finish(runner)

    def lead(self) -> None:
        """Do on the calling thread what this worker's thread would do, up to one finished batch.

        For a caller that was lent this worker. Leaves batches in flight.
        """
        runner, scheduler = self.runner, self.crew.scheduler
        assert runner is not None
        try:
            while len(self.in_flight) < self.crew.depth:
                requests = scheduler.take(self.sleeper, wait=False)
                if requests is None:
                    break
                self._launch(runner, requests)
            if self.in_flight:
                self._finish(runner)
        except BaseException:  # the caller was interrupted: whoever comes next runs what was not launched
            scheduler.retry(self.take_held(), blamed=False)
            raise

    def _launch(self, runner: Runner, requests: list[Request]) -> None:
        alone = requests[0].solo  # nothing else may be in hand if it ends the worker again
        most = 0 if alone else self.crew.depth - 1  # a leader may have left more
        if len(self.in_flight) > most:
            self.held.append(requests)
            while len(self.in_flight) > most:
                self._finish(runner)
            if not self.held:
                return  # this worker was given up meanwhile
            requests = self.held.pop()
        batch = _Batch(requests, time.perf_counter())
        self.in_flight.append(batch)
        scheduler = self.crew.scheduler
        if len(self.in_flight) == 1:
            scheduler.busy(self, True)
            if self.crew.share_cores:
                self.device.set_thread_share(self.crew.cores if scheduler.alone() else self.crew.cores_each)
        batch.ticket, batch.error = _launched(runner, _readings(requests))
        if alone:
            self._finish(runner)

    def _finish(self, runner: Runner) -> None:
        """End the oldest batch. A batch stays in hand until all its requests have ended."""
        batch = self.in_flight[0]
        self._collect(runner, batch)
        if batch.error is None:
            return
        # Runners finish in the order of launching: what came later first, then the halves.
        broken = [batch]
        for later in list(self.in_flight)[1:]:
            self._collect(runner, later)
            if later.error is not None:
                broken.append(later)
        while broken:
            self._halve(runner, broken.pop(0))

    def _collect(self, runner: Runner, batch: _Batch) -> None:
        """Wait for a launched batch and hand out its results, or note its error."""
        if batch.error is not None:
            return
        assert batch.ticket is not None
        results, batch.error = _finished(runner, batch.ticket, len(batch.requests))
        if batch.error is None:
            self.crew.idle_deaths = 0
            self._ended(batch)
            self.crew.scheduler.complete(batch.requests, results, batch.started)
            self.crew.tracer.batch(batch.requests, batch.started)

    def _ended(self, batch: _Batch) -> None:
        self.in_flight.remove(batch)
        if not self.in_flight:
            self.crew.scheduler.busy(self, False)

    def _halve(self, runner: Runner, batch: _Batch) -> None:
        """The batch raised: find the requests that do it, by halves; the others get their results."""
        scheduler = self.crew.scheduler
        stack: list[tuple[list[Request], Exception | None]] = [(batch.requests, batch.error)]
        while stack:
            requests, raised = stack.pop()
            ran_alone = raised is not None and len(requests) == 1
            requests = [request for request in requests if request.state == RUNNING]
            if not requests:
                continue
            if raised is None:
                scheduler.count(retries=1)
                batch.started = time.perf_counter()  # batch_timeout is for each run
                results, raised = _run_again(runner, _readings(requests))
                if raised is None:
                    scheduler.complete(requests, results, batch.started)
                    continue
                ran_alone = len(requests) == 1
            if ran_alone:
                self.plan.explain(raised, requests[0].reading)
                scheduler.fail(requests, [raised])
                self.crew.tracer.failed(requests, batch.started, raised)
            else:  # an only one left may owe the error to a neighbour that has ended meanwhile
                half = len(requests) // 2
                stack.append((requests[half:], None))
                stack.append((requests[:half], None))
        self._ended(batch)
        # Whoever keeps an exception keeps this frame, and must not keep the other requests with it.
        batch.requests, batch.error, requests, results, raised = [], None, [], [], None

    def requests(self) -> list[Request]:
        """The requests of the batches in flight."""
        return [request for batch in list(self.in_flight) for request in batch.requests]

    def take_held(self) -> list[Request]:
        """Take over the requests that were not launched yet."""
        try:
            return self.held.pop()
        except IndexError:
            return []


class Crew:
    """All workers of a queue: starts, replaces and joins them."""

    def __init__(self, scheduler: Scheduler, plans: Sequence[Plan], depth: int, tracer: Tracer) -> None:
        self.scheduler = scheduler
        self.plans = plans
        self.depth = depth
        self.tracer = tracer
        capabilities = plans[0].device.capabilities
        self.cores = capabilities.max_streams if capabilities.device_type == "cpu" else 1
        self.cores_each = max(1, self.cores // scheduler.workers)
        self.share_cores = (
            capabilities.device_type == "cpu" and self.cores > 1 and not scheduler.options.deterministic
        )
        self.idents: set[int] = set()  # of the workers' threads
        self._lock = threading.Lock()
        self._workers: set[Worker] = set()
        self._fewer_workers = threading.Condition(self._lock)
        self._leaving: list[threading.Thread] = []  # threads with nothing more to do
        self.idle_deaths = 0  # in a row
        self._given_up = False
        self._ready = threading.Event()
        self._setup_error: BaseException | None = None
        self._spare: dict[int, Runner] = {}

    def start(self) -> None:
        """Start the workers; the first one prepares the plans, alone (I4). Raises what that raises."""
        first = Worker(self, 0, self.plans[0], None)
        with self._lock:
            self._workers.add(first)
        first.thread.start()
        self._ready.wait()
        if self._setup_error is not None:
            raise self._setup_error
        for index in range(1, self.scheduler.workers):
            self._start_one(index, self._spare.pop(index, None))

    def make_runner(self, worker: Worker) -> Runner | None:
        """Make the worker's runner; on the first call also warm the plans up and make the others'."""
        if self._ready.is_set():
            return worker.plan.runner(self.depth)
        try:
            for plan in self.plans:
                plan.warm_up()
            runner = worker.plan.runner(self.depth)
            for index in range(1, self.scheduler.workers):
                self._spare[index] = self.plans[index % len(self.plans)].runner(self.depth)
        except BaseException as error:
            self._setup_error = error
            self._ready.set()
            return None
        self._ready.set()
        return runner

    def express(self, count: int) -> list[Express]:
        """Runs for callers' own threads, from the first device's plan."""
        return self.plans[0].express(count)

    def _start_one(self, index: int, runner: Runner | None, replaces: Worker | None = None) -> None:
        worker = Worker(self, index, self.plans[index % len(self.plans)], runner)
        with self._lock:
            self._workers.add(worker)
        try:
            worker.thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is going down
            with self._lock:
                self._workers.discard(worker)
                others = self._workers - {replaces}
            if not others:
                self.scheduler.break_down(error)
            else:
                logger.error("%s could not start a worker: %s", self.scheduler.options.name, error)

    def _remove(self, worker: Worker) -> None:
        """Forget a worker; its replacement is there already, so that ``join`` never sees too few."""
        with self._fewer_workers:
            self._workers.discard(worker)
            self._leaving = [thread for thread in self._leaving if thread.is_alive()]
            if not worker.abandoned:
                self._leaving.append(worker.thread)
            self._fewer_workers.notify_all()

    def died(self, worker: Worker, death: BaseException) -> None:
        """A worker's thread is ending by an exception: see to its requests and replace it."""
        try:
            if not self._ready.is_set():  # it could not even be set up
                self._setup_error = death
                self._ready.set()
            else:
                self._bury(worker, death)
        finally:
            self._remove(worker)

    def _bury(self, worker: Worker, death: BaseException) -> None:
        requests = [request for request in worker.requests() if request.state == RUNNING]
        with self._lock:
            self.idle_deaths = 0 if requests else self.idle_deaths + 1
            hopeless = self.idle_deaths > _MAX_IDLE_DEATHS
        self.scheduler.busy(worker, False)
        logger.error(
            "%s: a worker ended by %s; %d requests in hand",
            self.scheduler.options.name,
            type(death).__name__,
            len(requests),
            exc_info=death,
        )
        lost = [request for request in requests if request.attempts > 0]
        if lost:
            self.scheduler.fail(lost, [_died(death) for _ in lost])
        self.scheduler.retry(worker.take_held(), blamed=False)
        if hopeless:
            self.scheduler.break_down(death)
            return
        self.scheduler.retry([request for request in requests if request.attempts == 0])
        if not worker.abandoned:
            self.scheduler.count(replaced=1)
            worker.in_flight.clear()
            self._start_one(worker.index, worker.runner, replaces=worker)

    def left(self, worker: Worker) -> None:
        """A worker's thread is ending in order."""
        try:
            if worker.runner is not None and not worker.abandoned:
                worker.runner.close()
        except Exception:
            logger.exception("%s: closing a runner failed", self.scheduler.options.name)
        finally:
            self._remove(worker)
            self.scheduler.clock_wanted.set()

    def check_hung(self, now: float) -> None:
        """Give up workers whose oldest batch runs longer than ``batch_timeout``."""
        timeout = self.scheduler.options.batch_timeout
        if timeout is None:
            return
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            batches = list(worker.in_flight)
            if not batches or worker.abandoned or now - batches[0].started <= timeout:
                continue
            worker.abandoned = True
            requests = worker.requests()
            message = (
                f"a batch of {len(requests)} requests ran longer than batch_timeout={timeout} s; "
                "its worker was given up"
            )
            logger.error("%s: %s", self.scheduler.options.name, message)
            self.scheduler.fail(requests, [WorkerHungError(message) for _ in requests])
            self.scheduler.retry(worker.take_held(), blamed=False)
            self.scheduler.busy(worker, False)
            if worker.device.capabilities.owner_thread:
                # The device is held by the hung thread: nobody else may touch it.
                self.scheduler.break_down(WorkerHungError(message))
            else:
                self.scheduler.count(replaced=1)
                self._start_one(worker.index, None, replaces=worker)
            self._remove(worker)

    def give_up(self, error: BaseException) -> None:
        """End what still runs, with ``error``; the threads are left to themselves."""
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            worker.abandoned = True
            requests = worker.requests() + worker.take_held()
            self.scheduler.fail(requests, [copy.copy(error) for _ in requests], CANCELLED)
            self._given_up = True
            self._remove(worker)

    def alive(self) -> int:
        """How many workers there are."""
        with self._lock:
            return len(self._workers)

    def join(self, timeout: float | None) -> bool:
        """Wait for all workers to leave; False on timeout. A worker does not wait for itself."""
        me = threading.current_thread()
        with self._fewer_workers:
            gone = self._fewer_workers.wait_for(
                lambda: all(worker.thread is me for worker in self._workers), timeout
            )
            leaving = self._leaving
        for thread in leaving:
            if thread is not me:
                thread.join()
        return gone and not self._given_up


class Supervisor:
    """One thread that watches the clock: deadlines and hung batches. Started when first needed."""

    def __init__(self, scheduler: Scheduler, crew: Crew) -> None:
        self._scheduler = scheduler
        self._crew = crew
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = False
        self._nudge = scheduler.clock_wanted

    def ensure_started(self) -> None:
        """Start the thread unless it runs."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._stop:
                name = f"{self._scheduler.options.name}-supervisor"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()

    def stop(self, timeout: float | None) -> None:
        """End the thread and wait for it, at most ``timeout`` seconds (a callback may hold it up)."""
        with self._lock:
            self._stop = True
        self._nudge.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        timeout = self._scheduler.options.batch_timeout
        patrol = timeout / 4 if timeout is not None else None
        while True:
            self._nudge.clear()
            if self._stop or (self._scheduler.state is not OPEN and not self._crew.alive()):
                return
            upcoming = self._scheduler.expire(time.perf_counter())
            self._crew.check_hung(time.perf_counter())
            waits = [_LONGEST_WAIT] if patrol is None else [_LONGEST_WAIT, patrol]
            if upcoming is not None:
                waits.append(max(0.0, upcoming - time.perf_counter()))
            self._nudge.wait(min(waits))


# The model runs below functions that hold nothing but its inputs: an exception keeps the frames it
# passed through alive, and must not keep the results of a whole batch alive with them.


def _launched(runner: Runner, readings: list[Any]) -> tuple[Ticket | None, Exception | None]:
    try:
        return runner.launch(readings), None
    except Exception as error:
        return None, error


def _finished(runner: Runner, ticket: Ticket, count: int) -> tuple[list[Any], Exception | None]:
    try:
        results = runner.finish(ticket)
        if len(results) != count:
            raise ModelOutputError(f"the plan gave {len(results)} results for a batch of {count} requests")
        return results, None
    except Exception as error:
        return [], error


def _run_again(runner: Runner, readings: list[Any]) -> tuple[list[Any], Exception | None]:
    ticket, error = _launched(runner, readings)
    if error is not None:
        return [], error
    assert ticket is not None
    return _finished(runner, ticket, len(readings))


def _readings(requests: Sequence[Request]) -> list[Any]:
    return [request.reading for request in requests]


def _died(death: BaseException) -> WorkerDiedError:
    error = WorkerDiedError(
        f"the model ended its worker twice, the second time with this request alone ({type(death).__name__}: "
        f"{death}); the model must raise an Exception instead"
    )
    error.__cause__ = copy.copy(death) if isinstance(death, SystemExit) else death
    return error
