"""Measures the paths of operations on this machine, and keeps the times for the selector.

A time is that of a call among calls of its kind, host time included: calls are made one after the other without
waiting, and what they took until the device was done is divided by their number. So it is the host's time where that
is the limit, and the device's where that is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from steelworks.errors import InvalidInputError

from . import _profile
from ._choose import refusal
from ._profile import Entry
from ._registry import Operation, declared, implementation_of, operation_of
from ._signature import PATHS, Signature
from ._signature import Path as PathName
from ._state import current, refresh

_WARM_UPS: Final = 3
_ROUNDS: Final = 5
_ROUND_SECONDS: Final = 0.01
_MOST_CALLS: Final = 1000
_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Tuned:
    """What ``tune`` did.

    Attributes:
        device: The device type.
        entries: The times.
        file: The profile it wrote; None if it was not to write.
        failures: Calls that a path could not make, as sentences.
    """

    device: str
    entries: tuple[Entry, ...]
    file: Path | None
    failures: tuple[str, ...] = ()


def tune(
    device: str | torch.device | None = None,
    ops: Sequence[str] | None = None,
    dtypes: Sequence[torch.dtype] = _DTYPES,
    *,
    write: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Tuned:
    """Measures the paths of operations for typical sizes, and keeps the times in the user's cache directory.

    Only calls for which more than one path is possible are measured. Takes minutes on a GPU, for which it must be
    alone; nothing else measures or writes.

    Args:
        device: By default the GPU that is here.
        ops: Operations or families; by default all that can be measured.
        dtypes: Of the tensors.
        write: Whether to keep the times; they hold for this device and these versions.
        progress: Called before each kind of call with its title, its number and their count.

    Raises:
        InvalidInputError: no such operation, or a device with a single path (the CPU, outside
            ``paths.simulate_metal()``).
    """
    where = torch.device(_gpu() if device is None else device)
    if where.type == "cpu" and not current().simulate:
        raise InvalidInputError(
            "tune: the CPU has one path, PyTorch's, so there is nothing to measure; give device='cuda' or 'mps'"
        )
    jobs = [(operation, dtype) for operation in _operations(ops) for dtype in dtypes]
    entries: list[Entry] = []
    failures: list[str] = []
    for number, (operation, dtype) in enumerate(jobs):
        if progress is not None:
            progress(f"{operation.name} {_short(dtype)}", number, len(jobs))
        _measure(operation, where, dtype, entries, failures)
    file = None
    if write and entries:
        file = _profile.write(where.type, entries)
        refresh()
    return Tuned(where.type, tuple(entries), file, tuple(failures))


def _gpu() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _operations(names: Sequence[str] | None) -> list[Operation]:
    known = declared()
    if names is None:
        return [o for o in known.values() if o.examples is not None]
    found = []
    for name in names:
        of_name = [o for o in known.values() if name in (o.name, o.family)] or [operation_of(name)]
        for operation in of_name:
            if operation.examples is None:
                raise InvalidInputError(f"tune: {operation.name} has no examples, so it can't be measured")
            found.append(operation)
    return found


def _measure(
    operation: Operation, device: torch.device, dtype: torch.dtype, entries: list[Entry], failures: list[str]
) -> None:
    assert operation.examples is not None and operation.signature is not None
    gpus = [device] if device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=gpus):
        for arguments in operation.examples(device, dtype):
            signature = Signature(*operation.signature(*arguments))
            possible = [p for p in PATHS if refusal(operation, signature, p, current()) is None]
            if len(possible) < 2:
                continue
            seconds = _race(operation.name, device, possible, arguments, failures)
            if len(seconds) == len(possible):
                entries.append(
                    Entry(operation.name, _short(dtype), dict(operation.sizes(signature)), seconds)
                )


def _race(
    op: str,
    device: torch.device,
    possible: Sequence[PathName],
    arguments: tuple[Any, ...],
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
    for _ in range(_ROUNDS):
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
