"""The command: ``python -m verification.mutants.metal``."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from steelworks import metalsim
from steelworks.kernels.metal import _launch
from steelworks.metalsim._toolchain import find_compiler

from .cases import cases as all_cases
from .find import Header, Mutant, closure, find, read_headers
from .hints import HINTS, read_hints, write_hints
from .report import Result, family_of, read_survivors
from .run import (
    CAUGHT,
    PROBE,
    SURVIVED,
    UNREACHED,
    Plan,
    Verdict,
    compiled_elsewhere,
    compiled_quickly,
    cores,
    measure,
    run_mutants,
)

#: Of a sample, one guard of so many.
SAMPLE_OF: int = 16


def main() -> int:
    """The exit status: 0 if enough mutants are caught and each survivor has a reason."""
    arguments = _arguments()
    torch.set_num_threads(1)
    began = time.monotonic()
    headers = read_headers(_launch.ROOT)
    found = find(headers)
    headers[f"probe/{PROBE.name}"] = Header.parse(f"probe/{PROBE.name}", PROBE.read_text(encoding="utf-8"))
    survivors = read_survivors()
    chosen = _choose(found, arguments)
    if arguments.list:
        for mutant in chosen:
            _say(f"{mutant.id}  (line {mutant.line})  {mutant.text} -> {mutant.replacement}")
        _say(f"{len(chosen)} mutants")
        return 0
    try:
        find_compiler()
    except metalsim.errors.ToolchainError as problem:
        _say(f"evidence missing: no mutant of a Metal kernel was tried. {problem}")
        _say("verdict: FAILED; there is nothing to compile them with")
        return 1
    with compiled_elsewhere(arguments.cache), compiled_quickly():
        cases = [case for case in all_cases() if case.family in _families(headers, chosen)]
        baseline = measure(cases, arguments.jobs)
        if baseline.faults:
            for name, fault in baseline.faults.items():
                _say(f"without a mutant, {name}: {fault}")
            _say("verdict: FAILED; the cases must pass without a mutant")
            return 1
        _say(f"{len(cases)} cases pass without a mutant ({time.monotonic() - began:.0f} s)")
        verdicts: dict[Mutant, Verdict] = {}

        def done(mutant: Mutant, verdict: Verdict) -> None:
            verdicts[mutant] = verdict
            known = verdict.outcome in (SURVIVED, UNREACHED) and mutant.id in survivors
            if arguments.verbose or (verdict.outcome != CAUGHT and not known):
                _say(
                    f"[{len(verdicts)}/{len(chosen)}] {verdict.outcome} {mutant.id} ({mutant.text} -> "
                    f"{mutant.replacement}) {verdict.how} {verdict.case} {verdict.detail} ({verdict.seconds:.1f} s)"
                )

        few = frozenset[str]() if arguments.thorough else frozenset(survivors)
        hints = read_hints()
        plan = Plan(headers, cases, baseline, hints)
        run_mutants(chosen, headers, plan, arguments.jobs, few=few, done=done)
    ordered = {mutant: verdicts[mutant] for mutant in chosen}
    result = Result(ordered, survivors, len(chosen) == len(found), {m.id: m.text for m in found})
    seconds = time.monotonic() - began
    if arguments.json:
        arguments.json.write_text(json.dumps(result.data(seconds), indent=1) + "\n", encoding="utf-8")
    if arguments.write_hints:
        hints |= {mutant.id: verdict.case for mutant, verdict in verdicts.items() if verdict.case}
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


def _choose(found: list[Mutant], arguments: argparse.Namespace) -> list[Mutant]:
    chosen = [
        mutant
        for mutant in found
        if (not arguments.only or any(part in mutant.id for part in arguments.only))
        and (not arguments.family or family_of(mutant) in arguments.family)
    ]
    if not arguments.sample:
        return chosen
    guards = [m for m in chosen if not m.kind.startswith("barrier")][::SAMPLE_OF]
    return [m for m in chosen if m.kind.startswith("barrier") or m in guards]


def _families(headers: Mapping[str, Header], mutants: Sequence[Mutant]) -> set[str]:
    """Those whose headers contain, or include, one that is mutated."""
    files = {mutant.file for mutant in mutants}
    return {file.partition("/")[0] for file in headers if files.intersection(closure(headers, file))}


def _processor_seconds() -> float:
    """Of this process and all that it waited for, the compiler's too."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
