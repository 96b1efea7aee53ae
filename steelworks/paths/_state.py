"""What forces a path: ``use`` blocks, ``simulate_metal`` blocks and the environment.

A state is a value: equal states are one object, which keeps the choices made under it. Blocks set the calling
thread's or task's state through a context variable; without one, the environment's applies.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from steelworks.errors import InvalidInputError

from . import _hazards, _profile
from ._registry import REGISTRY, declared
from ._signature import Path, check_path

ENVIRONMENT: Final = "STEELWORKS_PATH"
SIMULATE: Final = "STEELWORKS_SIMULATE_METAL"
#: Other names for forcing a path on the Apple GPU.
ALIASES: Final[Mapping[str, Path]] = {
    "MPS_FORCE_STEEL_PATH": "steel",
    "MPS_FORCE_MPS_PATH": "vendor",
    "MPS_FORCE_GRAPH_PATH": "graph",
}
_AUTO: Final = "auto"


class Forced(NamedTuple):
    """A path that was asked for, and where."""

    path: Path
    source: str


class State:
    """What is forced, and the choices made under it.

    Attributes:
        forced: By operation or family; under None for all others.
        alias: What an alias forces on mps; weaker than ``forced``.
        simulate: Whether CPU tensors may take the Metal kernels.
        cache: Choices by signature.
        busy: The same, while several MPS streams are active.
        observer: What is told of every call (``paths.record``); choices are then not shared.
        unread: It is the state outside all blocks, and the environment is still to be read.
    """

    __slots__ = ("alias", "busy", "cache", "forced", "observer", "simulate", "unread")

    def __init__(
        self,
        forced: Mapping[str | None, Forced],
        alias: Forced | None,
        simulate: bool,
        observer: Any = None,
    ) -> None:
        self.forced = forced
        self.alias = alias
        self.simulate = simulate
        self.observer = observer
        self.unread = False
        self.forget()

    def forget(self) -> None:
        """Drops the choices: new dictionaries, so that a choice in the making ends in the old ones."""
        self.cache: dict[Any, Any] = {}
        self.busy: dict[Any, Any] = {}

    def forced_for(self, op: str, family: str, device: str) -> Forced | None:
        """What is forced for an operation on a device, the most particular first."""
        for name in (op, family, None):
            if name in self.forced:
                return self.forced[name]
        return self.alias if device == "mps" or self.simulate else None


_BASE: Final = State({}, None, False)
_BASE.unread = True
CURRENT: Final[ContextVar[State]] = ContextVar("steelworks_paths", default=_BASE)
_guard: Final = threading.Lock()
_states: dict[Any, State] = {}
_most_states: Final = 64


def current() -> State:
    """The calling thread's or task's state; outside all blocks that of the environment, which is read once.

    Raises:
        InvalidInputError: a variable has a value that is not allowed.
    """
    state = CURRENT.get()
    if state.unread:
        forced, alias = _read_paths(os.environ)
        simulate = _read_simulate(os.environ)
        with _guard:
            state.forced, state.alias, state.simulate = forced, alias, simulate
            state.unread = False
    return state


def refresh() -> None:
    """Reads the environment and the profile again and drops all choices, after a change of one of them.

    Also forgets that several MPS streams were seen: call it when their threads are gone.
    """
    _BASE.unread = True
    _hazards.forget()
    _profile.forget()
    forget_choices()


def forget_choices() -> None:
    """Starts a new generation: every choice is made afresh when it is next needed."""
    with _guard:
        known = list(_states.values())
    for state in (*known, _BASE, CURRENT.get()):
        state.forget()


REGISTRY.listeners.append(forget_choices)


def _interned(forced: Mapping[str | None, Forced], alias: Forced | None, simulate: bool) -> State:
    key = (frozenset(forced.items()), alias, simulate)
    with _guard:
        state = _states.get(key)
        if state is None:
            while len(_states) >= _most_states:
                _states.pop(next(iter(_states)))
            state = _states[key] = State(dict(forced), alias, simulate)
        return state


def _read_paths(environment: Mapping[str, str]) -> tuple[dict[str | None, Forced], Forced | None]:
    forced: dict[str | None, Forced] = {}
    for item in environment.get(ENVIRONMENT, "").split(","):
        if not item.strip():
            continue
        op, separator, path = item.rpartition("=")
        source = f"{ENVIRONMENT}={environment[ENVIRONMENT]}"
        name = op.strip() or None
        if separator and name is None:
            raise InvalidInputError(f"{source}: nothing stands before '='; write 'steel' or 'softmax=steel'")
        if path.strip() != _AUTO:
            forced[name] = Forced(check_path(path.strip(), source, (_AUTO,)), source)
    wanted = [name for name in ALIASES if _is_yes(environment, name)]
    if len(wanted) > 1:
        raise InvalidInputError(f"{' and '.join(wanted)} are both set; set one of them")
    alias = Forced(ALIASES[wanted[0]], f"{wanted[0]}=1") if wanted else None
    return forced, alias


def _read_simulate(environment: Mapping[str, str]) -> bool:
    return _is_yes(environment, SIMULATE)


def _is_yes(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "").strip().lower()
    if value in ("", "0", "false", "no", "off"):
        return False
    if value in ("1", "true", "yes", "on"):
        return True
    raise InvalidInputError(f"{name}={value!r} is set; use 1 or 0")


@contextmanager
def resumed(state: State) -> Iterator[None]:
    """Runs a block under what was forced elsewhere: in the forward of a backward, say."""
    token = CURRENT.set(state)
    try:
        yield
    finally:
        CURRENT.reset(token)


@contextmanager
def use(path: str, *, op: str | None = None) -> Iterator[None]:
    """Forces a path in a ``with`` block, for the calling thread or asyncio task only.

    Where the path is not possible for a call, another is taken, and the reason is logged once. Of several blocks
    the innermost counts; a block stands above the environment.

    Args:
        path: ``"vendor"``, ``"steel"`` or ``"graph"``; ``"auto"`` lifts what is forced further out.
        op: Only for this operation (or family of operations); by default for all.

    Raises:
        InvalidInputError: no such path or operation.
    """
    source = f"paths.use({path!r})" if op is None else f"paths.use({path!r}, op={op!r})"
    outer = current()
    forced: dict[str | None, Forced] = {} if op is None else dict(outer.forced)
    if op is not None:
        _check_name(op, source)
        forced.pop(op, None)
    alias = None if op is None else outer.alias
    if path != _AUTO:
        forced[op] = Forced(check_path(path, source, (_AUTO,)), source)
    with resumed(_changed(outer, forced, alias, outer.simulate)):
        yield


def _check_name(op: str, source: str) -> None:
    known = {name for o in declared().values() for name in (o.name, o.family)}
    if op not in known:
        raise InvalidInputError(f"{source}: there is no such operation; there are {', '.join(sorted(known))}")


@contextmanager
def simulate_metal() -> Iterator[None]:
    """In this ``with`` block, CPU tensors take the Metal kernels where they can, run by ``steelworks.metalsim``.

    For tests: it is slow, and needs clang. The calling thread's or task's calls only. The environment variable
    ``STEELWORKS_SIMULATE_METAL=1`` does the same everywhere.
    """
    outer = current()
    with resumed(_changed(outer, outer.forced, outer.alias, True)):
        yield


@contextmanager
def observed(observer: Any) -> Iterator[None]:
    """Tells ``observer`` of each choice that is made in this block, with choices of its own."""
    outer = current()
    with resumed(State(outer.forced, outer.alias, outer.simulate, observer)):
        yield


def _changed(
    outer: State, forced: Mapping[str | None, Forced], alias: Forced | None, simulate: bool
) -> State:
    if outer.observer is not None:
        return State(forced, alias, simulate, outer.observer)
    return _interned(forced, alias, simulate)
