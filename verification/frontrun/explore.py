"""Explores one scene in a process of its own: ``python -m verification.frontrun.explore SCENE [BUG]``.

frontrun replaces the locks of ``threading`` while it explores, so nothing else may run in the process. It prints one
line of JSON: how many schedules were explored, and what was wrong with the first bad one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from typing import Any

os.environ["FRONTRUN_ACTIVE"] = "1"  # what its command line sets; its wrapper for sockets is not needed

import torch

import frontrun
from verification.tla import planted
from verification.tla.checking import BUGS

from .scenes import SCENES, Scene

SECONDS = 60.0


def explore(scene: Scene, seconds: float = SECONDS) -> dict[str, Any]:
    """All schedules of a scene, up to its bound and the first that is bad."""
    began = time.monotonic()
    result = frontrun.explore(
        setup=scene.setup,
        workers=scene.threads,
        invariant=scene.holds,
        preemption_bound=scene.preemptions,
        total_timeout=seconds,
        timeout_per_run=10.0,
        reproduce_on_failure=0,
        detect_io=False,
    )
    spent = time.monotonic() - began
    return {
        "holds": bool(result.property_holds),
        "schedules": int(result.num_explored),
        "seconds": round(spent, 2),
        "ended": spent < seconds and result.inconclusive_reason is None,
        "why": str(result.explanation or result.failure_kind or result.inconclusive_reason or "")[:1500],
    }


def main() -> int:
    """0 if it was explored, whatever was found."""
    torch.set_num_threads(1)
    name, *bugs = sys.argv[1:]
    bug = next(b for b in planted.load(BUGS) if b.name == bugs[0]) if bugs else None
    with planted.planted(bug) if bug is not None else nullcontext():
        sys.stdout.write(json.dumps(explore(SCENES[name])) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
