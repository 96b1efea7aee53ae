"""The real MPSDevice, its gate and the path selector under the director, for the replay of Paths.tla.

They run on :class:`steelworks.testing.FakeMPS`, which keeps the rules of torch.mps and fails where they are broken. The
points are the gate's turn and the default stream's queue (where a thread has to wait for them), and the two places
inside an operation where others may come between: while it encodes, and while it waits for the GPU.
"""

from __future__ import annotations

import sys
import threading
import types
from contextlib import AbstractContextManager, suppress
from typing import Any, Final

import torch

from steelworks import paths
from steelworks.devices import MPSDevice
from steelworks.paths import _choose, _hazards, _profile
from steelworks.paths._registry import REGISTRY, implementation_of
from steelworks.testing import FakeMPS

from .control import PATIENCE, Director, Lock, Player, Point, Stuck, Unwound
from .graph import State
from .replay import Disagreement

#: Where a thread waits for the turn, by the gate's function that it is in.
_WAITS: Final = {"enter": "enter", "enter_vendor": "turn", "waiting": "again"}
_ACTIONS_THAT_WAIT: Final = frozenset({"Enter", "GetTurn", "GetQueue", "Again"})
_COPIES: Final = {"copy": "copy_out", "once": "copy_in"}
_SHAPE: Final = (8, 8)


class _Stop:
    """A hold of the stand-in's at which every led thread stands."""

    kind = "any"

    def __init__(self, subject: PathsSubject, phase: str) -> None:
        self.phase = phase
        self._subject = subject

    def stop_here(self) -> None:
        frame: types.FrameType | None = sys._getframe(2)
        names = []
        kind = ""
        while frame is not None:
            names.append(frame.f_code.co_name)
            if frame.f_code.co_name == "operate" and not kind:
                kind = frame.f_locals["kind"]
            frame = frame.f_back
        if self.phase == "commit" and "operate" in names:
            return  # a copy's own wait: what it waits for was waited for before
        self._subject.stand(Point(self.phase, kind))


class PathsSubject:
    """A device, its threads, and operators on two paths.

    Args:
        constants: of the model.
    """

    def __init__(self, constants: dict[str, str]) -> None:
        self._several = constants["Mode"] == '"streams"'
        self._queued = constants["Queued"] == "TRUE"
        self._default = {name.strip() for name in constants["Default"].strip("{}").split(",")}
        self._ops = [name.strip().strip('"') for name in constants["Ops"].strip("{}").split(",")]
        self._started = False
        self.director = Director()

    # ---------------------------------------------------------------- start and end

    def start(self, state: State) -> None:
        self.director = Director()
        self._started = True
        self._before = (REGISTRY.operations, REGISTRY.implementations, _hazards._backend, _profile.times)
        profile: Any = _profile
        profile.times = lambda signature, sizes: {}
        self._fake = FakeMPS("2.15.0" if self._queued else "2.14.1")
        self._machine = self._fake._machine
        _hazards._backend = self._fake.torch
        paths.refresh()
        for op in self._ops:
            paths.declare(self._named(op), sizes=lambda signature: {})
            paths.register(self._named(op), "mps", "vendor", run=lambda kind=op: self._fake.run(kind, _SHAPE))
        self._device = MPSDevice(backend=self._fake.torch, streams=self._several)
        self._players: dict[str, Player] = {}
        self._blocks: dict[str, AbstractContextManager[Any]] = {}
        self._left_open: list[Any] = []
        self._currents: dict[str, int] = {}
        self._turn = Lock(self.director, self._turn_point)
        self._device._gate._turn = self._turn  # type: ignore[assignment]
        names = list(state["pc"])
        self._there = self._fake._to_device(torch.ones(2))
        try:
            self._streams: dict[str, Any] = {name: self._device.new_stream() for name in names}
        except (RuntimeError, Stuck) as error:
            raise Disagreement(f"the device makes no streams: {error}") from error
        mps: Any = self._fake.mps
        self._bases = {n: mps.Stream() for n in names if self._several and n not in self._default}
        queue = Lock(
            self.director,
            lambda operation: "queue" if operation == "acquire" and queue.owner is not None else None,
        )
        self._machine.streams[0].queue = queue  # type: ignore[assignment]
        holds: Any = self._machine._holds
        holds += [_Stop(self, "encode"), _Stop(self, "commit")]
        for name in names:
            self._new_thread(name)

    def _named(self, op: str) -> str:
        return f"replay of {op}"

    def _turn_point(self, operation: str) -> str | None:
        if operation != "acquire" or self._turn.owner is None:
            return None
        frame: types.FrameType | None = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_name in _WAITS:
                return _WAITS[frame.f_code.co_name]
            frame = frame.f_back
        return "turn"

    def _new_thread(self, name: str) -> None:
        player = self._players[name] = _Player(self, name)
        player.start()
        self.director.settle()
        base = self._bases.get(name)
        if base is not None:
            mps: Any = self._fake.mps
            self.director.go(name, lambda: mps.set_stream(base))

    def stand(self, point: Point) -> Any:
        """Stand at ``point``, if the calling thread is led."""
        actor = self.director.me()
        if actor is not None:
            self._currents[actor.name] = self._machine.current.number
        return self.director.stand(point)

    def end(self) -> None:
        if not self._started:
            return
        self._started = False
        self.director.unwind()
        for player in self._players.values():
            player.join(PATIENCE)
        self._machine.dead = None
        for block in (*self._blocks.values(), *self._left_open):
            close = getattr(getattr(block, "gen", None), "close", None)
            if close is not None:
                with suppress(BaseException):  # whatever state a bug left it in
                    close()
        profile: Any = _profile
        REGISTRY.operations, REGISTRY.implementations, _hazards._backend, profile.times = self._before
        paths.refresh()

    # ---------------------------------------------------------------- steps

    def take(self, action: str, before: State, after: State) -> None:
        if action == "Migrate":
            (op,) = after["steel"] - before["steel"]
            paths.register(self._named(op), "mps", "steel", run=lambda: self._fake.run(f"steel {op}", _SHAPE))
            return
        name = next(t for t in after["pc"] if after["pc"][t] != before["pc"][t])
        point = self.director.actors[name].point
        if point is None:
            raise Disagreement(f"{name} should take {action}, but is not there any more")
        if action in _ACTIONS_THAT_WAIT and not point.ready():
            raise Disagreement(f"{name} should take {action}, but waits at {point}")
        order = self._order(action, name, after["pc"][name][1])
        if (order is None) == (point.kind == "top"):
            raise Disagreement(f"{name} should take {action}, but stands at {point}")
        self.director.go(name, order)
        if action == "Die":
            self._players[name].join(PATIENCE)
            self._new_thread(name)

    def _order(self, action: str, name: str, what: str) -> Any:
        """What the thread is to do; None to go on with what it does."""
        if action == "Use":
            return lambda: self._open(name, self._streams[name].use())
        if action == "Scope":
            return lambda: self._open(name, self._device.worker_scope(0, 1))
        if action in ("Leave", "Finish"):
            return lambda: self._close(name)
        if action == "Call":
            return lambda: self._call(what)
        if action == "Wait":
            if what == "copy":
                return lambda: self._device.copy_out(self._there)
            return self._streams[name].synchronize
        if action == "Once":
            return lambda: self._device.copy_in(torch.ones(2))
        if action == "Heed":
            return lambda: None
        if action == "Die":
            return lambda: self._die(name)
        return None

    def _call(self, op: str) -> None:
        signature = (self._named(op), "mps", torch.float32, (_SHAPE,), ())
        choice = _choose.known(signature) or _choose.choose(signature)  # as an operator does
        choice.run()

    def _open(self, name: str, block: AbstractContextManager[Any]) -> None:
        block.__enter__()
        self._blocks[name] = block

    def _close(self, name: str) -> None:
        self._blocks[name].__exit__(None, None, None)
        del self._blocks[name]

    def _die(self, name: str) -> None:
        self._left_open.append(self._blocks.pop(name))
        raise Unwound

    def beside(self, action: str, before: State, after: State) -> bool:
        return False

    # ---------------------------------------------------------------- what is seen

    def observed(self) -> dict[str, Any]:
        gate, machine = self._device._gate, self._machine
        seen: dict[str, Any] = {
            "turn": self._turn.owner,
            "holder": self._holder(gate._holder),
            "depth": gate._depth,
            "steel": frozenset(op for op in self._ops if implementation_of(self._named(op), "mps", "steel")),
            "seen": _hazards._seen,
            "aborted": machine.dead,
            "rules broken": tuple(machine.latent),
        }
        for name in self._players:
            seen[f"pc[{name}]"] = self._where(name)
            seen[f"stream[{name}]"] = self._currents.get(name)
            seen[f"queue[{name}]"] = self._queue(name)
        return seen

    def _holder(self, thread: threading.Thread | None) -> Any:
        if thread is None:
            return None
        return next((n for n, player in self._players.items() if player is thread), "the dead")

    def _where(self, name: str) -> tuple[str, ...]:
        inside = "block" if name in self._blocks else "out"
        player, point = self._players[name], self.director.actors[name].point
        if point is None:
            return ("nowhere", "", inside)
        if point.kind == "top":
            if player.raised:
                return ("refused" if player.raised == "DeviceRuleError" else player.raised, "", inside)
            return ("top", "", inside)
        if point.kind == "encode":
            return ("encode", point.name, inside)
        return (point.name or point.kind, "", inside)

    def _queue(self, name: str) -> tuple[int, ...]:
        """The streams in whose queues the thread is."""
        ident = self._players[name].ident
        return tuple(n for n, stream in self._machine.streams.items() if stream.queue_thread == ident)

    def expected(self, state: State) -> dict[str, Any]:
        gate = state["gate"]
        holders = {0: None, 1: "the dead"}
        wanted: dict[str, Any] = {
            "turn": gate["turn"] or None,
            "holder": holders.get(gate["holder"], gate["holder"]),
            "depth": gate["depth"],
            "steel": state["steel"],
            "seen": state["seen"],
            "aborted": None,
            "rules broken": (),
        }
        for name, (place, what, path, inside) in state["pc"].items():
            kind = ""
            if place == "encode":
                kind = f"steel {what}" if path == "steel" else _COPIES.get(what, what)
            wanted[f"pc[{name}]"] = (place, kind, inside)
            numbers = self._numbers(name)
            wanted[f"stream[{name}]"] = numbers["block" if inside == "block" and self._several else "base"]
            queue = state["queue"][name]
            wanted[f"queue[{name}]"] = () if queue == "none" else (numbers[queue],)
        return wanted

    def _numbers(self, name: str) -> dict[str, int]:
        raw, base = self._streams[name].raw, self._bases.get(name)
        return {
            "default": 0,
            "base": 0 if base is None else base.stream_id,
            "block": 0 if raw is None else raw.stream_id,
        }


class _Player(Player):
    """A thread of the replay; it notes its current stream wherever it stands."""

    def __init__(self, subject: PathsSubject, name: str) -> None:
        super().__init__(subject.director, name)
        self._subject = subject

    def _obey(self) -> None:
        self._subject._currents[self.name] = self._subject._machine.current.number
        super()._obey()
