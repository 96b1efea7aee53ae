"""Measures the paths of operations on this machine, and keeps the times for the selector.

A time is that of a call among calls of its kind, host time included: calls are made one after the other without
waiting, and what they took until the device was done is divided by their number. So it is the host's time where that
is the limit, and the device's where that is. The calls are those of ``steelworks/ops/_examples.py``.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch

from steelworks.errors import InvalidInputError

from . import _profile
from ._choose import refusal
from ._profile import Entry
from ._registry import Examples, Operation, declared, implementation_of, operation_of
from ._signature import PATHS, Signature
from ._signature import Path as PathName
from ._state import current, refresh

_WARM_UPS: Final = 3
_ROUND_SECONDS: Final = 0.01
_MOST_CALLS: Final = 1000
_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Effort:
    """How much is measured.

    Attributes:
        dtypes: Of the tensors.
        seconds: After this long no further call is begun.
        rounds: In each the paths take turns.
        calls: Kinds of call an operation and dtype, the first of those there are; None for all.
    """

    dtypes: tuple[torch.dtype, ...]
    seconds: float
    rounds: int
    calls: int | None


_WHOLE: Final = _Effort(_DTYPES, 900.0, 5, None)
_QUICK: Final = _Effort((torch.float16,), 60.0, 3, 2)


@dataclass(frozen=True)
class Tuned:
    """What ``tune`` did.

    Attributes:
        device: The device type.
        entries: The times.
        file: The profile it wrote; None if it was not to write.
        failures: Calls that a path could not make, as sentences.
        left: Operations with their dtype that were not, or not wholly, measured when the time was up.
    """

    device: str
    entries: tuple[Entry, ...]
    file: Path | None
    failures: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def tune(
    device: str | torch.device | None = None,
    ops: Sequence[str] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    *,
    quick: bool = False,
    seconds: float | None = None,
    write: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Tuned:
    """Measures the paths of operations for typical sizes, and keeps the times in the user's cache directory.

    Only calls for which more than one path is possible are measured. Takes minutes on a GPU, for which it must be
    alone; nothing else measures or writes. What was measured before, of other operations, dtypes or sizes, is kept.

    Args:
        device: By default the GPU that is here.
        ops: Operations or families; by default all that have more than one path on the device.
        dtypes: Of the tensors; by default float32, float16 and bfloat16, with ``quick`` float16.
        quick: Two sizes an operation, and fewer repetitions.
        seconds: When they are over no further call is begun, and what was measured is kept; by default 900, with
            ``quick`` 60. A call that is under way, and the compilation of its kernels, is waited for.
        write: Whether to keep the times; they hold for this device and these versions.
        progress: Called before each kind of call with its title, its number and their count.

    Raises:
        InvalidInputError: no such operation, one with a single path on the device, or a device where all have one (the
            CPU, outside ``paths.simulate_metal()``).
    """
    where = torch.device(_gpu() if device is None else device)
    if where.type == "cpu" and not current().simulate:
        raise InvalidInputError(
            "tune: the CPU has one path, PyTorch's, so there is nothing to measure; give device='cuda' or 'mps'"
        )
    asked = _QUICK if quick else _WHOLE
    effort = replace(
        asked,
        dtypes=asked.dtypes if dtypes is None else tuple(dtypes),
        seconds=asked.seconds if seconds is None else seconds,
    )
    if not effort.seconds > 0:
        raise InvalidInputError(f"tune: seconds is {seconds}; a number above 0 is needed")
    jobs = [(one, dtype) for dtype in effort.dtypes for one in _operations(ops, where.type)]
    deadline = time.monotonic() + effort.seconds
    entries: list[Entry] = []
    failures: list[str] = []
    left: list[str] = []
    for number, (operation, dtype) in enumerate(jobs):
        title = f"{operation.name} {_short(dtype)}"
        if progress is not None:
            progress(title, number, len(jobs))
        if not _measure(operation, where, dtype, effort, deadline, entries, failures):
            left.append(title)
    file = None
    if write and entries:
        file = _profile.write(where.type, entries)
        refresh()
    return Tuned(where.type, tuple(entries), file, tuple(failures), tuple(left))


def _gpu() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _operations(names: Sequence[str] | None, device: str) -> list[Operation]:
    """Those with examples and more than one path on the device."""
    _examples_of_ours()  # declares what nothing else has loaded
    known = declared()
    if names is None:
        return [o for o in known.values() if examples_of(o) is not None and len(_paths_of(o, device)) > 1]
    found: list[Operation] = []
    for name in names:
        of_name = [o for o in known.values() if name in (o.name, o.family)] or [operation_of(name)]
        for operation in of_name:
            if examples_of(operation) is None:
                raise InvalidInputError(f"tune: {operation.name} has no examples, so it can't be measured")
        several = [o for o in of_name if len(_paths_of(o, device)) > 1]
        if not several:
            raise InvalidInputError(
                f"tune: {name} has one path on '{device}', {' or '.join(_paths_of(of_name[0], device))}, so there is "
                "nothing to measure; leave it out"
            )
        found += [o for o in several if o not in found]
    return found


def examples_of(operation: Operation) -> Examples | None:
    """What ``tune`` measures of an operation: what it was declared with, or what ours have."""
    if operation.examples is not None:
        return operation.examples
    ours: Examples | None = _examples_of_ours().examples_of(operation.name)
    return ours


def _examples_of_ours() -> Any:
    """The module with the examples; of the layer above, and needed here only."""
    return importlib.import_module("steelworks.ops._examples")


def _paths_of(operation: Operation, device: str) -> list[PathName]:
    """The paths that calls on a device can have at all."""
    return [
        p
        for p in PATHS
        if implementation_of(operation.name, device, p) and (device, p) not in operation.no_path
    ]


def _measure(
    operation: Operation,
    device: torch.device,
    dtype: torch.dtype,
    effort: _Effort,
    deadline: float,
    entries: list[Entry],
    failures: list[str],
) -> bool:
    """Measures the calls of an operation and dtype; False if the time was up before all were."""
    examples = examples_of(operation)
    assert examples is not None and operation.signature is not None
    gpus = [device] if device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=gpus):
        calls = iter(islice(examples(device, dtype), effort.calls))
        while time.monotonic() < deadline:
            arguments = next(calls, None)
            if arguments is None:
                return True
            if time.monotonic() >= deadline:  # making them may take long, too
                break
            signature = Signature(*operation.signature(*arguments))
            possible = [p for p in PATHS if refusal(operation, signature, p, current()) is None]
            if len(possible) < 2:
                continue
            seconds = _race(operation.name, device, possible, arguments, effort.rounds, failures)
            if len(seconds) == len(possible):
                entries.append(
                    Entry(operation.name, _short(dtype), dict(operation.sizes(signature)), seconds)
                )
    return False


def _race(
    op: str,
    device: torch.device,
    possible: Sequence[PathName],
    arguments: tuple[Any, ...],
    rounds: int,
    failures: list[str],
) -> dict[str, float]:
    """Seconds a call by path: medians of rounds in which the paths take turns."""
    runs: dict[str, Callable[..., Any]] = {}
    calls: dict[str, int] = {}
    for path in possible:
        implementation = implementation_of(op, device.type, path)
        assert implementation is not None
        try:
            for _ in range(_WARM_UPS):
                implementation.run(*arguments)
            _wait(device)
            once = _round(implementation.run, arguments, device, 2)
        except Exception as problem:
            failures.append(f"{op} on the {path} path: {type(problem).__name__}: {problem}")
            return {}
        runs[path] = implementation.run
        calls[path] = max(2, min(_MOST_CALLS, int(_ROUND_SECONDS / max(once, 1e-7))))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(_round(run, arguments, device, calls[name]))
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _round(run: Callable[..., Any], arguments: tuple[Any, ...], device: torch.device, calls: int) -> float:
    _wait(device)
    began = time.perf_counter()
    for _ in range(calls):
        run(*arguments)
    _wait(device)
    return (time.perf_counter() - began) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
