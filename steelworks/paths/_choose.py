"""The choice of a path for a call, and why; kept by signature.

The order: what is forced, if possible; a simulated Apple GPU; hazards; the profile measured on this machine; the
table of defaults. The same inputs and state give the same choice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from steelworks.errors import InvalidInputError

from . import _hazards, _profile
from ._registry import Operation, implementation_of, operation_of
from ._signature import PATHS, Path, Signature
from ._state import CURRENT, State, current
from .defaults import DEFAULTS

_log = logging.getLogger(__name__)
#: Choices kept by a state; beyond that it starts afresh, so that ever new shapes do not fill the memory.
_MOST_CHOICES: Final = 8192
_logged: set[tuple[str, str, str, str]] = set()


@dataclass(frozen=True)
class Candidate:
    """A path that was considered.

    Attributes:
        path: The path.
        refusal: Why it is not possible; None if it is.
        seconds: What it took when it was measured on this machine for the nearest sizes; None if it was not.
    """

    path: Path
    refusal: str | None
    seconds: float | None = None


@dataclass(frozen=True)
class Choice:
    """A path for calls of one signature.

    Attributes:
        signature: The calls it is for.
        path: The path.
        run: The implementation; takes the operation's arguments in order. On mps all but ours take turns (R3 to R5).
        rule: What decided: ``"forced"``, ``"simulated"``, ``"hazard"``, ``"profile"``, ``"default"`` or ``"only"``.
        reason: Why, as a clause.
        candidates: All paths, in a fixed order.
        fallback: What was forced and why it is not possible; None if nothing is, or it is possible.
    """

    signature: Signature
    path: Path
    run: Callable[..., Any]
    rule: str
    reason: str
    candidates: tuple[Candidate, ...]
    fallback: str | None = None


def known(signature: tuple[Any, ...]) -> Choice | None:
    """The choice for a signature (or its plain tuple) if it was made already: for hot paths."""
    state = CURRENT.get()
    if signature[1] == "mps" and _hazards.several_streams():
        return state.busy.get(signature)
    return state.cache.get(signature)


def choose(signature: tuple[Any, ...]) -> Choice:
    """The choice for a signature, made now if it was not yet.

    Args:
        signature: A :class:`Signature`, or the plain tuple of its fields.

    Raises:
        InvalidInputError: there is no such operation, or no path is possible.
    """
    state = CURRENT.get()
    busy = signature[1] == "mps" and _hazards.several_streams()
    cache = state.busy if busy else state.cache
    found: Choice | None = cache.get(signature)
    if found is not None:
        return found
    found = decide(Signature(*signature), current(), busy)
    if found.fallback is not None:
        _log_once(found)
    if found.path != "steel" and signature[1] == "mps":
        found = replace(found, run=partial(_hazards.in_turn, found.run))
    if state.observer is not None:
        found = replace(found, run=partial(state.observer, found, found.run))
    if len(cache) >= _MOST_CHOICES:
        cache.clear()
    cache[found.signature] = found
    return found


def through_vendor(choice: Choice, run: Callable[..., Any], *args: Any) -> Any:
    """Runs PyTorch's own in place of a choice, and tells a ``record`` block of it."""
    if choice.signature.device == "mps":
        run = partial(_hazards.in_turn, run)
    observer = CURRENT.get().observer
    if observer is None:
        return run(*args)
    return observer(replace(choice, path="vendor", run=run), run, *args)


def decide(signature: Signature, state: State, busy: bool) -> Choice:
    """The choice, from its arguments, the registry, the profile and the table alone."""
    operation = operation_of(signature.op)
    sizes = operation.sizes(signature)
    measured = _profile.times(signature, sizes)
    refusals = {path: refusal(operation, signature, path, state) for path in PATHS}
    candidates = tuple(Candidate(p, refusals[p], measured.get(p)) for p in PATHS)
    possible = tuple(p for p in PATHS if refusals[p] is None)
    if not possible:
        why = "; ".join(f"{p}: {refusals[p]}" for p in PATHS)
        raise InvalidInputError(
            f"{signature.op} can't run on '{signature.device}' for {signature.dtype} and shapes "
            f"{_shapes(signature)}: {why}"
        )
    forced = state.forced_for(operation.name, operation.family, signature.device)
    fallback = None
    if forced is not None:
        if forced.path in possible:
            path, rule, reason = forced.path, "forced", f"forced by {forced.source}"
            return _choice(signature, path, rule, reason, candidates)
        fallback = f"{forced.source} asks for {forced.path}: {refusals[forced.path]}"
    path, rule, reason = _unforced(signature, state, busy, possible, measured, sizes)
    return _choice(signature, path, rule, reason, candidates, fallback)


def _choice(
    signature: Signature,
    path: Path,
    rule: str,
    reason: str,
    candidates: tuple[Candidate, ...],
    fallback: str | None = None,
) -> Choice:
    implementation = implementation_of(signature.op, signature.device, path)
    assert implementation is not None
    return Choice(signature, path, implementation.run, rule, reason, candidates, fallback)


def _unforced(
    signature: Signature,
    state: State,
    busy: bool,
    possible: tuple[Path, ...],
    measured: Mapping[str, float],
    sizes: Mapping[str, int],
) -> tuple[Path, str, str]:
    if len(possible) == 1:
        return possible[0], "only", "no other path is possible"
    if state.simulate and signature.device == "cpu" and "steel" in possible:
        return "steel", "simulated", "CPU tensors stand for an Apple GPU's inside paths.simulate_metal()"
    if busy and "steel" in possible:
        return "steel", "hazard", _hazards.REASON
    timed = [p for p in possible if p in measured]
    if len(timed) == len(possible):
        best = min(timed, key=lambda p: (measured[p], PATHS.index(p)))
        return best, "profile", f"the fastest when measured on this machine, at {measured[best] * 1e6:.1f} us"
    for row in DEFAULTS:
        if row.path in possible and row.applies(signature, sizes):
            return row.path, "default", row.reason
    if "vendor" in possible:
        return "vendor", "default", "no measurement says that another path is faster here"
    return possible[0], "default", "the vendor path is not possible"


def refusal(operation: Operation, signature: Signature, path: Path, state: State) -> str | None:
    """Why a path can't be taken; None if it can."""
    device = signature.device
    known_reason = operation.no_path.get((device, path))
    if known_reason is not None:
        return known_reason
    implementation = implementation_of(operation.name, device, path)
    if implementation is None:
        if path == "graph" and device != "mps":
            return "MPSGraph is on mps only"
        return f"there is no such implementation for '{device}'"
    if device == "cpu" and path == "steel" and not state.simulate:
        return "on the CPU the Metal kernels run only inside paths.simulate_metal()"
    return implementation.possible(signature)


def _log_once(choice: Choice) -> None:
    """One line a reason, however many signatures meet it."""
    assert choice.fallback is not None
    key = (choice.signature.op, choice.signature.device, choice.path, choice.fallback)
    if key in _logged:
        return
    _logged.add(key)
    _log.warning(
        "%s on %s takes the %s path: %s",
        choice.signature.op,
        choice.signature.device,
        choice.path,
        choice.fallback,
    )


def _shapes(signature: Signature) -> str:
    return ", ".join("none" if s is None else "x".join(map(str, s)) or "scalar" for s in signature.shapes)
