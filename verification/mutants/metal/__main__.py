"""The command: ``python -m verification.mutants.metal``."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import torch

from steelworks import metalsim
from steelworks.metalsim._toolchain import find_compiler

from .find import Mutant
from .hints import HINTS, read_hints, write_hints
from .report import family_of
from .run import CAUGHT, SURVIVED, UNREACHED, Verdict, cores
from .trial import SAMPLE_OF, FaultyCases, attempt, choose


def main() -> int:
    """The exit status: 0 if enough mutants are caught and each survivor has a reason."""
    arguments = _arguments()
    torch.set_num_threads(1)
    began = time.monotonic()
    choice = choose(
        lambda mutant: (
            (not arguments.only or any(part in mutant.id for part in arguments.only))
            and (not arguments.family or family_of(mutant) in arguments.family)
        ),
        sample=arguments.sample,
    )
    if arguments.list:
        for mutant in choice.chosen:
            _say(f"{mutant.id}  (line {mutant.line})  {mutant.text} -> {mutant.replacement}")
        _say(f"{len(choice.chosen)} mutants")
        return 0
    try:
        find_compiler()
    except metalsim.errors.ToolchainError as problem:
        _say(f"evidence missing: no mutant of a Metal kernel was tried. {problem}")
        _say("verdict: FAILED; there is nothing to compile them with")
        return 1
    ended = 0

    def done(mutant: Mutant, verdict: Verdict) -> None:
        nonlocal ended
        ended += 1
        known = verdict.outcome in (SURVIVED, UNREACHED) and mutant.id in choice.survivors
        if arguments.verbose or (verdict.outcome != CAUGHT and not known):
            _say(
                f"[{ended}/{len(choice.chosen)}] {verdict.outcome} {mutant.id} ({mutant.text} -> "
                f"{mutant.replacement}) {verdict.how} {verdict.case} {verdict.detail} ({verdict.seconds:.1f} s)"
            )

    try:
        result = attempt(
            choice,
            arguments.jobs,
            thorough=arguments.thorough,
            cache=arguments.cache,
            begun=lambda cases, seconds: _say(f"{cases} cases pass without a mutant ({seconds:.0f} s)"),
            done=done,
        )
    except FaultyCases as problem:
        _say(str(problem))
        _say("verdict: FAILED; the cases must pass without a mutant")
        return 1
    seconds = time.monotonic() - began
    if arguments.json:
        arguments.json.write_text(json.dumps(result.data(seconds), indent=1) + "\n", encoding="utf-8")
    if arguments.write_hints:
        hints = read_hints() | {m.id: v.case for m, v in result.verdicts.items() if v.case}
        write_hints({name: case for name, case in hints.items() if name in result.ids})
    _say(result.text(seconds))
    _say(f"{seconds:.0f} s with {arguments.jobs} at a time; {_processor_seconds():.0f} s of processor time")
    _say("verdict: passed" if result.passed else f"verdict: FAILED; {'; '.join(result.faults)}")
    return 0 if result.passed else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m verification.mutants.metal",
        description="Removes barriers and bounds guards of the Metal kernels, one at a time, and demands that the "
        "checks notice.",
    )
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="part of a mutant's id")
    parser.add_argument("--family", action="append", default=[], help="a folder of the kernels, or 'shared'")
    parser.add_argument(
        "--sample",
        action="store_true",
        help=f"all barriers, and of the guards one in {SAMPLE_OF}: for a minute",
    )
    parser.add_argument("--thorough", action="store_true", help="try listed survivors on all cases too")
    parser.add_argument(
        "--jobs", type=int, default=cores(), help="processes at a time (as many as there are cores)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all verdicts there")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep compiled kernels there for the next run"
    )
    parser.add_argument(
        "--write-hints",
        action="store_true",
        help=f"note in {HINTS.name} which case caught each mutant: the next run begins with it",
    )
    parser.add_argument("--list", action="store_true", help="list the mutants and end")
    parser.add_argument("--verbose", action="store_true", help="a line for each mutant")
    return parser.parse_args()


def _processor_seconds() -> float:
    """Of this process and all that it waited for, the compiler's too."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
