"""Records what the test suite does to batch queues and stream pools, and has TLC follow it.

As a plugin of pytest: ``pytest -p verification.tla.traces --record-traces FILE tests/...``; then
``python -m verification.tla --traces FILE``. Each queue gives a trace, followed through Lifecycle.tla: its steps as
the seam names them, in the order of the locked sections in which they happened. What ends without a step of its own (a
deadline found by a worker, a request that a closing queue cancels) is noted where it ends. Each pool gives a trace,
followed through TraceStreams.tla: which slot was granted and taken back, in the order in which the lock was held.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelworks import seam
from steelworks.batching import _request, _scheduler
from steelworks.streams import _ledger

from . import tlc

MOST_REQUESTS = 60  # of a trace that is followed; TLC's states hold one entry a request
MOST_EVENTS = 400
_LIFE = {"Submit": "Accept", "Take": "Start", "Retry": "Back", "Close": "Shut", "End": "Complete"}


class Trace:
    """The events of one queue, in the order of its locked sections."""

    def __init__(self) -> None:
        self.tick = 0
        self.events: list[tuple[int, str, list[int]]] = []
        self._numbers: dict[int, int] = {}
        self._seen: dict[int, set[str]] = {}
        self._next = 0
        self._lock = threading.Lock()

    def note(self, tick: int, step: str, requests: Sequence[Any]) -> None:
        """Note an event of ``requests``, all of which are alive now."""
        with self._lock:
            self.events.append((tick, step, [self._number(request, step) for request in requests]))

    def _number(self, request: Any, step: str) -> int:
        # A request can't be kept alive for this; its id may belong to another one once it is gone.
        key = id(request)
        if key not in self._numbers:
            self._next += 1
            self._numbers[key] = self._next
        number = self._numbers[key]
        seen = self._seen.setdefault(number, set())
        seen.add("Ended" if step in ("Finish", "Complete") else step)
        if seen >= {"Accept", "Ended"}:
            del self._numbers[key]
        return number

    def finished(self) -> list[list[Any]]:
        """The events as [step, requests, waiting requests that end with it], sections with one step joined."""
        joined: list[list[Any]] = []
        place: dict[int, list[Any]] = {}
        for tick, step, requests in sorted(self.events, key=lambda event: (event[0], event[1] == "Finish")):
            main = place.get(tick)
            if step == "Finish" and main is not None and main[0] in ("Accept", "Start", "Shut"):
                main[2] += requests
            elif step == "Finish" and main is not None and main[0] == "Finish":
                main[1] += requests
            else:
                joined.append([step, list(requests), []])
                place[tick] = joined[-1]
        return joined


class PoolTrace:
    """Which slots of a pool were granted and returned, in the order of its locked sections.

    Attributes:
        size: how many slots there are.
        shares: whether several threads may have one.
        events: pairs of ``"Grant"`` or ``"Return"`` and the slot.
    """

    def __init__(self, size: int, shares: bool) -> None:
        self.size = size
        self.shares = shares
        self.events: list[tuple[str, int]] = []

    def finished(self) -> dict[str, Any]:
        """The trace as JSON takes it."""
        return {"size": self.size, "shares": self.shares, "events": self.events}


class Recording:
    """The traces of all that was made while something was recorded.

    Tests count objects. So a trace is text once its queue or pool is gone, which the garbage collector doesn't count.
    """

    def __init__(self) -> None:
        self._alive: dict[int, Trace | PoolTrace] = {}
        self._texts: list[str] = []
        self._next = 0

    def keep(self, owner: object, trace: Trace | PoolTrace) -> None:
        """Keep the trace of ``owner``."""
        self._next += 1
        self._alive[self._next] = trace
        weakref.finalize(owner, self._seal, self._next).atexit = False

    def _seal(self, number: int) -> None:
        # It has no lock: it runs wherever the owner is collected.
        self._texts.append(json.dumps(self._alive.pop(number).finished()))

    def finished(self) -> list[Any]:
        """Every trace as JSON takes it."""
        alive = [trace.finished() for trace in list(self._alive.values())]
        return [json.loads(text) for text in self._texts] + json.loads(json.dumps(alive))


class _Returned(deque[Any]):
    """The slots that were returned; whoever takes one in, under the lock, is noted."""

    trace: PoolTrace

    def popleft(self) -> Any:
        slot = super().popleft()
        self.trace.events.append(("Return", slot.index))
        return slot


class _Lock:
    """The scheduler's lock, counting its sections."""

    def __init__(self, trace: Trace, here: threading.local) -> None:
        self._lock = threading.Lock()
        self._trace = trace
        self._here = here

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        taken = self._lock.acquire(blocking, timeout)
        if taken:
            self._trace.tick += 1
            if getattr(self._here, "tick", None) is None:
                self._here.tick = self._trace.tick
        return taken

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


@contextmanager
def recording_pools() -> Iterator[Recording]:
    """Record all stream pools that are made in a ``with`` block; yields their traces."""
    traces = Recording()
    ledger: Any = _ledger.Ledger
    init, grant = ledger.__init__, ledger._grant

    def made(self: Any, size: int, exhausted: str, name: str) -> None:
        init(self, size, exhausted, name)
        self._returned = _Returned()
        self._returned.trace = PoolTrace(size, exhausted == "share")
        traces.keep(self, self._returned.trace)

    def granted(self: Any, slot: Any, lease: Any) -> None:
        if isinstance(self._returned, _Returned):
            self._returned.trace.events.append(("Grant", slot.index))
        grant(self, slot, lease)

    ledger.__init__, ledger._grant = made, granted
    try:
        yield traces
    finally:
        ledger.__init__, ledger._grant = init, grant


@contextmanager
def recording() -> Iterator[Recording]:
    """Record all queues that are made in a ``with`` block; yields their traces."""
    traces = Recording()
    known: dict[int, Trace] = {}  # by the scheduler's id
    here = threading.local()
    scheduler_class: Any = _scheduler.Scheduler
    undo: list[Callable[[], None]] = []

    def replace(holder: Any, name: str, value: Any) -> Any:
        before = getattr(holder, name)
        setattr(holder, name, value)
        undo.append(lambda: setattr(holder, name, before))
        return before

    def made(self: Any, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        trace = known[id(self)] = Trace()
        traces.keep(self, trace)
        weakref.finalize(self, known.pop, id(self), None).atexit = False
        self.lock = _Lock(trace, here)
        self._quiet = threading.Condition(self.lock)

    def ended(self: Any, request: Any, outcome: str, error: Any) -> None:
        finish(self, request, outcome, error)
        trace = known.get(id(self))
        if trace is not None:
            trace.note(trace.tick, "Finish", [request])

    def many(self: Any, requests: Any) -> None:
        here.many = requests
        try:
            submit_many(self, requests)
        finally:
            del here.many

    def before(step: str, subject: object) -> None:
        here.tick = None
        seam_before(step, subject)

    def after(step: str, subject: object, **observed: Any) -> None:
        trace = known.get(id(subject)) if isinstance(subject, scheduler_class) else None
        tick = getattr(here, "tick", None)
        if trace is not None and tick is not None:
            requests = _requests(step, observed, here)
            if requests is not None:
                trace.note(tick, _LIFE[step], requests)
        seam_after(step, subject, **observed)

    init = replace(scheduler_class, "__init__", made)
    finish = replace(scheduler_class, "_finish", ended)
    submit_many = replace(scheduler_class, "submit_many", many)
    seam_before = replace(seam, "before", before)
    seam_after = replace(seam, "after", after)
    replace(seam, "watched", lambda: True)
    try:
        yield traces
    finally:
        while undo:
            undo.pop()()


def _requests(step: str, observed: dict[str, Any], here: threading.local) -> Sequence[Any] | None:
    """The requests that ``step`` moved; None if it is no event of a request's life."""
    if step == "Submit":
        return [observed["request"]] if "request" in observed else list(here.many)
    if step == "Take":
        return observed["batch"] or None
    if step == "Retry":
        return list(observed["requests"])
    if step == "Close":
        return []
    if step == "End" and observed.get("outcome") == _request.COMPLETED and "requests" in observed:
        return list(observed["requests"])  # other ends are noted where they happen
    return None


@dataclass(frozen=True)
class Followed:
    """What TLC found in recorded traces.

    Attributes:
        traces: how many were followed.
        events: in them.
        skipped: traces that are too long.
        wrong: the first step that Lifecycle forbids, with its trace so far; "" for none.
        seconds: of TLC.
    """

    traces: int
    events: int
    skipped: int
    wrong: str
    seconds: float


def follow(recorded: Sequence[list[list[Any]]]) -> Followed:
    """Have TLC follow traces as :meth:`Trace.finished` gives them."""
    logs, skipped, most = [], 0, 1
    for events in recorded:
        numbers: dict[int, int] = {}
        log = []
        for step, requests, ended in events:
            moved = [
                [numbers.setdefault(number, len(numbers) + 1) for number in part]
                for part in (requests, ended)
            ]
            log.append((step, *moved))
        if len(numbers) > MOST_REQUESTS or len(log) > MOST_EVENTS:
            skipped += 1
        elif log:
            logs.append(log)
            most = max(most, len(numbers))
    if not logs:
        return Followed(0, 0, skipped, "", 0.0)
    text = f"---- MODULE Recorded ----\nEXTENDS Integers\nNames == 1..{most}\nLog == <<\n"
    text += ",\n".join(_tla(log) for log in logs) + "\n>>\n====\n"
    wrong, seconds = _tlc("TraceLifecycle", {"Requests": "<- Names"}, {"Recorded": text}, logs)
    return Followed(len(logs), sum(map(len, logs)), skipped, wrong, seconds)


def follow_pools(recorded: Sequence[dict[str, Any]]) -> Followed:
    """Have TLC follow traces as :meth:`PoolTrace.finished` gives them."""
    fit = [pool for pool in recorded if len(pool["events"]) <= MOST_EVENTS]
    pools = [pool for pool in fit if pool["events"]]
    if not pools:
        return Followed(0, 0, len(recorded) - len(fit), "", 0.0)
    logs = [[(step, slot) for step, slot in pool["events"]] for pool in pools]
    text = f"---- MODULE RecordedStreams ----\nEXTENDS Integers\nSlots == 0..{max(p['size'] for p in pools) - 1}\n"
    text += f"Shares == <<{', '.join('TRUE' if pool['shares'] else 'FALSE' for pool in pools)}>>\nLog == <<\n"
    text += ",\n".join("<<" + ", ".join(f'<<"{step}", {slot}>>' for step, slot in log) + ">>" for log in logs)
    wrong, seconds = _tlc("TraceStreams", {}, {"RecordedStreams": text + "\n>>\n====\n"}, logs)
    return Followed(len(logs), sum(map(len, logs)), len(recorded) - len(fit), wrong, seconds)


def _tlc(
    model: str, constants: dict[str, str], modules: dict[str, str], logs: Sequence[Sequence[tuple[Any, ...]]]
) -> tuple[str, float]:
    """Follow ``logs``: the first step that is not allowed, with its trace so far, or ""; and the seconds."""
    outcome = tlc.run(model, constants, specification="TraceSpec", deadlock=True, modules=modules)
    if outcome.exit_code == tlc.HOLDS:
        return "", outcome.seconds
    if outcome.exit_code != tlc.DEADLOCK:
        raise RuntimeError(outcome.output)
    trace = int(re.findall(r"/\\ trace = (\d+)", outcome.output)[-1])
    at = int(re.findall(r"/\\ at = (\d+)", outcome.output)[-1])
    steps = [" ".join(str(part) for part in event if part != []) for event in logs[trace - 1][:at]]
    return f"event {at} of trace {trace} is not allowed:\n  " + "\n  ".join(steps[-15:]), outcome.seconds


def _tla(log: Sequence[tuple[str, list[int], list[int]]]) -> str:
    def numbers(requests: Sequence[int]) -> str:
        return "{" + ", ".join(map(str, requests)) + "}"

    return "<<" + ", ".join(f'<<"{step}", {numbers(a)}, {numbers(b)}>>' for step, a, b in log) + ">>"


# ---------------------------------------------------------------- the plugin

#: What the traces are recorded from.
TRACED = (
    "tests/test_queue_lead.py",
    "tests/test_streams.py",
    "tests/test_queue_basics.py",
    "tests/test_queue_limits.py",
    "tests/test_queue_map.py",
    "tests/test_queue_ends.py",
    "tests/test_queue_asyncio.py",
    "tests/test_queue_random.py",
    "tests/test_metrics.py",
    "tests/test_statistics.py",
)
TRACED_QUICK = TRACED[:2]
#: Of those: not what ends by a fork or another program, nor what is too long for TLC.
UNTRACED = (
    "not ten_thousand and not fork and (test_queue_random or (not program and not random and not answers))"
)
_ROOT = Path(__file__).resolve().parents[2]


class TestsFailedError(RuntimeError):
    """The tests that were to be recorded did not pass; the message has the end of what pytest said."""


def of_tests(files: Sequence[str], file: Path, *, seconds: float = tlc.SECONDS) -> dict[str, list[Any]]:
    """Run tests with the recorder on; the traces of their "queues" and "pools".

    Args:
        files: of tests, from the root of the project.
        file: where the traces are written.
        seconds: how long the tests may take.

    Raises:
        TestsFailedError: a test failed.
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "verification.tla.traces",
        "-p",
        "no:cacheprovider",
    ]
    ran = subprocess.run(
        [*command, "--record-traces", str(file), *files, "-k", UNTRACED],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if ran.returncode:
        raise TestsFailedError(f"pytest ended with {ran.returncode}: {ran.stdout[-3000:]}")
    recorded: dict[str, list[Any]] = json.loads(file.read_text(encoding="utf-8"))
    return recorded


def pytest_addoption(parser: Any) -> None:
    """Where to write what was recorded."""
    parser.addoption("--record-traces", default=None, metavar="FILE", help="record the queues of the tests")


def pytest_configure(config: Any) -> None:
    """Record from now on."""
    if config.getoption("--record-traces") is not None:
        config.stash["open"] = stack = ExitStack()
        config.stash["queues"] = stack.enter_context(recording())
        config.stash["pools"] = stack.enter_context(recording_pools())


def pytest_unconfigure(config: Any) -> None:
    """Write what was recorded."""
    if "open" in config.stash:
        config.stash["open"].close()
        recorded = {kind: config.stash[kind].finished() for kind in ("queues", "pools")}
        Path(config.getoption("--record-traces")).write_text(json.dumps(recorded), encoding="utf-8")
