"""What the tests of the runtime share: models that a test holds, a hook that stops a chosen step, load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from steelworks import BatchQueue, QueueStatistics, seam
from steelworks.devices import CPUDevice
from steelworks.plans.inputs import Group, InputReader, Reading
from steelworks.plans.plan import MISS, Express, Plan, Runner, Ticket

LONG = 20.0  # seconds; a wait that takes this long has failed


def row(value: float, width: int = 1) -> torch.Tensor:
    """One request: a row of ``width`` times ``value``."""
    return torch.full((1, width), float(value))


def values(output: torch.Tensor) -> list[float]:
    """The first column of ``output``, as numbers."""
    return [float(v) for v in output.reshape(output.shape[0], -1)[:, 0]]


def doubled(x: torch.Tensor) -> torch.Tensor:
    """The plainest model: its answers tell which request they belong to."""
    return x * 2


class Held:
    """Calls ``answer``, but each call waits until the test lets it go on; so a test knows what waits.

    Args:
        answer: the model.
        held: how many of the first calls wait; None for all of them.
    """

    def __init__(self, answer: Callable[..., Any] = doubled, held: int | None = None) -> None:
        self._answer = answer
        self._held = held
        self._permits = threading.Semaphore(0)
        self._entered = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._open = False
        self.batches: list[list[float]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensor = args[0] if args else next(iter(kwargs.values()))
        with self._lock:
            number = len(self.batches)
            self.batches.append(values(tensor))
        self._entered.release()
        if not self._open and (self._held is None or number < self._held):
            assert self._permits.acquire(timeout=LONG), "the test never let the model go on"
        return self._answer(*args, **kwargs)

    def wait_for_call(self, calls: int = 1) -> None:
        """Wait until the model was called ``calls`` more times."""
        for _ in range(calls):
            assert self._entered.acquire(timeout=LONG), "the model was not called"

    def step(self, calls: int = 1) -> None:
        """Let ``calls`` calls go on."""
        self._permits.release(calls)

    def open(self) -> None:
        """Let all calls go on, those to come included."""
        self._open = True
        self._permits.release(1000)


class Stop:
    """A place where a thread was stopped by :class:`Steps`."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._release = threading.Event()

    def wait(self) -> None:
        """Wait until a thread is here."""
        assert self._reached.wait(LONG), "no thread came to this step"

    def release(self) -> None:
        """Let it go on."""
        self._release.set()

    def arrive(self) -> None:
        """Called by the thread that is stopped."""
        self._reached.set()
        assert self._release.wait(LONG), "the test never released this step"


class Steps:
    """A seam hook: records the steps of the runtime and stops threads at chosen ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self._stops: list[tuple[str, str, Callable[[dict[str, Any]], bool], Stop]] = []

    def stop(
        self, when: str, step: str, if_: Callable[[dict[str, Any]], bool] = lambda observed: True
    ) -> Stop:
        """Stop the next thread that comes to ``step`` (``when``: "before" or "after")."""
        stop = Stop()
        with self._lock:
            self._stops.append((when, step, if_, stop))
        return stop

    def before(self, step: str, subject: object) -> None:
        self._visit("before", step, {})

    def after(self, step: str, subject: object, observed: dict[str, Any]) -> None:
        with self._lock:
            self.seen.append((step, observed))
        self._visit("after", step, observed)

    def _visit(self, when: str, step: str, observed: dict[str, Any]) -> None:
        with self._lock:
            found = next((s for s in self._stops if s[0] == when and s[1] == step and s[2](observed)), None)
            if found is not None:
                self._stops.remove(found)
        if found is not None:
            found[3].arrive()

    def release_all(self) -> None:
        """Forget all stops that no thread has reached."""
        with self._lock:
            self._stops.clear()


@contextmanager
def watched() -> Iterator[Steps]:
    """Watch the steps of the runtime for a ``with`` block."""
    with seam.installed(Steps()) as steps:
        assert isinstance(steps, Steps)
        yield steps


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work(0)`` .. ``work(count - 1)`` in threads that start together; their results or errors."""
    together = threading.Barrier(count)
    outcomes: list[Any] = [None] * count

    def run(index: int) -> None:
        together.wait(LONG)
        try:
            outcomes[index] = work(index)
        except BaseException as error:
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive(), "a caller hangs"
    return outcomes


def in_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    """Start ``work`` in a thread; returns a function that waits for its result (or raises its error)."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(LONG)
        assert not thread.is_alive(), "a caller hangs"
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    return result


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for a state that nothing signals (a thread's end, the queue's length)."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, f"this did not come true: {what}"
        time.sleep(0.001)


def wait_for_pending(queue: BatchQueue, count: int) -> None:
    """Wait until ``count`` requests wait in ``queue``."""
    eventually(lambda: queue.statistics().pending == count, f"{count} requests wait")


def workers_of(queue: BatchQueue) -> list[threading.Thread]:
    """The threads of ``queue``, by its name."""
    return [t for t in threading.enumerate() if t.name.startswith(f"{queue.options.name}-")]


def assert_adds_up(statistics: QueueStatistics) -> None:
    """I2 in numbers: whatever was accepted ended, waits or runs."""
    assert statistics.accepted == statistics.ended + statistics.pending + statistics.running, statistics
    assert min(statistics.pending, statistics.running) >= 0, statistics


def outcomes_of(futures: Iterable[Any]) -> list[Any]:
    """The result of each future, or the exception it ended with; none may hang."""
    end = time.monotonic() + LONG
    ends: list[Any] = []
    for future in futures:
        try:
            ends.append(future.result(max(0.0, end - time.monotonic())))
        except BaseException as error:
            ends.append(error)
    return ends


def assert_values(results: Sequence[Any], expected: Sequence[float]) -> None:
    """Each result is a tensor whose first element is as expected."""
    assert [values(result)[0] for result in results] == [float(e) for e in expected]


class StubPlan(Plan):
    """A plan whose runners do what the test says; for what a model alone can't do (launch and finish apart).

    Args:
        launch: called with the values of a batch when it is launched.
        finish: called with the values of a batch when it is finished; returns the results, or raises. By
            default each value doubled.
        any_thread: whether callers may run it on their own threads, as captured graphs may be.
    """

    def __init__(
        self,
        launch: Callable[[list[float]], None] = lambda batch: None,
        finish: Callable[[list[float]], Any] = lambda batch: [row(2 * v) for v in batch],
        any_thread: bool = False,
        max_batch_size: int = 4,
        express: bool = False,
    ) -> None:
        super().__init__(CPUDevice(), InputReader(), max_batch_size)
        self.launch = launch
        self.finish = finish
        self.any_thread = any_thread
        self._express = express
        self.launched: list[tuple[str, list[float]]] = []  # the thread and the batch

    def runner(self, depth: int = 1) -> Runner:
        return _StubRunner(self)

    def express(self, count: int) -> list[Express]:
        return [_StubExpress(self) for _ in range(count if self._express else 0)]

    def predict(self, group: Group, rows: int, length: int) -> float:
        return float(rows)


class _StubTicket(Ticket):
    def __init__(self, batch: list[float]) -> None:
        self.batch = batch


class _StubRunner(Runner):
    def __init__(self, plan: StubPlan) -> None:
        self._plan = plan

    def launch(self, readings: Sequence[Reading]) -> Ticket:
        batch = [values(reading.leaves[0])[0] for reading in readings]
        self._plan.launched.append((threading.current_thread().name, batch))
        self._plan.launch(batch)
        return _StubTicket(batch)

    def finish(self, ticket: Ticket) -> list[Any]:
        assert isinstance(ticket, _StubTicket)
        results: list[Any] = self._plan.finish(ticket.batch)
        return results


class _StubExpress(Express):
    def __init__(self, plan: StubPlan) -> None:
        self._runner = _StubRunner(plan)
        self._read = plan.reader.read
        self.closed = False

    def run(self, request: Any) -> Any:
        assert not self.closed
        reading = self._read(request)
        if reading.rows > 1:
            return MISS
        return self._runner.finish(self._runner.launch([reading]))[0]

    def close(self) -> None:
        self.closed = True
