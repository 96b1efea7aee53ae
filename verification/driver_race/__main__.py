"""``python -m verification.driver_race``: runs the scenes, follows them, plants mistakes; prints a table."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from verification.claims import ToolMissing
from verification.tla import tlc

from . import checks
from .build import BuildError, workshop
from .checks import Check, Stage
from .follow import show, steps


def main() -> int:
    """The exit status: 0 if all is as it should be; 2 if a tool is missing."""
    parser = argparse.ArgumentParser(prog="python -m verification.driver_race", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="only some of the mistakes, and not the long trace"
    )
    parser.add_argument(
        "--show", metavar="SCENE", help="print what happens in a scene, step by step, and end"
    )
    parser.add_argument("--no-guard", action="store_true", help="with --show: without the guard")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    arguments = parser.parse_args()
    try:
        if missing := tlc.missing():
            raise ToolMissing(missing)
        with workshop() as shop:
            stage = Stage(shop)
            if arguments.show:
                return _show(stage, arguments.show, not arguments.no_guard)
            done = _run(stage, arguments.quick)
    except ToolMissing as problem:
        sys.stdout.write(f"evidence missing: the driver's race was not reproduced. {problem}\n")
        return 2
    except BuildError as problem:
        sys.stdout.write(f"FAILED: it does not compile:\n{problem}\n")
        return 1
    bad = sum(not one.good for one in done)
    sys.stdout.write(f"{len(done)} results, {bad} of them bad\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([vars(one) for one in done], indent=1) + "\n", encoding="utf-8")
    return int(bad > 0 or not done)


def _run(stage: Stage, quick: bool) -> list[Check]:
    done: list[Check] = []
    parts: Iterable[tuple[str, Iterable[Check]]] = (
        ("without the guard: each must fail", checks.unguarded(stage)),
        ("with it: each must be clean", checks.guarded(stage)),
        ("what passes through it", checks.plumbing(stage)),
        ("what happens, followed in DriverRace.tla", _traces(stage, quick)),
        ("mistakes of the guard: each must be noticed", checks.mistakes(stage, quick)),
    )
    for title, part in parts:
        sys.stdout.write(f"{title}\n")
        for one in part:
            mark = "ok  " if one.good else "BAD "
            sys.stdout.write(f"  {mark}{one.name:75} {one.seconds:6.2f} s  {one.shown}\n")
            sys.stdout.flush()
            done.append(one)
    return done


def _traces(stage: Stage, quick: bool) -> Iterable[Check]:
    began = time.monotonic()
    followed, _ = checks.traces(stage, checks.FOLLOWED if quick else (*checks.FOLLOWED, *checks.LONG))
    without = checks.unguarded_traces(stage)
    why = checks.traces_why(followed, without)
    shown = f"{followed.traces} traces, {followed.events} events; {len(without)} without the guard"
    yield Check("a behaviour of the model", not why, why or shown, time.monotonic() - began)


def _show(stage: Stage, scene: str, guarded: bool) -> int:
    outcome = stage.run(scene, guarded)
    for step in steps(outcome.events):
        sys.stdout.write(f"{show(step)}\n")
    sys.stdout.write(f"{scene} ended: {outcome.ended}\n{outcome.said}\n")
    return int(outcome.ended != "clean")


if __name__ == "__main__":
    sys.exit(main())
