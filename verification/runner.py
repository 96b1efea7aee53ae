"""Runs the parts of the evidence, several at a time where there are cores, each in a process of its own."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any, Final

from .claims import Claim
from .parts import ROOT, Declared
from .results import FAILED, HOLDS, NOT_CHECKED, Ended

#: Parts at a time: most keep a core busy, and some two.
AT_A_TIME: Final = max(2, min(4, (os.cpu_count() or 2) // 2 + 1))
#: Seconds after which a part is stopped.
LIMIT: Final = 3600.0
_LEAVE: Final = 30.0  # seconds that a part has to go when it is done
_SHOWN: Final = 1500  # of what a part printed, where it did not come to its end


@dataclass(frozen=True)
class PartEnded:
    """A part has come to its end, in so many seconds."""

    module: str
    seconds: float


@dataclass
class _Running:
    one: Declared
    names: tuple[str, ...]
    quick: bool
    process: subprocess.Popen[str]
    printed: IO[str]
    began: float
    left: dict[str, Claim]
    clock: threading.Timer | None = None
    stopped: bool = False


def run(wanted: Sequence[tuple[Declared, tuple[str, ...]]], quick: bool) -> Iterator[Ended | PartEnded]:
    """Runs parts; yields each claim as it ends, whatever its part, and each part's end.

    Every claim that is asked for is yielded once: if its part ends without it, as failed.

    Args:
        wanted: Each part with the names of the claims that are asked for.
        quick: The quick set.
    """
    waiting = sorted(wanted, key=lambda one: -one[0].part.minutes)
    running: dict[str, _Running] = {}
    said: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()
    try:
        while waiting or running:
            for one, names in [*waiting]:
                if _fits(one, list(running.values())):
                    waiting.remove((one, names))
                    running[one.part.module] = _start(one, names, quick, said)
            module, line = said.get()
            now = running[module]
            if line is None:
                yield from _rest(now)
                del running[module]
                yield PartEnded(module, time.monotonic() - now.began)
            else:
                yield from _heard(now, line)
    finally:
        for now in running.values():
            _stop(now)


def _fits(one: Declared, running: Sequence[_Running]) -> bool:
    if not running:
        return True
    return len(running) < AT_A_TIME and not one.part.whole and not any(r.one.part.whole for r in running)


def _start(
    one: Declared, names: tuple[str, ...], quick: bool, said: queue.Queue[tuple[str, dict[str, Any] | None]]
) -> _Running:
    module = one.part.module
    printed = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed by _rest)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-m", "verification.child", *(["--quick"] if quick else []), module, *names],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=printed,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # so that all that it starts can be stopped with it
    )
    left = {claim.name: claim for claim in one.claims if claim.name in names}
    now = _Running(one, names, quick, process, printed, time.monotonic(), left)

    def listen() -> None:
        assert process.stdout is not None
        for text in process.stdout:
            line = json.loads(text)
            said.put((module, line))
            if "end" in line:
                break  # what it may have left running holds the pipe open
        try:
            process.wait(_LEAVE)
        except subprocess.TimeoutExpired:
            pass
        _stop(now)
        process.wait()
        said.put((module, None))

    def stop() -> None:
        now.stopped = True
        _stop(now)

    threading.Thread(target=listen, daemon=True).start()
    now.clock = threading.Timer(LIMIT, stop)
    now.clock.daemon = True
    now.clock.start()
    return now


def _stop(now: _Running) -> None:
    try:
        os.killpg(now.process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _heard(now: _Running, line: dict[str, Any]) -> Iterator[Ended]:
    module = now.one.part.module
    if "claim" in line:
        claim = Claim(**line["claim"])
        claim = replace(claim, code=tuple(claim.code))
        if claim.name not in now.names and claim.name in (one.name for one in now.one.claims):
            return  # nobody asked for it
        if now.left.pop(claim.name, None) is None:
            why = "it is not declared, or came twice: mend declared() in " + module
            claim = replace(claim, passed=False, why=why)
        yield Ended(claim, module, HOLDS if claim.passed else FAILED, now.quick)
    elif line["end"] == "missing":
        yield from _remaining(now, NOT_CHECKED, line["why"])
    elif line["end"] == "broken":
        yield from _remaining(now, FAILED, f"the check itself failed: {line['why']}")
    else:
        yield from _remaining(now, FAILED, f"{module} ended without checking it")


def _rest(now: _Running) -> Iterator[Ended]:
    """What is left when the process is gone: nothing, unless it died before its end."""
    if now.clock is not None:
        now.clock.cancel()
    now.printed.seek(0)
    printed = now.printed.read()[-_SHOWN:].strip()
    now.printed.close()
    why = (
        f"it did not end within {LIMIT:.0f} s"
        if now.stopped
        else f"its process ended with {now.process.returncode}"
    )
    yield from _remaining(now, FAILED, f"{why}: {printed}" if printed else why)


def _remaining(now: _Running, state: str, why: str) -> Iterator[Ended]:
    for claim in now.left.values():
        yield Ended(replace(claim, passed=False, why=why), now.one.part.module, state, now.quick)
    now.left.clear()
