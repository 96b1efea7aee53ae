"""The soak itself: callers, their bookkeeping, and the checks at the end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import itertools
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._common import short_error
from benchmarks._watch import Watch

WIDTH = 64
SHAPES = ((1, WIDTH), (2, WIDTH), (3, WIDTH), (1, 4, WIDTH), (1, 9, WIDTH), (2, 3, WIDTH))
INPUTS_A_SHAPE = 64
POISON = 1e6
TOLERANCE = 1e-4
WINDOW = 16


class TinyModel(nn.Module):
    """Two linear layers, 64 wide: [..., 64] to [..., 64]. Raises for a batch that holds a poisonous value."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Any leading shape."""
        if x.amax() >= POISON:
            raise ValueError("poison")
        return self.layers(x)


@dataclasses.dataclass(frozen=True)
class Case:
    """One input and what must come back: a tensor, or None for the model's exception."""

    x: Tensor
    expected: Tensor | None

    def outcome(self, y: Any) -> str:
        """``ok`` if ``y`` is this input's own result, else ``wrong``."""
        expected = self.expected
        if expected is None or not isinstance(y, Tensor) or y.shape != expected.shape:
            return "wrong"
        return "ok" if float((y - expected).abs().max()) <= TOLERANCE else "wrong"


def make_cases(model: nn.Module, seed: int) -> tuple[list[Case], list[Case]]:
    """Good inputs of mixed shapes, any two of a shape with clearly different results; and poisonous ones."""
    generator = torch.Generator().manual_seed(seed)
    good, bad = [], []
    with torch.inference_mode():
        for shape in SHAPES:
            xs = [torch.randn(shape, generator=generator) for _ in range(INPUTS_A_SHAPE)]
            good += [Case(x, model(x)) for x in xs]
            bad.append(Case(torch.full(shape, POISON), None))
            ys = torch.stack(
                [case.expected.flatten() for case in good[-INPUTS_A_SHAPE:] if case.expected is not None]
            )
            closest = torch.cdist(ys, ys).fill_diagonal_(1.0).min()
            assert closest > 100 * TOLERANCE, "a neighbour's result could pass for the right one"
    return good, bad


class Book:
    """How each request ended. A request's byte counts its ends; callers write only their own."""

    def __init__(self, requests: int, limit_s: float) -> None:
        self.ends = bytearray(requests)
        self._next = itertools.count()
        self.counts: list[Counter[str]] = []
        self.first_error: str | None = None
        self.deadline = time.perf_counter() + limit_s

    def counter(self) -> Counter[str]:
        """A counter for one caller."""
        self.counts.append(Counter())
        return self.counts[-1]

    def ended(self) -> int:
        """Requests whose end was counted so far."""
        return sum(sum(c.values()) for c in self.counts)

    def numbers(self) -> Iterator[int]:
        """Numbers of requests to send, shared by all callers so that they end together."""
        while time.perf_counter() < self.deadline and (number := next(self._next)) < len(self.ends):
            yield number

    def failed(self, case: Case, error: BaseException) -> str:
        """Names an exception's outcome."""
        if isinstance(error, (concurrent.futures.CancelledError, asyncio.CancelledError)):
            return "cancelled"
        if case.expected is None and isinstance(error, ValueError) and str(error) == "poison":
            return "poisoned"
        if self.first_error is None:
            self.first_error = short_error(error)
        return "unexpected_error"


class Caller:
    """Sends requests for as long as there are any; how depends on the subclass."""

    def __init__(self, queue: Any, book: Book, cases: tuple[list[Case], list[Case]], seed: int) -> None:
        self.queue = queue
        self.book = book
        self.good, self.bad = cases
        self.random = random.Random(seed)
        self.count = book.counter()
        self.poison_rate = 0.0
        self.cancel_rate = 0.0

    def pick(self) -> Case:
        """The next request's input."""
        poisonous = self.random.random() < self.poison_rate
        return self.random.choice(self.bad if poisonous else self.good)

    def end(self, number: int, outcome: str) -> None:
        """Note the end of one request."""
        self.book.ends[number] += 1
        self.count[outcome] += 1


class BlockingCaller(Caller):
    """``queue(x)``."""

    def run(self) -> None:
        """From a thread."""
        for number in self.book.numbers():
            case = self.pick()
            try:
                outcome = case.outcome(self.queue(case.x))
            except Exception as error:
                outcome = self.book.failed(case, error)
            self.end(number, outcome)


class FutureCaller(Caller):
    """``queue.submit(x)`` with a window of futures, some of them cancelled. Ends are counted by callback."""

    def run(self) -> None:
        """From a thread."""
        window: deque[tuple[int, Case, Any]] = deque()
        for number in self.book.numbers():
            case = self.pick()
            future = self.queue.submit(case.x)
            future.add_done_callback(lambda _, n=number: self._ended(n))
            if self.random.random() < self.cancel_rate:
                future.cancel()
            window.append((number, case, future))
            if len(window) >= WINDOW:
                self._settle(*window.popleft())
        while window:
            self._settle(*window.popleft())

    def _ended(self, number: int) -> None:
        self.book.ends[number] += 1

    def _settle(self, number: int, case: Case, future: Any) -> None:
        try:
            outcome = case.outcome(future.result())
        except (Exception, concurrent.futures.CancelledError) as error:
            outcome = self.book.failed(case, error)
        self.count[outcome] += 1


class TaskCaller(Caller):
    """``await queue.asubmit(x)``, a window of them at once, some of them cancelled."""

    async def run(self) -> None:
        """From an asyncio task."""
        numbers = self.book.numbers()
        while some := list(itertools.islice(numbers, WINDOW)):
            window = [(n, case := self.pick(), self._send(n, case)) for n in some]
            for _, _, future in window:
                if self.random.random() < self.cancel_rate:
                    future.cancel()
            results = await asyncio.gather(*(f for _, _, f in window), return_exceptions=True)
            for (_, case, _), y in zip(window, results, strict=True):
                outcome = self.book.failed(case, y) if isinstance(y, BaseException) else case.outcome(y)
                self.count[outcome] += 1

    def _send(self, number: int, case: Case) -> Any:
        future = asyncio.ensure_future(self.queue.asubmit(case.x))
        future.add_done_callback(lambda _: self._ended(number))
        return future

    def _ended(self, number: int) -> None:
        self.book.ends[number] += 1


def soak(
    requests: int, callers: int, *, poison_rate: float, cancel_rate: float, limit_s: float, seed: int
) -> dict[str, Any]:
    """Send ``requests`` from ``callers`` threads and tasks; the record, with ``problems`` as a list."""
    import steelworks

    torch.manual_seed(seed)
    model = TinyModel().eval()
    cases = make_cases(model, seed)
    threads_before = threading.active_count()
    book = Book(requests, limit_s)
    queue = steelworks.BatchQueue(model, max_batch_size=32, device="cpu")
    kinds = [BlockingCaller, FutureCaller, TaskCaller, TaskCaller]
    all_callers: list[Any] = [kinds[i % 4](queue, book, cases, seed + i) for i in range(callers)]
    for caller in all_callers:
        caller.poison_rate, caller.cancel_rate = poison_rate, cancel_rate
    tasks = [c for c in all_callers if isinstance(c, TaskCaller)]

    async def run_tasks() -> None:
        await asyncio.gather(*(task.run() for task in tasks))

    jobs = [c.run for c in all_callers if not isinstance(c, TaskCaller)]
    jobs.append(lambda: asyncio.run(run_tasks()))

    def progress() -> tuple[int, dict[str, Any]]:
        found = queue.statistics()
        return book.ended(), {"pending": found.pending, "batch": round(found.batch_rows.mean, 1)}

    with Watch(progress, title="soak", total=requests) as watch:
        began = time.perf_counter()
        threads = [threading.Thread(target=job, name="caller") for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.perf_counter() - began
        drained = queue.drain(timeout=60)
        found = queue.statistics()
        closed = queue.close(timeout=60)
    outcomes = sum(book.counts, Counter())
    record = {
        "requests": requests,
        "ended": book.ended(),
        "wall_s": round(wall, 2),
        "throughput_rps": round(book.ended() / wall, 1),
        "outcomes": dict(outcomes),
        "first_error": book.first_error,
        "statistics": dataclasses.asdict(found),
        "threads_before": threads_before,
        "threads_after": threading.active_count(),
        "memory": watch.samples,
    }
    record["problems"] = soak_problems(record, book, drained, closed, found)
    if (problem := watch.memory_problem()) is not None:
        record["problems"].append(problem)
    return record


def soak_problems(record: dict[str, Any], book: Book, drained: bool, closed: bool, found: Any) -> list[str]:
    """Everything that is not as it must be."""
    outcomes = Counter(record["outcomes"])
    problems = []
    if not drained or not closed:
        problems.append(f"the queue did not end: drain {drained}, close {closed}")
    if record["ended"] != record["requests"]:
        problems.append(f"{record['ended']} of {record['requests']} requests ended (time limit, or lost)")
    ends = Counter(book.ends)
    if set(ends) - {1} and record["ended"] == record["requests"]:
        problems.append(f"requests did not end exactly once: {dict(ends)}")
    if outcomes["wrong"] or outcomes["unexpected_error"]:
        problems.append(
            f"{outcomes['wrong']} wrong, {outcomes['unexpected_error']} failed: {book.first_error}"
        )
    if found.accepted != record["ended"] or found.ended != found.accepted or found.pending or found.running:
        problems.append(f"the queue's counters do not add up: {found}")
    if found.failed != outcomes["poisoned"]:
        problems.append(f"the queue counts {found.failed} failed, callers saw {outcomes['poisoned']}")
    if found.completed + found.cancelled != outcomes["ok"] + outcomes["cancelled"] + outcomes["wrong"]:
        problems.append("the queue's completed and cancelled do not match what callers saw")
    if record["threads_after"] > record["threads_before"]:
        problems.append(f"{record['threads_after'] - record['threads_before']} threads were left behind")
    return problems
