"""The real StreamPool under the director, for the replay of StreamPool.tla."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import types
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from steelworks import seam
from steelworks.devices import CPUDevice
from steelworks.devices.base import Stream
from steelworks.streams import StreamPool, _ledger

from .control import PATIENCE, Actor, Director, Lock, Point, Stuck, Unwound
from .graph import State
from .replay import Disagreement

# What a thread is about, by the function of _ledger.py that it is in.
_ABOUT = {
    "_take": "acquire",
    "_wait": "timeout",
    "_abandon": "abandon",
    "give_back": "return",
    "take_turn": "turn",
    "close": "close",
}
# The same by the model, which also says how the locked section went.
_WENT = {
    "granted": "acquire",
    "queued": "acquire",
    "refused": "acquire",
    "waited": "timeout",
    "abandoned": "abandon",
    "closed": "close",
    "no turn": "turn",
    "no first turn": "turn",
    "first turn": "turn",
}
_OPERATIONS = {
    "Ask": "ask",
    "Use": "ask",
    "Unshare": "end",
    "Release": "release",
    "ThreadExit": "exit",
    "Close": "close",
}


class _Stream(Stream):
    """A stream that does nothing but know its number."""

    def __init__(self, number: int) -> None:
        self._number = number

    @property
    def id(self) -> int:
        return self._number

    def use(self) -> AbstractContextManager[None]:
        return nullcontext()

    def synchronize(self) -> None:
        pass


class _Events:
    """A seam hook that notes what the steps report."""

    def __init__(self, director: Director, happened: list[tuple[str, dict[str, Any]]]) -> None:
        self._director = director
        self._happened = happened

    def before(self, step: str, subject: object) -> None:
        pass

    def after(self, step: str, subject: object, observed: dict[str, Any]) -> None:
        if self._director.me() is not None:
            self._happened.append((step, observed))


class _Device(CPUDevice):
    """The cpu's rules with streams that cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._made = 0

    def new_stream(self) -> Stream:
        self._made += 1
        return _Stream(self._made)

    def set_thread_share(self, cores: int) -> None:
        pass


class PoolSubject:
    """A pool and its threads.

    Args:
        constants: of the model.
        forks: the most children to start in all.
    """

    def __init__(self, constants: dict[str, str], forks: int = 12) -> None:
        self._size = int(constants["Size"])
        self._mode: Any = constants["Mode"].strip('"')
        self._timeouts = constants["Timeouts"] == "TRUE"
        self._forks = forks
        self._forked: set[Any] = set()
        self._hook: Any = None
        self.director = Director()

    # ---------------------------------------------------------------- start and end

    def start(self, state: State) -> None:
        director = self.director = Director()
        self._leases: dict[str, weakref.ref[Any]] = {}
        self._threads: dict[str, _PoolThread] = {}
        self._happened: list[tuple[str, dict[str, Any]]] = []
        self._hook = seam.installed(_Events(director, self._happened))
        self._hook.__enter__()
        ledger_module: Any = _ledger
        self._patched = ledger_module.threading
        ledger_module.threading = types.SimpleNamespace(
            Lock=self._new_lock, TIMEOUT_MAX=threading.TIMEOUT_MAX
        )
        self.pool = StreamPool(
            _Device(), size=self._size, exhausted=self._mode, timeout=1.0 if self._timeouts else None
        )
        ledger = self.pool._ledger
        for slot in ledger.slots:
            slot.turn = Lock(
                director, lambda operation: "turn" if operation in ("acquire", "timed") else None
            )  # type: ignore[assignment]
        acquire = ledger.acquire
        leases = self._leases

        def noted(lease: Any, timeout: float | None) -> None:
            actor = director.me()
            assert actor is not None
            leases[actor.name] = weakref.ref(lease)
            acquire(lease, timeout)

        ledger.acquire = noted  # type: ignore[method-assign]
        for name in state["pc"]:
            self._new_thread(name)
        director.settle()

    def _new_lock(self) -> Any:
        made_in = sys._getframe(1).f_code.co_qualname
        if made_in == "Ledger.__init__":
            return Lock(self.director, _ledger_point)
        if made_in == "Lease.__init__":
            return Lock(
                self.director,
                lambda operation: "wait" if sys._getframe(2).f_code.co_name == "_sleep" else None,
            )
        return Lock(self.director)

    def _new_thread(self, name: str) -> None:
        thread = self._threads[name] = _PoolThread(self, self.director, name)
        thread.start()

    def end(self) -> None:
        if self._hook is None:
            return
        self.director.unwind()
        for thread in self._threads.values():
            thread.join(PATIENCE)
        ledger_module: Any = _ledger
        ledger_module.threading = self._patched
        self._hook.__exit__(None, None, None)
        self._hook = None

    # ---------------------------------------------------------------- steps

    def take(self, action: str, before: State, after: State) -> None:
        name = next(t for t in after["pc"] if after["pc"][t] != before["pc"][t])
        actor = self.director.actors[name]
        thread = self._threads[name]
        point = actor.point
        if point is None:
            raise Disagreement(f"{name} should take {action}, but is not there any more")
        if action in ("Enter", "Woken", "Share") and not point.ready():
            raise Disagreement(f"{name} should take {action}, but waits at {point}")
        if action == "Timeout" and point.ready():
            raise Disagreement(f"{name} should wait at {point}, but could go on")
        answer: Any = _OPERATIONS.get(action)
        if action == "Timeout":
            answer = "timeout"
        elif action == "Interrupt":
            answer = KeyboardInterrupt()
        del self._happened[:]
        thread.go(answer)
        self._check_report(name, before, after)
        if thread.is_gone():
            self._new_thread(name)
            self.director.settle()

    def _check_report(self, name: str, before: State, after: State) -> None:
        """What the code told the seam is what happened in the model."""
        was, now = before["pc"][name], after["pc"][name]
        told = dict(self._happened)
        slot = after["pool"]["slot"][name]
        if was[0] in ("granted", "queued") and now[1] == "":
            outcomes = {"granted": ("granted", "shared"), "queued": ("queued",)}[was[0]]
            if told.get("Acquire", {}).get("outcome") not in outcomes:
                raise Disagreement(f"{name} was {was[0]} and told the seam {told}")
            if was[0] == "granted" and told["Acquire"]["slot"] != slot - 1:
                raise Disagreement(f"{name} was granted {slot} and told the seam {told}")
        if (
            now[0] == "has"
            and was[0] in ("wait", "waited")
            and told.get("Wait") != {"outcome": "granted", "slot": slot - 1}
        ):
            raise Disagreement(f"{name} was handed {slot} and told the seam {told}")

    def beside(self, action: str, before: State, after: State) -> bool:
        """Fork in the thread that does it; one child for each kind of state."""
        name = next(t for t in after["pc"] if after["pc"][t][0] != "gone")
        others = tuple(sorted(place for t, (_, place) in before["pc"].items() if t != name))
        kind = (
            before["pc"][name],
            others,
            before["lock"] != 0,
            len(before["pool"]["waiting"]),
            len(before["returned"]),
        )
        if kind in self._forked or len(self._forked) >= self._forks:
            return True
        self._forked.add(kind)
        thread = self._threads[name]
        thread.go("fork")
        if thread.child != 0:
            raise Disagreement(
                f"the forked child found its pool unusable: {_CHILD.get(thread.child, 'it hung or crashed')}"
            )
        return True

    def child(self) -> int:
        """In a forked child: is the pool the fresh one that the model says? 0, or a key of _CHILD."""
        ledger = self.pool._ledger
        if ledger._lock.locked():
            return 1
        seen = self._books()
        if seen["free"] != tuple(range(self._size, 0, -1)) or any(seen["holders"]) or seen["waiting"]:
            return 2
        with self.pool.stream():
            if self.pool.statistics().in_use != 1:
                return 3
        self.pool.release()
        return 0 if self.pool.statistics().free == self._size else 4

    # ---------------------------------------------------------------- what is seen

    def _books(self) -> dict[str, Any]:
        ledger = self.pool._ledger
        return {
            "free": tuple(slot.index + 1 for slot in ledger._free),
            "holders": tuple(slot.holders for slot in ledger.slots),
            "waiting": tuple(self._name_of(lease) for lease in ledger._waiting),
            "closed": ledger.closed,
            "in_use": ledger.in_use,
        }

    def _name_of(self, lease: Any) -> str:
        return next((name for name, known in self._leases.items() if known() is lease), "nobody")

    def observed(self) -> dict[str, Any]:
        ledger = self.pool._ledger
        seen = self._books()
        seen["lock"] = ledger._lock.owner or 0  # type: ignore[attr-defined]
        seen["returned"] = tuple(slot.index + 1 for slot in ledger._returned)
        seen["turn"] = tuple(slot.turn.owner or 0 for slot in ledger.slots)  # type: ignore[attr-defined]
        for name, thread in self._threads.items():
            seen[f"pc[{name}]"] = pc = thread.where()
            lease = self._leases[name]() if name in self._leases else None
            seen[f"slot[{name}]"] = 0 if lease is None or lease.slot is None else lease.slot.index + 1
            if pc[0] in ("wait", "timeout", "acquire"):
                seen[f"wake[{name}]"] = lease is not None and not lease.wake.locked()
        return seen

    def expected(self, state: State) -> dict[str, Any]:
        pool = state["pool"]
        wanted = {name: pool[name] for name in ("free", "holders", "waiting", "closed")}
        wanted["in_use"] = sum(1 for holders in pool["holders"] if holders)
        wanted.update(lock=state["lock"], returned=state["returned"], turn=state["turn"])
        for name, (about, place) in state["pc"].items():
            pc = (_WENT.get(about, about), place)
            wanted[f"pc[{name}]"] = pc
            wanted[f"slot[{name}]"] = pool["slot"][name]
            if pc[0] in ("wait", "timeout", "acquire"):
                wanted[f"wake[{name}]"] = pool["wake"][name]
        return wanted


_CHILD = {
    1: "its lock is held by a thread that is not there",
    2: "its books are those of the parent",
    3: "a stream was taken, and the books don't say so",
    4: "a stream was given back, and the books don't say so",
}


def _ledger_point(operation: str) -> str | None:
    """The name of the point before ``operation`` on the ledger's lock: what it is about, and the place."""
    place = {"acquire": "L", "try": "T", "release": "U"}[operation]
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_name
        if name == "_settle" and operation == "release":
            place = "V"
        if name == "_drain" or name == "statistics":
            return None
        if name in _ABOUT:
            return f"{_ABOUT[name]}.{place}"
        frame = frame.f_back
    return None


class _PoolThread(threading.Thread):
    """A thread that uses the pool as it is told to."""

    def __init__(self, subject: PoolSubject, director: Director, name: str) -> None:
        super().__init__(name=f"replay-{name}", daemon=True)
        self._pool = subject.pool
        self._child = subject.child
        self._director = director
        self.actor: Actor = director.expect(name)
        self._exiting = False
        self._gone = False
        self.child: int = 0
        self.raised: str = ""

    def run(self) -> None:
        self._director.adopt(self.actor)
        try:
            while self._obey():
                pass
        except Unwound:
            pass
        self._exiting = self.actor.finalizing = True
        if self._director.unwinding:
            self._director.leave()

    def _obey(self) -> bool:
        pool = self._pool
        has = hasattr(pool._local, "lease")
        order = self._director.stand(Point("top", "has" if has else "out"))
        try:
            if order == "ask":
                block = pool.stream()
                block.__enter__()
                if pool._exhausted == "share":
                    self._director.stand(Point("top", "use"))
                block.__exit__(None, None, None)
            elif order == "release":
                pool.release()
            elif order == "close":
                pool.close()
            elif order == "fork":
                self._fork()
        except Unwound:
            raise
        except BaseException as error:  # a bug's, perhaps; where the thread then stands will tell
            self.raised = type(error).__name__
        return bool(order != "exit")

    def _fork(self) -> None:
        child = os.fork()
        if child == 0:
            result = 99
            try:
                result = self._child()
            finally:
                os._exit(result)
        end = time.monotonic() + PATIENCE
        while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.0005)
        self.child = os.waitstatus_to_exitcode(found[1])

    def go(self, answer: Any) -> None:
        """Go on to the next point, or to the thread's end with all its finalizers."""
        director, actor = self._director, self.actor
        if answer != "exit" and not self._exiting:
            director.go(actor.name, answer)
            return
        director.begin(actor, answer)
        for _ in range(int(PATIENCE / 0.001)):
            if director.quiet(0.001):
                return
            if not self.is_alive():
                director.died(actor)
                self._gone = True
                return
        raise Stuck(f"{actor.name} did not end")

    def is_gone(self) -> bool:
        """Whether it has ended."""
        return self._gone

    def where(self) -> tuple[str, str]:
        """Its place, in the model's words."""
        point = self.actor.point
        if point is None:
            return ("nowhere", "")
        if point.kind == "top" or point.name in ("wait", "turn"):
            return (point.name, "")
        about, _, place = point.name.partition(".")
        return (about, place)
