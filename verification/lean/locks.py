"""The order in which the code takes its locks, recorded while it runs.

Every ``threading.Lock``, ``RLock`` and ``Condition`` that code of the package makes is known by the place where it is
made. ``record`` runs a workload in a process of its own, and gives the pairs (held, taken) of places. A strict order
exists if these pairs have no cycle; then ``Locks.no_cycle`` holds of the locks that were taken.

A lock that one thread takes and another releases is a signal, not a lock: there is no holder to wait for. Signals are
listed apart, with what was held by threads that waited for one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PROJECT: Final = Path(__file__).resolve().parents[2]
_LIMIT: Final = 300  # seconds for the workload


@dataclass(frozen=True)
class Record:
    """What a run showed.

    Attributes:
        pairs: (held, taken), by the places where the locks are made; sorted.
        locks: all places whose locks were taken.
        signals: places whose locks were released by another thread than the one that took them.
        waited: (held, signal): a thread that held a lock waited for a signal.
        kernels: places in steelworks/kernels whose locks were taken to launch kernels that were compiled before.
    """

    pairs: tuple[tuple[str, str], ...]
    locks: tuple[str, ...]
    signals: tuple[str, ...]
    waited: tuple[tuple[str, str], ...]
    kernels: tuple[str, ...]


class Cycle(RuntimeError):
    """The locks were taken in an order that is not strict; the message has the cycle."""


def record() -> Record:
    """Runs the workload in a new process.

    Raises:
        RuntimeError: it failed.
    """
    said = subprocess.run(
        (sys.executable, "-m", "verification.lean.locks"),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=_LIMIT,
    )
    if said.returncode:
        raise RuntimeError(f"the workload ended with {said.returncode}: {said.stderr.strip()[-800:]}")
    made = json.loads(said.stdout.splitlines()[-1])
    pairs, waited = (tuple((held, taken) for held, taken in made[k]) for k in ("pairs", "waited"))
    return Record(pairs, tuple(made["locks"]), tuple(made["signals"]), waited, tuple(made["kernels"]))


def ranks(pairs: Iterable[tuple[str, str]], locks: Iterable[str]) -> dict[str, int]:
    """A rank for each lock, such that in every pair the held one's is lower.

    Raises:
        Cycle: there is none.
    """
    below: dict[str, set[str]] = {lock: set() for lock in locks}
    for held, taken in pairs:
        below.setdefault(held, set())
        below.setdefault(taken, set()).add(held)
    rank: dict[str, int] = {}
    left = set(below)
    while left:
        free = {lock for lock in left if not below[lock] & left}
        if not free:
            raise Cycle(f"there is no strict order: {' -> '.join(_cycle(below, left))}")
        for lock in free:
            rank[lock] = 1 + max((rank[b] for b in below[lock]), default=-1)
        left -= free
    return rank


def _cycle(below: Mapping[str, set[str]], left: set[str]) -> list[str]:
    path = [min(left)]
    while True:
        after = min(below[path[-1]] & left)
        if after in path:
            return [after, *reversed(path[path.index(after) :])]
        path.append(after)


# ---------------------------------------------------------------- in the new process


class _Recorder:
    """Makes locks that tell what is held when they are taken."""

    def __init__(self, package: Path) -> None:
        self._package = str(package)
        self._guard = threading.Lock()
        self._held = threading.local()
        self.pairs: set[tuple[str, str]] = set()
        self.locks: set[str] = set()
        self.taken: Counter[str] = Counter()
        self.kernels: set[str] = set()
        self.signals: set[str] = set()
        self.tried: dict[str, set[str]] = defaultdict(set)

    def factory(self, real: Callable[[], Any]) -> Callable[[], Any]:
        """In place of ``threading.Lock`` or ``RLock``."""

        def make() -> Any:
            frame = sys._getframe(1)
            if frame.f_code.co_filename == threading.__file__:  # Condition()'s own lock
                frame = frame.f_back or frame
            name = frame.f_code.co_filename
            if not name.startswith(self._package):
                return real()
            place = f"steelworks{name[len(self._package) :]}:{frame.f_lineno}"
            return _Lock(real(), place, self)

        return make

    def held(self) -> list[_Lock]:
        """What the calling thread holds."""
        try:
            return self._held.locks  # type: ignore[no-any-return]
        except AttributeError:
            self._held.locks = []
            return self._held.locks  # type: ignore[no-any-return]

    def takes(self, lock: _Lock, blocking: bool) -> None:
        """Before a lock is taken. What never waits can't be part of a cycle."""
        if blocking:
            held = [h.place for h in self.held() if h.owner is threading.current_thread()]
            with self._guard:
                self.tried[lock.place].update(held)

    def took(self, lock: _Lock) -> None:
        """After a lock was taken."""
        with self._guard:
            self.locks.add(lock.place)
            self.taken[lock.place] += 1
        self.held().append(lock)

    def releases(self, lock: _Lock, owner: threading.Thread | None) -> None:
        """When a lock is released."""
        held = self.held()
        if owner is not threading.current_thread():
            with self._guard:
                self.signals.add(lock.place)
        elif lock in held:
            held.reverse()
            held.remove(lock)
            held.reverse()

    def result(self) -> dict[str, Any]:
        """What :class:`Record` holds."""
        pairs = {(held, taken) for taken, holding in self.tried.items() for held in holding}
        signals = self.signals
        return {
            "pairs": sorted(p for p in pairs if not signals & set(p)),
            "locks": sorted(self.locks - signals),
            "signals": sorted(signals),
            "kernels": sorted(self.kernels),
            "waited": sorted(p for p in pairs if p[1] in signals and p[0] not in signals),
        }


class _Lock:
    """A lock that reports to a recorder."""

    def __init__(self, real: Any, place: str, recorder: _Recorder) -> None:
        self._real = real
        self._recorder = recorder
        self.place = place
        self.owner: threading.Thread | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As a lock's."""
        self._recorder.takes(self, blocking)
        got: bool = self._real.acquire(blocking, timeout)
        if got:
            self.owner = threading.current_thread()
            self._recorder.took(self)
        return got

    def release(self) -> None:
        """As a lock's."""
        owner, self.owner = self.owner, None
        self._recorder.releases(self, owner)
        self._real.release()

    def locked(self) -> bool:
        """As a lock's."""
        locked: bool = self._real.locked()
        return locked

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()


def _workload() -> None:
    """Queues from threads and asyncio, with failures, cancellations, deadlines and drains; streams; plans; metrics."""
    import asyncio
    import time
    from concurrent.futures import CancelledError, ThreadPoolExecutor

    import torch

    import steelworks as sw

    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
    bad = torch.full((1, 7), 1.0)

    def call(queue: Any, number: int) -> None:
        x = torch.randn(1 + number % 3, 8)
        try:
            if number % 7 == 0:
                queue(bad)
            elif number % 5 == 0:
                queue.submit(x).cancel()
            elif number % 11 == 0:
                queue.submit(x, deadline=0.0001).result()
            else:
                queue(x)
        except (Exception, CancelledError):
            pass

    for workers in (1, 2):
        with sw.BatchQueue(model, max_batch_size=8, num_workers=workers) as queue:
            with ThreadPoolExecutor(6) as threads:
                list(threads.map(lambda n: call(queue, n), range(240)))

            async def gather(queue: Any = queue) -> None:
                await asyncio.gather(*(queue.asubmit(torch.randn(1, 8)) for _ in range(40)))

            asyncio.run(gather())
            list(queue.map(torch.randn(64, 1, 8)))
            queue.statistics()
        with sw.BatchQueue(model, max_batch_size=4, num_workers=workers, max_pending=4) as queue:
            with ThreadPoolExecutor(8) as threads:
                list(threads.map(lambda n: call(queue, n), range(120)))
    with sw.batch_inference(model, batch_size=4) as infer:
        infer([torch.randn(1, 8) for _ in range(9)])
    pool = sw.StreamPool("cpu", size=2)

    begin = threading.Event()

    def stream() -> None:
        with pool.stream():
            begin.wait()
            model(torch.randn(1, 8))

    # More threads than streams, so that some wait; a stream comes back when its thread ends.
    callers = [threading.Thread(target=stream) for _ in range(6)]
    for caller in callers:
        caller.start()
    while pool.statistics().waiting < 4:
        time.sleep(0.01)
    begin.set()
    for caller in callers:
        caller.join()
    plan = sw.plan(model, torch.randn(2, 8), device="cpu", batch_sizes=[1, 4])
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: plan(torch.randn(2, 8)), range(40)))


def _launches(recorder: _Recorder) -> None:
    """Kernels that are compiled already, from several threads."""
    import torch

    from steelworks.kernels.metal import gemm as host
    from steelworks.kernels.metal import softmax as rows

    def launch(_: int = 0) -> None:
        rows.softmax(torch.zeros(2, 7))
        host.gemm(torch.ones(5, 33), torch.ones(33, 3))

    launch()
    before = Counter(recorder.taken)
    callers = [threading.Thread(target=launch) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    more = recorder.taken - before
    recorder.kernels = {place for place in more if place.startswith("steelworks/kernels/")}


def _main() -> None:
    recorder = _Recorder(PROJECT / "steelworks")
    threading.Lock = recorder.factory(threading.Lock)  # type: ignore[assignment]
    threading.RLock = recorder.factory(threading.RLock)  # type: ignore[assignment]
    _workload()
    _launches(recorder)
    sys.stdout.write(json.dumps(recorder.result()) + "\n")


if __name__ == "__main__":
    _main()
