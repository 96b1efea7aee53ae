"""The checks of the Triton kernels on the calls that are asked for; each in a process of its own (__main__.py)."""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

#: Whether a call of that name is asked for.
Chosen = Callable[[str], bool]
_TOGETHER: Final = max(2, (os.cpu_count() or 2) // 2)
#: Launches that sentryward does not decide in time.
SLOW: Final = Path(__file__).with_name("slow.txt")
#: Why sentryward may be unable to decide, by what it says; anything else is wrong.
UNDECIDED: Final = {
    "wgmma": "products by warpgroups (wgmma), which sentryward does not know",
    "control_predicate_not_static": "branches on data",
    "timeout": "more time than it is given",
    "memory_budget_exceeded": "more memory than it is given",
    "alike": "stores by several threads to one place, which were not shown to be of one value",
    "address": "addresses that rest on data",
    "cp.async wait count": "counts of asynchronous copies on a path that rests on data",
}


@dataclass
class Found:
    """What a check found.

    Attributes:
        wrong: What is wrong, in words.
        counts: What was done.
        kernels: Which ran.
        undecided: Launches that sentryward could not decide, by the reason: kernel and call.
    """

    wrong: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    kernels: list[str] = field(default_factory=list)
    undecided: dict[str, list[str]] = field(default_factory=dict)


def bounds(chosen: Chosen) -> Found:
    """Runs the calls in Triton's interpreter; every access is checked."""
    import torch

    from . import bounds as check
    from . import calls

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # NumPy's, of numbers that do not matter
    asked = [call for call in (*calls.calls(), *calls.edges()) if chosen(call.name)]
    with check.checking() as checker:
        wrong = check.run(asked, checker)
    counts = {
        "calls": len(asked), "launches": checker.launches, "programs": checker.programs, "accesses": checker.accesses,
    }  # fmt: skip
    return Found(wrong, counts, sorted(checker.kernels))


@functools.cache
def _recorded(chosen: Chosen) -> tuple[list, list[str]]:  # type: ignore[type-arg]
    import torch

    from . import calls, record

    torch.set_num_threads(1)
    recorder, names = record.Recorder(), list[str]()
    with recorder.during():
        for call in calls.calls():
            if chosen(call.name):
                recorder.begin_call()
                call.run(calls.Make("cuda", recorder.unseen, recorder.begin_call))
                names += [call.name] * (len(recorder.events) - len(names))
    return recorder.events, names


_PTX: Final = dict[tuple[str, object], Any]()


def _compiled(event: Any) -> Any:
    """The PTX of a launch's variant; compiled once in this process."""
    from .compile import to_ptx

    if event.key not in _PTX:
        _PTX[event.key] = to_ptx(event)
    return _PTX[event.key]


def _variants(chosen: Chosen) -> dict:  # type: ignore[type-arg]
    """Of each variant of a kernel the first launch, and the call that made it."""
    from .record import Launched

    events, names = _recorded(chosen)
    first = dict[tuple[str, object], tuple[Launched, str]]()
    for event, name in zip(events, names, strict=True):
        if isinstance(event, Launched):
            first.setdefault(event.key, (event, name))
    return first


def early(chosen: Chosen) -> Found:
    """Compiles what the calls launch, and looks at what starts early."""
    from . import early as check
    from .compile import no_assembler
    from .record import Launched

    events, _ = _recorded(chosen)
    before, made = {}, set[tuple[str, object]]()
    with no_assembler():
        for place, event in enumerate(events):
            if isinstance(event, Launched):
                made.add(event.key)
                before[place] = check.before_wait(event, _compiled(event).ptx)
    wrong = check.check(events, before)
    counts = {
        "launches": len(before), "variants": len(made), "early": sum(bool(b.reads) for b in before.values()),
    }  # fmt: skip
    return Found(list(dict.fromkeys(wrong)), counts, sorted({name for name, _ in made}))


def races(chosen: Chosen) -> Found:
    """Compiles what the calls launch, and has sentryward look at one launch of each variant, but for the slow."""
    from . import calls
    from . import races as check
    from .compile import Compiled, no_assembler
    from .ptx import without_copies
    from .record import Launched

    check.version()
    first = _variants(chosen)
    found = Found(kernels=sorted({event.name for event, _ in first.values()}))
    counts = {"variants": len(first), "free": 0, "free without copies": 0, "undecided": 0}
    slow = slow_launches()
    launched = {f"{event.name} in {name}" for event, name in first.values()}
    known = {call.name: chosen(call.name) for call in calls.calls()}
    found.wrong += [
        f"{SLOW.name} names {one}, which nothing launches"
        for one in sorted(slow - launched)
        if known.get(
            one.partition(" in ")[2], True
        )  # a call that is there, but not asked for, is another matter
    ]

    def one(event: Launched, compiled: Compiled, label: str) -> tuple[str, str]:
        if "wgmma" in compiled.ptx:
            return "undecided", "wgmma"
        if label in slow:
            return "undecided", "timeout"
        verdict = check.check(event, compiled)
        how = "free"
        if verdict.flagged:
            alone, copies = without_copies(compiled.ptx, compiled.threads)
            if copies:
                verdict = check.check(event, Compiled(alone, compiled.shared, compiled.threads))
                how = "free without copies"
        if verdict.free:
            return how, ""
        why = f"{verdict.result} {verdict.why}"
        if verdict.result == "potential_race" and verdict.alike:
            return "undecided", "alike"
        return ("wrong" if verdict.flagged else "undecided"), why

    with no_assembler(), ThreadPoolExecutor(_TOGETHER) as pool:
        # Compiled one after the other: Triton is not asked to compile in several threads.
        running = []
        for event, name in first.values():
            label = f"{event.name} in {name}"
            running.append((label, pool.submit(one, event, _compiled(event), label)))
        for label, future in running:
            result, why = future.result()
            reason = next((r for said, r in UNDECIDED.items() if said in why), "")
            if result == "wrong" or (result == "undecided" and not reason):
                found.wrong.append(f"{label}: {why}")
            else:
                counts[result] += 1
            if result == "undecided" and reason:
                found.undecided.setdefault(reason, []).append(label)
    found.counts = counts
    return found


def compiled(chosen: Chosen) -> dict[str, Found]:
    """What starts early, and races: the calls are recorded and compiled once for both."""
    return {"early": early(chosen), "races": races(chosen)}


def slow_launches(path: Path = SLOW) -> set[str]:
    """Launches that are not tried: kernel in call."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {line.partition("#")[0].strip() for line in lines} - {""}


def kernels_launched_by_nobody(found: Iterable[str]) -> list[str]:
    """Kernels in the sources that no call launches."""
    import steelworks.kernels.triton as package

    folder = Path(str(package.__file__)).parent
    defined = set[str]()
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        place = path.stem.removeprefix("_").removesuffix("_kernels")
        defined |= {
            f"{place}.{name}"
            for name in re.findall(r"^[A-Z_]+(?:: Final)? = Kernel\(\s*(\w+)", text, re.MULTILINE)
        }
    return sorted(defined - set(found))


def barriers(chosen: Chosen) -> Found:
    """Takes each barrier out of the PTX of what the calls launch, in turn; sentryward says what it makes of that."""
    from . import races as check
    from .compile import Compiled, no_assembler
    from .planted import without_barrier
    from .ptx import without_copies
    from .record import Launched

    check.version()
    first = _variants(chosen)
    found = Found(counts={"barriers": 0, "flagged": 0, "not needed": 0, "undecided": 0})

    def one(event: Launched, compiled: Compiled, ptx: str) -> str:
        verdict = check.check(event, Compiled(ptx, compiled.shared, compiled.threads))
        return "flagged" if verdict.flagged else "not needed" if verdict.free else "undecided"

    with no_assembler(), ThreadPoolExecutor(_TOGETHER) as pool:
        running = []
        for event, name in first.values():
            compiled = _compiled(event)
            alone, _ = without_copies(compiled.ptx, compiled.threads)
            mutants = without_barrier(alone)
            running += [
                (f"{event.name} in {name}, barrier {n}", pool.submit(one, event, compiled, m))
                for n, m in enumerate(mutants, 1)
            ]
        for label, future in running:
            result = future.result()
            found.counts["barriers"] += 1
            found.counts[result] += 1
            if result != "flagged":
                found.undecided.setdefault(result, []).append(label)
    return found


CHECKS: Final[dict[str, Callable[[Chosen], Found | dict[str, Found]]]] = {
    "barriers": barriers,
    "bounds": bounds,
    "compiled": compiled,
    "early": early,
    "races": races,
}
