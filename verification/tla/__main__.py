"""The command: ``python -m verification.tla``. Checks the models, replays them on the code, and prints a table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import models, models_gemm, models_paths, planted, tlc, traces
from .checking import BUGS, check


def main() -> int:
    """The exit status: 0 if all is as it should be; 2 if a tool is missing."""
    parser = argparse.ArgumentParser(prog="python -m verification.tla", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only what runs with the tests")
    parser.add_argument("--only", default="", help="only configurations whose name contains this")
    parser.add_argument(
        "--bugs", action="store_true", help="plant the bugs of tests/verification/planted*.toml too"
    )
    parser.add_argument("--traces", type=Path, help="a file that the plugin traces.py wrote: follow it")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()
    if missing := tlc.missing():
        sys.stdout.write(f"evidence missing: no model was checked. {missing}\n")
        return 2
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
    all_holding = (*models.HOLDING, *models_gemm.HOLDING, *models_paths.HOLDING)
    all_failing = (*models.FAILING, *models_gemm.FAILING, *models_paths.FAILING)
    holding = [c for c in all_holding if only in c.name and (c.quick or not quick)]
    failing = [c for c in all_failing if only in c.name and (c.quick or not quick)]
    wanted = []
    if bugs:
        failing += [c for c in models_gemm.bugs() if only in c.case and (c.quick or not quick)]
        wanted = [b for b in (*planted.load(BUGS), *planted.load(models_paths.BUGS)) if only in b.config]
    for row in check(holding, failing, wanted):
        table.line(row.kind, row.name, row.good, row.seconds, **row.counts, why=row.why)


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
