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
from steelworks.errors import WorkerDiedError, WorkerHungError
from steelworks.plans.plan import Plan, Runner, Ticket

logger = logging.getLogger("steelworks.batching")

_MAX_IDLE_DEATHS = 10  # deaths with no request in hand: a fault of ours, not of a request


class _Batch:
    __slots__ = ("requests", "started", "ticket")

    def __init__(self, requests: list[Request], started: float) -> None:
        self.requests = requests
        self.started = started
        self.ticket: Ticket | None = None


class Worker:
    """One worker thread; see the module's text."""

    def __init__(self, crew: Crew, index: int, plan: Plan, runner: Runner | None) -> None:
        self.crew = crew
        self.index = index
        self.plan = plan
        self.runner = runner
        self.device: Device = plan.device
        self.sleeper = Sleeper()
        self.in_flight: deque[_Batch] = deque()
        self.abandoned = False
        self.thread = threading.Thread(
            target=self._run, name=f"{crew.scheduler.options.name}-worker-{index}", daemon=True
        )

    def _run(self) -> None:
        crew = self.crew
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

    def _loop(self, runner: Runner) -> None:
        scheduler, in_flight, depth = self.crew.scheduler, self.in_flight, self.crew.depth
        while not self.abandoned:
            while len(in_flight) < depth:
                requests = scheduler.take(self.sleeper, wait=not in_flight)
                if requests is None:
                    break
                self._launch(runner, requests)
            if in_flight:
                self._finish(runner)
            elif requests is None:
                return

    def _launch(self, runner: Runner, requests: list[Request]) -> None:
        batch = _Batch(requests, time.perf_counter())
        self.in_flight.append(batch)
        scheduler = self.crew.scheduler
        if len(self.in_flight) == 1:
            scheduler.busy(+1)
            if self.crew.share_cores:
                self.device.set_thread_share(self.crew.cores if scheduler.alone() else self.crew.cores_each)
        try:
            batch.ticket = runner.launch(_readings(requests))
        except Exception as error:
            self.in_flight.pop()
            while self.in_flight:  # finish what was launched before: runners finish in order
                self._finish(runner)
            self.in_flight.append(batch)
            self._halve(runner, batch, error)

    def _finish(self, runner: Runner) -> None:
        batch = self.in_flight[0]
        assert batch.ticket is not None
        try:
            results = runner.finish(batch.ticket)
        except Exception as error:
            failed = self.in_flight.popleft()
            while self.in_flight:
                self._finish(runner)
            self.in_flight.append(failed)
            self._halve(runner, failed, error)
            return
        self._ended(batch)
        self.crew.scheduler.complete(batch.requests, results, batch.started)
        self.crew.tracer.batch(batch.requests, batch.started)

    def _ended(self, batch: _Batch) -> None:
        self.in_flight.remove(batch)
        if not self.in_flight and not self.abandoned:
            self.crew.scheduler.busy(-1)

    def _halve(self, runner: Runner, batch: _Batch, error: Exception) -> None:
        """The batch raised: find the requests that do it, by halves; the others get their results."""
        scheduler = self.crew.scheduler
        stack: list[tuple[list[Request], Exception | None]] = [(batch.requests, error)]
        while stack:
            requests, raised = stack.pop()
            requests = [request for request in requests if request.state == RUNNING]
            if not requests:
                continue
            if raised is None:
                started = time.perf_counter()
                scheduler.retries += 1
                try:
                    results = runner.finish(runner.launch(_readings(requests)))
                except Exception as again:
                    raised = again
                else:
                    scheduler.complete(requests, results, started)
                    continue
            if len(requests) == 1:
                scheduler.fail(requests, [raised])
                self.crew.tracer.failed(requests, batch.started, raised)
            else:
                half = len(requests) // 2
                stack.append((requests[half:], None))
                stack.append((requests[:half], None))
        self._ended(batch)

    def requests(self) -> list[Request]:
        """The requests this worker has in hand."""
        return [request for batch in list(self.in_flight) for request in batch.requests]


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
        self._lock = threading.Lock()
        self._workers: set[Worker] = set()
        self._idle_deaths = 0
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

    def express(self, count: int) -> list[Runner]:
        """Runners for callers' own threads, from the first device's plan."""
        return self.plans[0].express(count)

    def _start_one(self, index: int, runner: Runner | None) -> None:
        worker = Worker(self, index, self.plans[index % len(self.plans)], runner)
        with self._lock:
            self._workers.add(worker)
        try:
            worker.thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is going down
            with self._lock:
                self._workers.discard(worker)
            if not self.alive():
                self.scheduler.break_down(error)
            else:
                logger.error("%s could not start a worker: %s", self.scheduler.options.name, error)

    def died(self, worker: Worker, death: BaseException) -> None:
        """A worker's thread is ending by an exception: see to its requests and replace it."""
        requests = [request for request in worker.requests() if request.state == RUNNING]
        with self._lock:
            self._workers.discard(worker)
            self._idle_deaths = 0 if requests else self._idle_deaths + 1
            hopeless = self._idle_deaths > _MAX_IDLE_DEATHS
        if worker.in_flight and not worker.abandoned:
            self.scheduler.busy(-1)
        logger.error(
            "%s: a worker ended by %s; %d requests in hand",
            self.scheduler.options.name,
            type(death).__name__,
            len(requests),
            exc_info=death,
        )
        again = [request for request in requests if request.attempts == 0]
        lost = [request for request in requests if request.attempts > 0]
        if lost:
            self.scheduler.fail(lost, [_died(death) for _ in lost])
        if hopeless:
            self.scheduler.break_down(death)
            return
        self.scheduler.retry(again)
        if not worker.abandoned:
            self.scheduler.replaced += 1
            worker.in_flight.clear()
            self._start_one(worker.index, worker.runner)

    def left(self, worker: Worker) -> None:
        """A worker's thread is ending in order."""
        with self._lock:
            self._workers.discard(worker)
        if worker.runner is not None and not worker.abandoned:
            worker.runner.close()
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
            with self._lock:
                self._workers.discard(worker)
            requests = worker.requests()
            message = f"a batch of {len(requests)} requests ran longer than batch_timeout={timeout} s; its worker was given up"
            logger.error("%s: %s", self.scheduler.options.name, message)
            self.scheduler.fail(requests, [WorkerHungError(message) for _ in requests])
            self.scheduler.busy(-1)
            if worker.device.capabilities.owner_thread:
                # The device is held by the hung thread: nobody else may touch it.
                self.scheduler.break_down(WorkerHungError(message))
                continue
            self.scheduler.replaced += 1
            self._start_one(worker.index, None)

    def give_up(self, error: BaseException) -> None:
        """End what still runs, with ``error``; the threads are left to themselves."""
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            worker.abandoned = True
            requests = worker.requests()
            self.scheduler.fail(requests, [copy.copy(error) for _ in requests], CANCELLED)

    def alive(self) -> int:
        """How many workers there are."""
        with self._lock:
            return len(self._workers)

    def join(self, timeout: float | None) -> bool:
        """Wait for all workers to leave; False on timeout. A worker that calls this does not wait for itself."""
        end = None if timeout is None else time.monotonic() + timeout
        me = threading.current_thread()
        while True:
            with self._lock:
                threads = [worker.thread for worker in self._workers if worker.thread is not me]
            if not threads:
                return True
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return False
            threads[0].join(left)


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

    def stop(self) -> None:
        """End the thread and wait for it."""
        with self._lock:
            self._stop = True
        self._nudge.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        timeout = self._scheduler.options.batch_timeout
        patrol = timeout / 4 if timeout is not None else None
        while True:
            self._nudge.clear()
            if self._stop or (self._scheduler.state is not OPEN and not self._crew.alive()):
                return
            upcoming = self._scheduler.expire(time.perf_counter())
            self._crew.check_hung(time.perf_counter())
            waits = [patrol] if patrol is not None else []
            if upcoming is not None:
                waits.append(max(0.0, upcoming - time.perf_counter()))
            self._nudge.wait(min(waits) if waits else None)


def _readings(requests: Sequence[Request]) -> list[Any]:
    # A request that was withdrawn meanwhile has let its tensors go; its batch mates still run.
    return [request.reading for request in requests]


def _died(death: BaseException) -> WorkerDiedError:
    error = WorkerDiedError(
        f"the model ended its worker twice while it ran this request alone ({type(death).__name__}: {death}); "
        "the model must raise an Exception instead"
    )
    error.__cause__ = copy.copy(death) if isinstance(death, SystemExit) else death
    return error
