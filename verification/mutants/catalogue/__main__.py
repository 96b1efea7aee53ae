"""The command: ``python -m verification.mutants.catalogue``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from .entries import LAYERS, Mutant, load, sample
from .report import Result
from .workshop import CAUGHT, Verdict, baseline, copies, preload, try_all


def main() -> int:
    """The exit status: 0 if enough mutants are caught and each survivor has a reason."""
    arguments = _arguments()
    chosen = _choose(arguments)
    if not chosen:
        _say("no mutant is chosen; see --list")
        return 1
    if arguments.list:
        for mutant in chosen:
            _say(
                f"{mutant.layer:10} {mutant.name}  ({mutant.file}; {' '.join(mutant.checks)}): {mutant.what}"
            )
        _say(f"{len(chosen)} mutants")
        return 0
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that what was started is ended, and copies go
    began = time.monotonic()
    preload()
    verdicts: dict[Mutant, Verdict] = {}

    def done(mutant: Mutant, verdict: Verdict) -> None:
        verdicts[mutant] = verdict
        if arguments.verbose or verdict.outcome != CAUGHT:
            number = f"[{len(verdicts)}/{len(chosen)}]"
            _say(f"{number} {verdict.outcome} {mutant.name} ({verdict.seconds:.1f} s) {verdict.told}")

    with copies(arguments.jobs) as made:
        faults = [] if arguments.no_baseline else baseline(chosen, made)
        if faults:
            for fault in faults:
                _say(fault)
            _say("verdict: FAILED; the checks must pass without a mutant")
            return 1
        if not arguments.no_baseline:
            _say(f"the checks pass without a mutant ({time.monotonic() - began:.0f} s)")
        # Those that take long first, so that none of them is left at the end.
        try_all(sorted(chosen, key=lambda m: -m.seconds), made, done)
    result = Result({mutant: verdicts[mutant] for mutant in chosen})
    seconds = time.monotonic() - began
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result.data(seconds), indent=1) + "\n", encoding="utf-8")
    _say(result.text(seconds))
    _say("verdict: FAILED; " + "; ".join(result.faults) if result.faults else "verdict: passed")
    return 1 if result.faults else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m verification.mutants.catalogue",
        description="Plants bugs in a copy of the project, one at a time; the check that each names must notice.",
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="part of a mutant's name")
    parser.add_argument("--layer", action="append", default=[], choices=LAYERS, help="only this layer")
    parser.add_argument("--late", action="store_true", help="only those that were written last")
    parser.add_argument("--quick", action="store_true", help="a sample: one or two of each layer")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (2)")
    parser.add_argument("--no-baseline", action="store_true", help="don't run the checks unbroken first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all verdicts there")
    parser.add_argument("--list", action="store_true", help="list the mutants and end")
    parser.add_argument("--verbose", action="store_true", help="a line for each mutant")
    return parser.parse_args()


def _choose(arguments: argparse.Namespace) -> list[Mutant]:
    everything = load()
    chosen = sample(everything) if arguments.quick else everything
    return [
        m
        for m in chosen
        if (not arguments.only or any(part in m.name for part in arguments.only))
        and (not arguments.layer or m.layer in arguments.layer)
        and (m.late or not arguments.late)
    ]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
