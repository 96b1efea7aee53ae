"""The real BatchQueue under the director, for the replay of BatchQueue.tla."""

from __future__ import annotations

import logging
import queue as queues
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from steelworks import BatchQueue, seam
from steelworks.batching import _express, _lifecycle, _request, _scheduler, _worker
from steelworks.batching import queue as queue_module
from steelworks.devices import CPUDevice
from steelworks.plans.inputs import InputReader, Reading
from steelworks.plans.plan import Express, Plan, Runner, Ticket

from .control import PATIENCE, Condition, Director, Event, Gate, Lock, Player, Point, SimpleQueue, Thread
from .graph import State
from .replay import Disagreement

_STATES = {_request.PARKED: "parked", _request.PENDING: "pending", _request.RUNNING: "running"}
_REFUSALS = ("QueueFullError", "QueueClosedError")
_NAME = "replay"
_ANSWERS = {"Complete": "ok", "DirectOk": "ok", "Raise": "raise", "DirectFails": "raise", "Die": "die"}
_WORK = ("Take", "Complete", "Raise", "Tell", "Die", "LastWords", "Retry", "Interrupt", "GiveBack")
_WORK += ("Gather", "TimeUp", "Stop")
_AGING = 1e6  # seconds; no replay takes as long, so only the clock that is set forward ages a request
_DEADLINE = 1e12  # seconds; likewise


class _Device(CPUDevice):
    """The cpu's rules, without settings of the threads."""

    def worker_scope(self, index: int, count: int) -> AbstractContextManager[None]:
        return nullcontext()

    def set_thread_share(self, cores: int) -> None:
        pass


class _Ticket(Ticket):
    def __init__(self, readings: Sequence[Reading]) -> None:
        self.readings = list(readings)


class _Runner(Runner):
    """A model that does at the point "model" what the walk says; it doubles what it is given."""

    def __init__(self, director: Director) -> None:
        self._director = director
        self.running: list[Reading] = []

    def launch(self, readings: Sequence[Reading]) -> Ticket:
        return _Ticket(readings)

    def finish(self, ticket: Ticket) -> list[Any]:
        assert isinstance(ticket, _Ticket)
        self.running = ticket.readings
        _answer(self._director, Point("model"))
        return [reading.leaves[0] * 2 for reading in ticket.readings]


class _Express(Express):
    def __init__(self, director: Director) -> None:
        self._director = director
        self.users = 0

    def run(self, request: Any) -> Any:
        self.users += 1
        assert self.users == 1, "two callers use one run"
        try:
            _answer(self._director, Point("direct"))
        finally:
            self.users -= 1
        return request * 2

    def close(self) -> None:
        pass


def _answer(director: Director, point: Point) -> None:
    answer = director.stand(point)
    if answer == "raise":
        raise ValueError("the model refuses")
    if answer == "die":
        raise SystemExit("the model ends its thread")
    if answer == "interrupt":
        raise KeyboardInterrupt


class _Plan(Plan):
    def __init__(self, director: Director, max_batch_size: int, express: bool) -> None:
        super().__init__(_Device(), InputReader(), max_batch_size)
        self._director = director
        self._has_express = express
        self.runners: list[_Runner] = []

    def runner(self, depth: int = 1) -> Runner:
        return _Runner(self._director)

    def express(self, count: int) -> list[Express]:
        return [_Express(self._director)] if self._has_express else []

    def predict(self, group: Any, rows: int, length: int) -> float:
        return float(rows)


class _Hook:
    """Makes points of the steps at which a thread may be stopped."""

    def __init__(self, subject: QueueSubject) -> None:
        self._subject = subject

    def before(self, step: str, subject: object) -> None:
        director = self._subject.director
        actor = director.me()
        if actor is None or step not in ("Take", "Retry", "GiveBack"):
            return
        if step == "Take" and self._subject.came_from_a_gate.pop(actor.name, False):
            return  # a wake-up and the look that follows it are one step
        director.stand(Point("step", step))

    def after(self, step: str, subject: object, observed: dict[str, Any]) -> None:
        director = self._subject.director
        actor = director.me()
        if actor is None or step != "End" or not observed.get("requests"):
            return
        if actor.name == "leader" or actor.name.startswith(_NAME):
            director.stand(Point("step", "tell"))


class _WokenGate(Gate):
    """A gate behind which a thread looks for work at once.

    Attributes:
        owed: whether the wait is for a wake-up that is on its way, by one whose time was up.
    """

    def __init__(self, subject: QueueSubject, name: str) -> None:
        super().__init__(subject.director, name)
        self._subject = subject
        self.owed = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        made = self._made
        self.owed = sys._getframe(1).f_code.co_name == "_stop_gathering"
        taken = super().acquire(blocking, timeout)
        actor = self._subject.director.me()
        if made and taken and actor is not None:
            self._subject.came_from_a_gate[actor.name] = True
        if made and not taken and self._name == "sleep":
            self._subject.director.stand(Point("step", "up"))
        return taken


class _Clock:
    """Time as the queue sees it: the real one, and what the walk sets it forward by."""

    def __init__(self) -> None:
        self.forward = 0.0

    def perf_counter(self) -> float:
        return time.perf_counter() + self.forward

    def monotonic(self) -> float:
        return time.monotonic() + self.forward


class QueueSubject:
    """A queue, its workers and those who use it.

    Args:
        constants: of the model.
    """

    def __init__(self, constants: dict[str, str]) -> None:
        self._constants = constants
        self._features = constants["Features"]
        self._callers = _names(constants["Callers"])
        self._clocked = _names(constants["Clocked"])
        self._workers = _names(constants["Workers"])
        self._requests = _names(constants["Requests"])
        self._urgent = _names(constants["Urgent"])
        wide = _names(constants["Wide"])
        self._rows = {name: int(constants["WideRows"]) if name in wide else 1 for name in self._requests}
        self._undo: list[Callable[[], object]] = []
        self.director = Director()
        self.came_from_a_gate: dict[str, bool] = {}

    # ---------------------------------------------------------------- start and end

    def start(self, state: State) -> None:
        director = self.director = Director()
        self.came_from_a_gate = {}
        self.faults: list[str] = []
        self._entries: dict[str, Any] = {}
        self._futures: dict[str, Any] = {}
        self._names: dict[int, str] = {}  # of readings
        self._read: list[Any] = []
        self._borrower: Any = None
        self._lent: Any = None
        self._values = {
            name: torch.full((self._rows[name], 1), float(place))
            for place, name in enumerate(self._requests, 1)
        }
        self._clock = _Clock()
        self._patch()
        plan = _Plan(director, int(self._constants["MaxBatch"]), '"direct"' in self._features)
        overflow: Any = {"block": "block", "reject": "reject", "drop": "drop_oldest"}[
            self._constants["Overflow"].strip('"')
        ]
        self.queue = BatchQueue(
            plan,
            max_batch_size=plan.max_batch_size,
            max_pending=int(self._constants["MaxPending"]),
            overflow=overflow,
            num_workers=len(self._workers),
            depth=int(self._constants["Depth"]),
            max_wait=3600.0 if '"gather"' in self._features else 0.0,
            aging=_AGING,
            express=1,
            tracing=False,
            name=_NAME,
        )
        self.queue._finalizer.detach()
        _lifecycle.unregister(self.queue._life)
        self.queue._supervisor.ensure_started = lambda: None  # type: ignore[method-assign]
        self.scheduler = self.queue._scheduler
        self.players: dict[str, Player] = {}
        for name in self._requests:
            self._play(name)
        for (
            worker
        ) in self.queue._crew._workers:  # they are asleep or about to be; the model begins before that
            worker.sleeper.owner = worker
        self._guard = self._books()
        lock: Any = self.scheduler.lock
        lock.on_acquire = self._locked
        lock.on_release = self._unlocked

    def _play(self, name: str) -> None:
        player = self.players[name] = Player(self.director, name)
        player.start()
        self.director.settle()

    def _patch(self) -> None:
        director = self.director

        class Worker(Thread):
            pass

        Worker.director = director

        def lock() -> Any:
            made_in = sys._getframe(1)
            if made_in.f_code.co_qualname == "Sleeper.__init__":
                return _WokenGate(self, "sleep")
            if made_in.f_code.co_qualname == "_Borrower.__init__":
                self._borrower = made_in.f_locals["self"]
                return _WokenGate(self, "borrow")
            if made_in.f_code.co_name == "__call__":
                return Gate(director, "answer")
            return Lock(director)

        common = {
            "Lock": lock,
            "Condition": lambda lock: Condition(director, lock, "quiet"),
            "Event": lambda: Event(director, "admitted"),
            "get_ident": threading.get_ident,
            "TIMEOUT_MAX": threading.TIMEOUT_MAX,
        }
        self._set(_scheduler, "threading", types.SimpleNamespace(**common))
        self._set(queue_module, "threading", types.SimpleNamespace(**common))
        crew = {
            **common,
            "Thread": Worker,
            "Event": threading.Event,
            "current_thread": threading.current_thread,
        }
        self._set(_worker, "threading", types.SimpleNamespace(**crew))
        for module in (_scheduler, _worker, queue_module):
            self._set(module, "time", self._clock)
        lane = types.SimpleNamespace(
            SimpleQueue=lambda: SimpleQueue(director, queues.Empty, "lane"), Empty=queues.Empty
        )
        self._set(_express, "queue", lane)
        self._set(_express, "threading", types.SimpleNamespace(**common))
        self._set(_express, "_CLOSED_SECONDS", 0.0)
        self._set(queue_module, "Request", self._new_request)
        self._set(queue_module, "RequestFuture", self._new_future)
        logger = logging.getLogger("steelworks.batching")
        self._set(logger, "handlers", [_Complaints(self)])
        self._set(logger, "propagate", False)
        hook = seam.installed(_Hook(self))
        hook.__enter__()
        self._undo.append(lambda: hook.__exit__(None, None, None))

    def _set(self, place: Any, name: str, value: Any) -> None:
        before = getattr(place, name)
        setattr(place, name, value)
        self._undo.append(lambda: setattr(place, name, before))

    def _new_request(self, reading: Reading, *rest: Any) -> Any:
        actor = self.director.me()
        assert actor is not None
        entry = self._entries[actor.name] = _request.Request(reading, *rest)
        self._names[id(reading)] = actor.name
        self._read = [*self._read[-64:], reading]  # so that its id is its own
        return entry

    def _new_future(self, cancel: Any) -> Any:
        actor = self.director.me()
        assert actor is not None
        future = self._futures[actor.name] = _request.RequestFuture(cancel)
        return future

    def end(self) -> None:
        if not self._undo:
            return
        crew = self.queue._crew
        crew.died = crew.left = lambda *_: None  # type: ignore[method-assign, assignment]
        threads = [thread for thread in threading.enumerate() if isinstance(thread, Thread)]
        self.director.unwind()
        for thread in threads:
            if thread.director is self.director:
                thread.join(PATIENCE)
        while self._undo:
            self._undo.pop()()

    # ---------------------------------------------------------------- the lock

    def _books(self) -> tuple[Any, ...]:
        scheduler = self.scheduler
        return (
            scheduler.state,
            scheduler._pending.count,
            scheduler._pending.rows,
            scheduler._parked_live,
            tuple(id(sleeper) for sleeper in scheduler._idle),
            len(scheduler._borrowers),
            scheduler._running,
            scheduler._running_rows,
            len(scheduler._delivering),
            scheduler._accepted,
            scheduler._draining,
            tuple(scheduler._ended.values()),
            tuple(
                (name, entry.state)
                for name, entry in self._entries.items()
                if entry.state != _request.PENDING
            ),
        )

    def _locked(self) -> None:
        if self._books() != self._guard:
            self.faults.append("something was changed without the lock")

    def _unlocked(self) -> None:
        self._guard = self._books()

    # ---------------------------------------------------------------- steps

    def take(self, action: str, before: State, after: State) -> None:
        self.queue._crew.idle_deaths = 0
        self._step(action, before, after)
        if self._books() != self._guard:
            self.faults.append("something was changed without the lock")
        if self.faults:
            raise Disagreement("; ".join(self.faults))

    def _step(self, action: str, before: State, after: State) -> None:
        if action in _WORK:
            return self._work(action, before, after)
        if action == "Age":
            self._clock.forward += 2 * _AGING
            return None
        if action in ("Lend", "LendTimeout", "CloseSoftly", "CloseAtOnce", "Closed", "Drain", "Drained"):
            return self._live(action)
        return self._call(action, before, after)

    def _work(self, action: str, before: State, after: State) -> None:
        parts = ("pc", "hand", "now", "rest", "tell", "held", "later", "broken", "need")
        changed = [w for w in self._workers if any(before[part][w] != after[part][w] for part in parts)]
        (name,) = changed or before["woken"] - after["woken"]  # woken for nothing, it sleeps again
        who = "leader" if before["lent"] == name else self._thread(name)
        wanted = {"Take": ("Take", "sleep", "borrow"), "Tell": ("tell",), "LastWords": ("tell",)}
        wanted |= {"Retry": ("Retry",), "GiveBack": ("GiveBack",)}
        wanted |= {"Gather": ("Take", "sleep"), "TimeUp": ("sleep",), "Stop": ("up",)}
        if action in ("Take", "Gather"):
            self.scheduler._crowd = self._guess(
                name, before, after["need"][name] if action == "Gather" else 0
            )
        self._go(
            who,
            {"Interrupt": "interrupt", "TimeUp": "timeout"}.get(action, _ANSWERS.get(action)),
            wanted.get(action, ("model",)),
            ready=None if action == "TimeUp" else True,
        )

    def _guess(self, worker: str, state: State, rows: int) -> float:
        """How many rows the queue expects, so that ``worker`` waits for ``rows``; 0 where it takes what there is.

        The walk may choose it freely: whatever it is, the queue must do right.
        """
        waiting = sum(1 for how in state["st"].values() if how == "pending")
        free = not state["hand"][worker] and state["need"][worker] == 1 and state["state"] == "open"
        if not rows and free and waiting < int(self._constants["MaxPending"]):
            return 0.0
        rows = rows or 1000  # it takes although it expects many: a rule keeps it from waiting
        many = len(self._workers)
        in_all = self.scheduler._running_rows + rows
        return float(in_all if many == 1 else max(in_all, many * rows))

    def _live(self, action: str) -> None:
        order: Callable[[], Any]
        if action == "Lend":
            order = self._lead
            return self._go("leader", order, ("top",))
        if action == "LendTimeout":
            return self._go("leader", "timeout", ("borrow",), ready=False)
        if action in ("CloseSoftly", "CloseAtOnce"):
            return self._go("closer", lambda: self.queue.close(action == "CloseAtOnce"), ("top",))
        if action == "Drain":
            return self._go("drainer", self.queue.drain, ("top",))
        who = "closer" if action == "Closed" else "drainer"
        self._go(who, None, ("quiet", "lane"))
        player = self.players[who]
        if player.raised or player.result is not True:
            raise Disagreement(f"{action}: the {who} got {player.raised or player.result!r} and not True")
        return None

    def _call(self, action: str, before: State, after: State) -> None:
        name = next(
            r for r in self._requests if before["st"][r] != after["st"][r] and self._acts(action, r, after)
        )
        if action in ("Submit", "Direct"):
            x = self._values[name]
            priority = 1.0 if name in self._urgent else 0.0
            if name in self._callers:
                return self._go(name, lambda: self.queue(x, priority=priority), ("top",))
            deadline = _DEADLINE if name in self._clocked else None
            order = lambda: self.queue.submit(x, deadline=deadline, priority=priority)  # noqa: E731
            return self._go(name, order, ("top",))
        if action in ("DirectOk", "DirectFails"):
            return self._go(name, _ANSWERS[action], ("direct",))
        if action == "Withdraw":
            return self._go(name, KeyboardInterrupt(), ("answer",), ready=None)
        if action == "Cancel":
            future = self._futures[name]
            self._go("helper", future.cancel, ("top",))
            if self.players["helper"].result is not True:
                raise Disagreement(f"{name} waits, and its future could not be cancelled")
            return None
        if action == "Expire":
            entry = self._entries[name]
            return self._go("helper", lambda: self.scheduler.expire(entry.deadline), ("top",))
        assert action == "Forget", action
        return self._forget(name, before["st"][name])

    @staticmethod
    def _acts(action: str, name: str, after: State) -> bool:
        """Whether a request that changed is the one that the action is of, and not one that it moved."""
        ends = {"Cancel": "cancelled", "Withdraw": "cancelled", "Expire": "expired", "Forget": "new"}
        if action == "Submit":
            return bool(after["st"][name] in ("pending", "parked", "refused"))
        return bool(after["st"][name] == ends.get(action, after["st"][name]))

    def _forget(self, name: str, how: str) -> None:
        """Whoever asked takes the end, and it is the right one."""
        point = self.director.actors[name].point
        if point is not None and point.kind != "top":
            self._go(name, None, ("answer", "admitted"))
        player = self.players[name]
        future = self._futures.pop(name, None)
        if future is not None and how != "refused":
            result = None if future.cancelled() or future.exception() else future.result()
        else:
            result = player.result
        if how == "completed":
            if result is None or not torch.equal(result, self._values[name] * 2):
                raise Disagreement(f"{name} has the result {result!r}")
        elif isinstance(result, torch.Tensor):
            raise Disagreement(f"{name} is {how} and has a result")
        player.result, player.raised = None, ""
        self._entries.pop(name, None)
        self._guard = self._books()

    def _lead(self) -> None:
        scheduler = self.scheduler
        sleeper = scheduler.lend(1.0)
        if sleeper is None:
            return
        worker = self._lent = sleeper.owner
        try:
            worker.lead()
        finally:
            self.came_from_a_gate.pop("leader", None)
            scheduler.give_back(sleeper, bool(worker.in_flight), bool(worker.in_flight))
            self._lent = None

    def _thread(self, worker: str) -> str:
        return f"{_NAME}-worker-{self._workers.index(worker)}"

    def _go(self, who: str, answer: Any, at: Sequence[str], ready: bool | None = True) -> None:
        if who not in self.director.actors:
            self._play(who)
        point = self.director.actors[who].point
        place = "nowhere" if point is None else point.name or point.kind
        if point is None or place not in at:
            raise Disagreement(f"{who} should be at {' or '.join(at)}, and is at {place}")
        if ready is not None and point.ready() != ready:
            raise Disagreement(
                f"{who} at {place} {'waits' if ready else 'could go on'}, and the model says otherwise"
            )
        self.director.go(who, answer)

    def beside(self, action: str, before: State, after: State) -> bool:
        raise AssertionError(action)

    # ---------------------------------------------------------------- what is seen

    def observed(self) -> dict[str, Any]:
        scheduler = self.scheduler
        seen: dict[str, Any] = {
            "pending": tuple(self._name(entry) for entry in scheduler._pending),
            "parked": tuple(
                self._name(entry) for entry in scheduler._parked if entry.state == _request.PARKED
            ),
            "alive": scheduler._accepted - sum(scheduler._ended.values()),
            "running": scheduler._running,
            "rows": (scheduler._pending.rows, scheduler._running_rows),
            "idle": tuple(self._workers[sleeper.owner.index] for sleeper in scheduler._idle),
            "state": scheduler.state,
            "borrowing": bool(scheduler._borrowers),
            "draining": scheduler._draining > 0,
            "settling": getattr(getattr(scheduler.express, "_settling", None), "owner", None),
            "telling": len(scheduler._delivering),
        }
        lent = self._lent
        if lent is None and self._borrower is not None and self._leader_at("borrow"):
            lent = self._borrower.sleeper.owner if self._borrower.sleeper is not None else None
        seen["lent"] = "nobody" if lent is None else self._workers[lent.index]
        workers = {worker.index: worker for worker in self.queue._crew._workers}
        for index, name in enumerate(self._workers):
            self._see_worker(seen, name, workers.get(index), index, lent is not None and lent.index == index)
        for name in self._requests:
            seen[f"st[{name}]"] = self._st(name)
            seen[f"told[{name}]"] = self._told(name)
            entry = self._entries.get(name)
            seen[f"solo[{name}]"] = entry is not None and entry.solo
        return seen

    def _leader_at(self, place: str) -> bool:
        leader = self.director.actors.get("leader")
        return leader is not None and leader.point is not None and leader.point.name == place

    def _see_worker(self, seen: dict[str, Any], name: str, worker: Any, index: int, lent: bool) -> None:
        actor = self.director.actors[f"{_NAME}-worker-{index}"]
        point = self.director.actors["leader"].point if lent else actor.point
        place = "left" if actor.ended else point.name or point.kind if point is not None else "nowhere"
        place = {"Take": "lead" if lent else "take", "borrow": "lead", "sleep": "idle", "model": "run"}.get(
            place, place
        )
        place = {"Retry": "bury", "GiveBack": "giveback"}.get(place, place)
        if place == "idle" and worker is not None and worker.sleeper.wake.owed:
            place = "owed"
        seen[f"pc[{name}]"] = place
        woken = not lent and place in ("idle", "owed") and point is not None and point.ready()
        if place == "up" and worker is not None:
            woken = not worker.sleeper.wake.locked()
        seen[f"woken[{name}]"] = woken
        if place in ("take", "idle", "up", "owed") and worker is not None:
            seen[f"need[{name}]"] = worker.sleeper.need
        if place in ("take", "run") and worker is not None:
            batches = list(worker.in_flight)
            seen[f"hand[{name}]"] = tuple(
                tuple(self._name(entry) for entry in batch.requests) for batch in batches
            )
        if place == "run" and worker is not None:
            seen[f"now[{name}]"] = tuple(self._names[id(reading)] for reading in worker.runner.running)
            seen[f"held[{name}]"] = tuple(self._name(entry) for batch in worker.held for entry in batch)

    def _name(self, entry: Any) -> str:
        return next((name for name, known in self._entries.items() if known is entry), "a stranger")

    def _st(self, name: str) -> str:
        player, point = self.players[name], self.director.actors[name].point
        if point is not None and point.kind == "direct":
            return "direct"
        if player.raised in _REFUSALS:
            return "refused"
        entry = self._entries.get(name)
        if entry is None:
            if isinstance(player.result, torch.Tensor):
                return "completed"
            return "failed" if player.raised else "new"
        return str(_STATES.get(entry.state) or entry.outcome)

    def _told(self, name: str) -> int:
        entry, player = self._entries.get(name), self.players[name]
        if name in self._futures:
            return int(self._futures[name].done())
        if entry is None:
            return int(isinstance(player.result, torch.Tensor) or player.raised == "ValueError")
        if player.raised == "KeyboardInterrupt" or player.raised in _REFUSALS:
            return 0
        return int(entry.token.owner is None)

    def expected(self, state: State) -> dict[str, Any]:
        st, line = state["st"], state["line"]
        waiting, running = ([r for r in line if st[r] == how] for how in ("pending", "running"))
        wanted: dict[str, Any] = {
            "pending": tuple(r for r in state["order"] if st[r] == "pending"),
            "rows": (sum(self._rows[r] for r in waiting), sum(self._rows[r] for r in running)),
            "parked": tuple(r for r in line if st[r] == "parked"),
            "alive": len(line),
            "running": sum(1 for r in line if st[r] == "running"),
            "telling": sum(1 for told in state["tell"].values() if told),
        }
        wanted |= {name: state[name] for name in ("idle", "state", "borrowing", "lent")}
        wanted["draining"] = state["draining"] != "no"
        wanted["settling"] = "drainer" if state["draining"] == "lane" else None
        for w in self._workers:
            place = state["pc"][w]
            wanted[f"pc[{w}]"] = {"last words": "tell"}.get(place, place)
            wanted[f"woken[{w}]"] = w in state["woken"]
            if place in ("take", "idle", "up", "owed"):
                wanted[f"need[{w}]"] = state["need"][w]
            if place in ("take", "run"):
                wanted[f"hand[{w}]"] = _in_flight(state, w)
            if place == "run":
                for part in ("now", "held"):
                    wanted[f"{part}[{w}]"] = state[part][w]
        for r in self._requests:
            wanted[f"st[{r}]"] = st[r]
            wanted[f"told[{r}]"] = state["told"][r]
            wanted[f"solo[{r}]"] = r in state["solo"]
        return wanted


class _Complaints(logging.Handler):
    """What the queue logs as an error is one, unless it is the death of a worker that the model asked for."""

    def __init__(self, subject: QueueSubject) -> None:
        super().__init__(logging.ERROR)
        self._subject = subject

    def emit(self, record: logging.LogRecord) -> None:
        if "a worker ended by" not in record.msg:
            self._subject.faults.append(
                f"the queue complains: {record.msg}: {record.exc_info and record.exc_info[1]!r}"
            )


def _in_flight(state: State, worker: str) -> tuple[tuple[str, ...], ...]:
    """The batches in flight, in the order in which they were launched."""
    hand, later, broken = (state[part][worker] for part in ("hand", "later", "broken"))
    if not hand:
        return ()
    # One that raised is run in halves when all in flight have ended; until then the others end behind it.
    return (*broken, hand, *later) if state["now"][worker] == hand else (hand, *broken, *later)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.strip("{}").split(",") if name.strip())
