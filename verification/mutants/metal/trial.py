"""One trial: which mutants there are, which of them are run, and what became of those."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steelworks.kernels.metal import _launch

from .cases import cases as all_cases
from .find import Header, Mutant, closure, find, read_headers
from .hints import read_hints
from .report import Result, Survivor, read_survivors
from .run import PROBE, Plan, Verdict, compiled_elsewhere, compiled_quickly, measure, run_mutants

#: Of a sample, one guard of so many.
SAMPLE_OF: Final = 16


class FaultyCases(RuntimeError):
    """Cases are wrong without a mutant, so nothing follows from what they say of one; the message names them."""


@dataclass(frozen=True)
class Choice:
    """Mutants to try.

    Attributes:
        found: All that there are.
        chosen: Those that are tried.
        headers: The text that they change.
        survivors: The list of those that nothing notices.
    """

    found: tuple[Mutant, ...]
    chosen: tuple[Mutant, ...]
    headers: Mapping[str, Header]
    survivors: Mapping[str, Survivor]


def choose(wanted: Callable[[Mutant], bool] = lambda mutant: True, *, sample: bool = False) -> Choice:
    """The mutants that ``wanted`` holds of; of those, in a sample, all barriers and one guard in SAMPLE_OF."""
    headers = read_headers(_launch.ROOT)
    found = find(headers)
    headers[f"probe/{PROBE.name}"] = Header.parse(f"probe/{PROBE.name}", PROBE.read_text(encoding="utf-8"))
    chosen = [mutant for mutant in found if wanted(mutant)]
    if sample:
        guards = [m for m in chosen if not m.kind.startswith("barrier")][::SAMPLE_OF]
        chosen = [m for m in chosen if m.kind.startswith("barrier") or m in guards]
    return Choice(tuple(found), tuple(chosen), headers, read_survivors())


def attempt(
    choice: Choice,
    jobs: int,
    *,
    thorough: bool = False,
    cache: Path | None = None,
    begun: Callable[[int, float], None] = lambda cases, seconds: None,
    done: Callable[[Mutant, Verdict], None] = lambda mutant, verdict: None,
) -> Result:
    """Tries mutants, ``jobs`` at a time.

    Args:
        choice: Which.
        jobs: Processes at a time.
        thorough: Try listed survivors on all cases too.
        cache: Where to keep compiled kernels; None for a folder that is deleted.
        begun: Told how many cases pass without a mutant, and after how many seconds.
        done: Told each verdict.

    Raises:
        FaultyCases: A case is wrong without a mutant.
    """
    began = time.monotonic()
    verdicts: dict[Mutant, Verdict] = {}

    def collect(mutant: Mutant, verdict: Verdict) -> None:
        verdicts[mutant] = verdict
        done(mutant, verdict)

    with compiled_elsewhere(cache), compiled_quickly():
        families = _families(choice.headers, choice.chosen)
        cases = [case for case in all_cases() if case.family in families]
        baseline = measure(cases, jobs)
        if baseline.faults:
            raise FaultyCases(
                "\n".join(f"without a mutant, {name}: {f}" for name, f in baseline.faults.items())
            )
        begun(len(cases), time.monotonic() - began)
        few = frozenset[str]() if thorough else frozenset(choice.survivors)
        plan = Plan(choice.headers, cases, baseline, read_hints())
        run_mutants(choice.chosen, choice.headers, plan, jobs, few=few, done=collect)
    ordered = {mutant: verdicts[mutant] for mutant in choice.chosen}
    complete = len(choice.chosen) == len(choice.found)
    return Result(ordered, choice.survivors, complete, {m.id: m.text for m in choice.found})


def _families(headers: Mapping[str, Header], mutants: Sequence[Mutant]) -> set[str]:
    """Those whose headers contain, or include, one that is mutated."""
    files = {mutant.file for mutant in mutants}
    return {file.partition("/")[0] for file in headers if files.intersection(closure(headers, file))}
