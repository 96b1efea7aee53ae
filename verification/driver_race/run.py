"""Runs a scene and says how it ended and what happened in it."""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATIENCE: Final = 30.0  # seconds without a step, after which a scene is a deadlock
_SECONDS: Final = 240.0

#: How a scene may end.
CLEAN, RACE, CRASH, CORRUPT, DEADLOCK, WRONG = "clean", "race", "crash", "corrupt", "deadlock", "wrong"


@dataclass(frozen=True)
class Event:
    """A step of a scene.

    Attributes:
        name: The action of DriverRace.tla.
        thread: Which thread of the scene, from 1 on.
        call: What the thread is about: ``make``, ``encode``, ``end``, ``commit``, ``wait`` or ``handle``.
        object: An address, where the step has one.
        about: The thread that a ``handle`` is for.
    """

    name: str
    thread: int
    call: str
    object: str
    about: int


@dataclass(frozen=True)
class Outcome:
    """How a scene ended.

    Attributes:
        scene: its name.
        ended: ``clean``, ``race`` (ThreadSanitizer reported one), ``crash``, ``corrupt`` (the driver's books),
            ``deadlock``, or ``wrong`` (something else that the scene looks at).
        events: in order.
        refused: calls that the guard dropped.
        open: encoders that are open at the end, as far as the guard knows.
        said: all that was printed, but for events.
        seconds: wall clock.
    """

    scene: str
    ended: str
    events: tuple[Event, ...]
    refused: int
    open: int
    said: str
    seconds: float


def run(program: Path, scene: str, guarded: bool, patience: float = PATIENCE) -> Outcome:
    """Run one scene.

    Args:
        program: as :meth:`build.Workshop.program` gives it.
        scene: its name.
        guarded: whether the guard is installed before.
        patience: seconds without a step, after which it is a deadlock.
    """
    # A report names its place without a symbolizer, which would take a second for each.
    options = "symbolize=0:report_signal_unsafe=0:halt_on_error=1"
    environment = {**os.environ, "STEEL_PATIENCE": str(patience), "TSAN_OPTIONS": options}
    began = time.monotonic()
    try:
        done = subprocess.run(
            [str(program), scene, "guard" if guarded else "none"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            env=environment,
            check=False,
        )
        code, printed, said = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        code, printed, said = 3, "", "FAILED: deadlock: the scene did not end"
    lines = printed.splitlines()
    found = dict(re.findall(r"^(refused|open) (\d+)$", printed, re.MULTILINE))
    rest = "\n".join(line for line in lines if not line.startswith("event "))
    return Outcome(
        scene=scene,
        ended=_ended(code, said),
        events=_events(lines),
        refused=int(found.get("refused", 0)),
        open=int(found.get("open", 0)),
        said=f"{rest}\n{said}".strip(),
        seconds=time.monotonic() - began,
    )


def _ended(code: int, said: str) -> str:
    if "WARNING: ThreadSanitizer" in said:
        return RACE
    if code == 0:
        return CLEAN
    for mark, ended in (("FAILED: corrupt", CORRUPT), ("FAILED: deadlock", DEADLOCK), ("FAILED", WRONG)):
        if mark in said:
            return ended
    return CRASH


def _events(lines: list[str]) -> tuple[Event, ...]:
    found = []
    for line in lines:
        if line.startswith("event "):
            _, ticket, thread, name, call, at, about = line.split()
            found.append((int(ticket), Event(name, int(thread), call, at, int(about))))
    return tuple(event for _, event in sorted(found, key=lambda pair: pair[0]))
