"""The explored schedules, as claims."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from verification.claims import Claim, ToolMissing, declare
from verification.parts import ROOT, Wanted, everything

_CODE: Final = ("steelworks/streams/_ledger.py", "steelworks/batching/_scheduler.py")
#: Scenes by how their schedules are bounded; scenes.py says what they are.
EVERY: Final = ("pool-error", "queue-cancel", "queue-withdraw", "queue-submit", "queue-wake", "queue-close")
BOUNDED: Final = ("pool-wait", "pool-three", "pool-close")
_QUICK: Final = EVERY
#: Bugs of tests/verification/planted.toml, and the scene that notices each.
PLANTED: Final = {
    "the-end-of-a-thread-returns-nothing": "pool-error",
    "in-use-is-never-counted-down": "pool-error",
    "looks-before-it-returns": "pool-error",
    "a-slot-is-returned-twice": "pool-error",
    "submit-takes-no-lock": "queue-submit",
    "who-gives-up-ends-a-request-again": "queue-withdraw",
    "results-are-not-told": "queue-cancel",
    "running-is-counted-down-outside-the-lock": "queue-cancel",
    "nobody-looks-after-a-section": "pool-wait",
    "a-hand-over-wakes-nobody": "pool-wait",
    "submit-wakes-nobody": "queue-wake",
    "submit-forgets-the-wake-up": "queue-wake",
    "close-wakes-nobody": "queue-close",
}


def missing() -> str:
    """What has to be installed; "" for nothing."""
    if importlib.util.find_spec("frontrun") is None:
        return "frontrun is not here; pip install frontrun (CPython on Linux or macOS)"
    return ""


def explored(scene: str, bug: str = "") -> dict[str, Any]:
    """What frontrun found in a scene, in a process of its own."""
    command = [sys.executable, "-m", "verification.frontrun.explore", scene, *([bug] if bug else [])]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if ran.returncode or not ran.stdout.strip():
        return {
            "holds": None,
            "ended": False,
            "schedules": 0,
            "why": f"{ran.returncode}: {ran.stderr[-800:]}",
        }
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def declared() -> tuple[Claim, ...]:
    """What is claimed of the explored schedules."""
    return (
        declare(
            "frontrun.schedules",
            "however their bytecodes interleave, threads lose or share no slot, and each request ends and is told once",
            tool="frontrun",
            bound=_bound(False),
            binding="the real Ledger and Scheduler run",
            code=_CODE,
            assumes="state inside C extensions is not seen; streams, models and the queue's own threads are left out",
        ),
        declare(
            "frontrun.planted",
            "the exploration notices bugs that are planted in the running code, or a thread hangs by them",
            tool="frontrun",
            bound="one bug at a time",
            binding="the bug is planted in the real function, whose text it must fit",
            code=(*_CODE, "tests/verification/planted.toml"),
            in_quick=False,
            assumes="nothing",
            counted=f"{len(PLANTED)} of {len(PLANTED)} bugs noticed",
        ),
    )


def _bound(quick: bool) -> str:
    whole = f"every schedule, 2 threads: {', '.join(EVERY)}"
    return whole if quick else f"{whole}; 1 or 2 preemptions, 2-3 threads: {', '.join(BOUNDED)}"


def claims(quick: bool, wanted: Wanted = everything) -> Iterator[Claim]:
    """Explores the scenes and plants; yields each claim as it ends.

    Raises:
        ToolMissing: frontrun is not here.
    """
    if lack := missing():
        raise ToolMissing(lack)
    version = f"frontrun {importlib.metadata.version('frontrun')}"
    whole, planted = declared()
    if wanted(whole.name):
        began, schedules, why = time.monotonic(), 0, ""
        scenes = _QUICK if quick else (*EVERY, *BOUNDED)
        for scene in scenes:
            found = explored(scene)
            schedules += found["schedules"]
            if not (found["holds"] and found["ended"]):
                why = why or f"{scene}: {found['why'] or 'not ended'}"
        yield replace(
            whole,
            tool=version,
            bound=_bound(quick),
            counted=f"{schedules:,} schedules of {len(scenes)} scenes",
            passed=not why,
            seconds=time.monotonic() - began,
            why=why[:2000],
        )
    if wanted(planted.name):
        began = time.monotonic()
        unseen = [bug for bug, scene in PLANTED.items() if explored(scene, bug)["holds"] is not False]
        yield replace(
            planted,
            tool=version,
            counted=f"{len(PLANTED) - len(unseen)} of {len(PLANTED)} bugs noticed",
            passed=not unseen,
            seconds=time.monotonic() - began,
            why=f"not noticed: {', '.join(unseen)}" if unseen else "",
        )
