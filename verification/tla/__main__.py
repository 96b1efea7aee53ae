"""The command: ``python -m verification.tla``. Checks the models, replays them on the code, and prints a table."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from . import models, planted, tlc, traces
from .checks import Checks, subject
from .models import Config
from .replay import Disagreement, Replayed, replay

BUGS = Path(__file__).resolve().parents[2] / "tests" / "verification" / "planted.toml"


def main() -> int:
    """The exit status: 0 if all is as it should be; 2 if a tool is missing."""
    parser = argparse.ArgumentParser(prog="python -m verification.tla", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only what runs with the tests")
    parser.add_argument("--only", default="", help="only configurations whose name contains this")
    parser.add_argument(
        "--bugs", action="store_true", help="plant the bugs of tests/verification/planted.toml too"
    )
    parser.add_argument("--traces", type=Path, help="a file that the plugin traces.py wrote: follow it")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()
    if missing := tlc.missing():
        sys.stdout.write(f"evidence missing: no model was checked. {missing}\n")
        return 2
    # A forked child of a program with threads is what the replay tests.
    warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
    table = Table()
    if arguments.traces is not None:
        _follow(arguments.traces, table)
    else:
        _check(arguments.quick, arguments.only, arguments.bugs, table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(table.rows, indent=1), encoding="utf-8")
    return table.end()


class Table:
    """Lines of results, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def line(self, kind: str, name: str, good: bool, seconds: float, **facts: object) -> None:
        """Print one result."""
        self.rows.append({"kind": kind, "name": name, "good": good, "seconds": round(seconds, 2), **facts})
        told = ", ".join(f"{value} {key}" for key, value in facts.items() if key != "why")
        sys.stdout.write(f"{'ok  ' if good else 'BAD '} {kind:7} {name:48} {seconds:7.1f} s  {told}\n")
        if facts.get("why") and not good:
            sys.stdout.write(f"{facts['why']}\n")
        sys.stdout.flush()

    def end(self) -> int:
        """Print the sum; the exit status."""
        bad = sum(1 for row in self.rows if not row["good"])
        sys.stdout.write(f"{len(self.rows)} results, {bad} of them bad\n")
        return int(bad > 0 or not self.rows)


def _check(quick: bool, only: str, bugs: bool, table: Table) -> None:
    holding = [c for c in models.HOLDING if only in c.name and (c.quick or not quick)]
    failing = [c for c in models.FAILING if only in c.name and (c.quick or not quick)]
    wanted = [bug for bug in planted.load(BUGS) if only in bug.config] if bugs else []
    configs = {c.name: c for c in (*holding, *(models.named(bug.config) for bug in wanted), *failing)}
    checks = Checks(configs.values())
    try:
        for config in holding:
            _holds(config, checks, table)
        for config in failing:
            outcome = checks.outcome(config)
            good = (outcome.exit_code, outcome.violated) == (config.exit_code, config.violated)
            table.line(
                "mistake", config.name, good, outcome.seconds, states=outcome.states, why=outcome.output
            )
        for bug in wanted:
            _plant(bug, checks, table)
    finally:
        checks.close()


def _holds(config: Config, checks: Checks, table: Table) -> None:
    outcome = checks.outcome(config)
    good = outcome.exit_code == tlc.HOLDS and outcome.states == config.states
    why = outcome.output if outcome.exit_code else f"{config.states} states were expected"
    table.line("model", config.name, good, outcome.seconds, states=outcome.states, why=why)
    if config.replayed and outcome.exit_code == tlc.HOLDS:
        why, seconds, done = _timed(lambda: replay(checks.graph(config), subject(config)))
        told = {} if done is None else {"edges": done.edges, "steps": done.steps}
        table.line("replay", config.name, not why, seconds, **told, why=why)


def _plant(bug: planted.Bug, checks: Checks, table: Table) -> None:
    config = models.named(bug.config)
    graph = checks.graph(config)
    with planted.planted(bug):
        why, seconds, _ = _timed(lambda: replay(graph, subject(config)))
    table.line("bug", bug.name, bool(why), seconds, why="not noticed")


def _timed(work: Callable[[], Replayed]) -> tuple[str, float, Replayed | None]:
    began = time.monotonic()
    try:
        done = work()
        return "", time.monotonic() - began, done
    except Disagreement as error:
        return str(error), time.monotonic() - began, None


def _follow(file: Path, table: Table) -> None:
    recorded = json.loads(file.read_text(encoding="utf-8"))
    for kind, follow in (("queues", traces.follow), ("pools", traces.follow_pools)):
        followed = follow(recorded[kind])
        table.line(
            "traces",
            kind,
            not followed.wrong and followed.traces > 0,
            followed.seconds,
            traces=followed.traces,
            events=followed.events,
            skipped=followed.skipped,
            why=followed.wrong,
        )


if __name__ == "__main__":
    sys.exit(main())
