"""Runs mutants: each in a child process of its own, on the cases whose kernels contain it, until something notices."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from _cases import poisoned  # tests/kernels

from steelworks import metalsim
from steelworks.kernels.metal import _launch
from steelworks.kernels.metal._launch import Variant
from steelworks.metalsim import _toolchain

from .cases import Case
from .find import Header, Mutant, reached

#: schedule, order, seed.
SCHEDULES: Final = (("run_ahead", "shuffled", 7), ("ring", "forward", 0), ("run_ahead", "reverse", 0))
#: A case "does not end" after so many times the processor time that it takes without a mutant, ...
PATIENCE: Final = 20
#: ... and after so many seconds at least.
CPU_SECONDS: Final = 3
#: Of a clock, after which a child that does not even use its processor is ended.
WALL_SECONDS: Final = 300
#: Cases that a mutant on the list of survivors is tried on.
FEW: Final = 3

#: In a child: where to say which case is next, should it be the last one.
_telling: Final[list[Connection]] = []

#: Flags of the compiler, and what they are replaced by.
_QUICK: Final = {"-O1": "-O0", "-O2": "-O0"}

#: A kernel beside those of the families.
PROBE: Final = Path(__file__).with_name("probe.h")
CAUGHT, SURVIVED, INVALID, UNREACHED = "caught", "survived", "not a mutant", "not reached"


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Attributes:
        outcome: CAUGHT, SURVIVED, INVALID (it does not compile) or UNREACHED (in no kernel of any case).
        how: A finding's kind, "wrong value", "wrong counter", "crash", "does not end", or an error's type.
        case: The case that noticed.
        detail: One line more: under which schedule, and what was said.
        tried: Runs of cases.
        seconds: By the clock.
    """

    outcome: str
    how: str = ""
    case: str = ""
    detail: str = ""
    tried: int = 0
    seconds: float = 0.0


@dataclass
class Baseline:
    """The cases without a mutant.

    Attributes:
        variants: What each case launches.
        seconds: How long it takes once it is compiled.
        compiling: How long each kernel takes to compile.
        faults: Cases that are wrong even so.
    """

    variants: dict[str, tuple[Variant, ...]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    compiling: dict[Variant, float] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


@contextmanager
def compiled_elsewhere(directory: Path | None) -> Iterator[None]:
    """Compiled kernels go to a directory of their own, by default one that is deleted; the runtime is the usual one."""
    before = os.environ.get("STEELWORKS_CACHE")
    _toolchain.runtime_library()
    runtimes = _toolchain.cache_directory() / "runtime"
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        os.environ["STEELWORKS_CACHE"] = str(directory or folder)
        own = _toolchain.cache_directory()
        own.mkdir(parents=True, exist_ok=True)
        if not (own / runtimes.name).exists():
            (own / runtimes.name).symlink_to(runtimes, target_is_directory=True)
        try:
            yield
        finally:
            if before is None:
                del os.environ["STEELWORKS_CACHE"]
            else:
                os.environ["STEELWORKS_CACHE"] = before


@contextmanager
def own_headers() -> Iterator[Path]:
    """From here on, this process launches kernels from a copy of the headers, with the probe beside them."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = Path(folder).resolve() / "metal"
        shutil.copytree(_launch.ROOT, root, ignore=shutil.ignore_patterns("*.py", "__pycache__", ".*"))
        (root / "probe").mkdir()
        shutil.copy(PROBE, root / "probe" / PROBE.name)
        _launch.ROOT, _launch.INCLUDE = root, root / "include"  # type: ignore[misc]
        yield root


def notice(case: Case) -> Verdict | None:
    """Runs a case under every schedule; what is wrong with it, or None."""
    for schedule, order, seed in SCHEDULES:
        where = f"({schedule}, {order})"
        with metalsim.options(check=True, schedule=schedule, order=order, seed=seed) as session:
            with poisoned(session):
                result = case.run()
        if session.findings:
            finding = session.findings[0]
            return Verdict(CAUGHT, finding.kind, case.id, f"{where} {' / '.join(str(finding).splitlines())}")
        try:
            case.verify(result)
        except AssertionError as problem:
            return Verdict(CAUGHT, "wrong value", case.id, f"{where} {str(problem).splitlines()[0]}")
        for name, right in case.counters.items():
            count = getattr(session.counters, name)
            if count != right:
                return Verdict(
                    CAUGHT, "wrong counter", case.id, f"{where} {name}: {count} instead of {right}"
                )
    return None


def cores() -> int:
    """Of this machine, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def compiled_quickly() -> Iterator[None]:
    """Kernels are compiled with all checks and without optimisation, which takes half the time."""
    flags = _toolchain.mode_flags

    def quick(check: bool, *, plain_vectors: bool = False) -> tuple[str, ...]:
        return tuple(_QUICK.get(flag, flag) for flag in flags(check, plain_vectors=plain_vectors))

    with patch.object(_toolchain, "mode_flags", quick):
        yield


# --- without a mutant -----------------------------------------------------------------------------------------


def measure(cases: Sequence[Case], jobs: int) -> Baseline:
    """Runs all cases as they are, families side by side; compiles for later what does not change."""
    by_family: dict[str, list[Case]] = {}
    for case in cases:
        by_family.setdefault(case.family, []).append(case)
    baseline = Baseline()
    with metalsim.options(check=True):
        # The runtime and the precompiled header are made by one process, not by each.
        run_children([("", _warm_up)], 1, lambda name, answer: None)

    def collect(family: str, answer: Any) -> None:
        if isinstance(answer, Baseline):
            baseline.variants |= answer.variants
            baseline.seconds |= answer.seconds
            baseline.compiling |= answer.compiling
            baseline.faults |= answer.faults
        else:
            baseline.faults[family] = f"{answer.how}: {answer.detail}"

    work = [(family, lambda chosen=chosen: _measure_family(chosen)) for family, chosen in by_family.items()]
    run_children(work, jobs, collect)
    return baseline


def _warm_up() -> None:
    source = "kernel void nothing(device float* x [[buffer(0)]]) { x[0] = 0.0f; }"
    with metalsim.options(check=True):
        metalsim.compile_shader(source).nothing(torch.zeros(1), threads=1)


def _measure_family(cases: Sequence[Case]) -> Baseline:
    baseline = Baseline()
    launched: list[Variant] = []
    get = _launch._KERNELS.get

    def recorded(key: tuple[str, Variant]) -> Any:
        if key[1] not in launched:
            launched.append(key[1])
        began = time.perf_counter()
        kernel = get(key)
        baseline.compiling.setdefault(key[1], time.perf_counter() - began)
        return kernel

    _launch._KERNELS.get = recorded  # type: ignore[method-assign]
    with own_headers():
        _run_all(cases, baseline, launched)
    return baseline


def _run_all(cases: Sequence[Case], baseline: Baseline, launched: list[Variant]) -> None:
    for case in cases:
        launched.clear()
        problem = notice(case)
        if problem is not None:
            baseline.faults[case.id] = f"{problem.how}: {problem.detail}"
        baseline.variants[case.id] = tuple(launched)
        began = time.perf_counter()
        if problem is None:
            notice(case)
        baseline.seconds[case.id] = time.perf_counter() - began


# --- with one -------------------------------------------------------------------------------------------------


class Plan:
    """Which cases each mutant is tried on: the one that caught it last, then the quickest first.

    Args:
        headers: All of them.
        cases: What there is to try.
        baseline: What they launch, and how long they take.
        hints: By the mutant's id, the case that caught it last.
    """

    def __init__(
        self,
        headers: Mapping[str, Header],
        cases: Sequence[Case],
        baseline: Baseline,
        hints: Mapping[str, str] | None = None,
    ) -> None:
        def cost(case: Case) -> float:
            compiling = sum(baseline.compiling[variant] for variant in baseline.variants[case.id])
            return compiling + baseline.seconds[case.id]

        self._hints = hints or {}
        self._seconds = baseline.seconds
        self._cases = sorted(cases, key=cost)
        self._variants = baseline.variants
        reaches = {
            variant: reached(headers, variant.header_path, variant.kernel)
            for variants in baseline.variants.values()
            for variant in variants
        }
        self._reaches = {
            case.id: frozenset[tuple[str, str]]().union(*(reaches[v] for v in baseline.variants[case.id]))
            for case in cases
        }

    def cases(self, mutant: Mutant) -> list[Case]:
        """Those that launch a kernel which contains the mutant."""
        place = (mutant.file, mutant.function)
        found = [case for case in self._cases if place in self._reaches[case.id]]
        # One case of each kernel first: they differ more than two cases of one kernel do.
        first: dict[tuple[Variant, ...], Case] = {}
        for case in found:
            first.setdefault(self._variants[case.id], case)
        order = [*first.values(), *(case for case in found if case not in first.values())]
        return sorted(order, key=lambda case: case.id != self._hints.get(mutant.id))

    def allowed(self, case: Case) -> float:
        """Seconds of processor time after which a case does not end."""
        return max(CPU_SECONDS, PATIENCE * self._seconds[case.id])

    def variants(self, cases: Sequence[Case]) -> list[Variant]:
        """All that these cases launch."""
        return list(dict.fromkeys(v for case in cases for v in self._variants[case.id]))


def try_mutant(mutant: Mutant, source: str, cases: Sequence[Case], plan: Plan) -> Verdict:
    """In a process of its own: puts the mutant into a copy of the headers, and runs the cases until one notices."""
    began = time.perf_counter()
    with own_headers() as root:
        (root / mutant.file).write_text(mutant.applied(source), encoding="utf-8")
        verdict = _first_notice(cases, plan)
    return Verdict(
        verdict.outcome,
        verdict.how,
        verdict.case,
        verdict.detail,
        verdict.tried,
        time.perf_counter() - began,
    )


def _limit(seconds: float) -> None:
    """From now on this process may use so much processor time; then it gets SIGXCPU."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _first_notice(cases: Sequence[Case], plan: Plan) -> Verdict:
    for number, case in enumerate(cases):
        try:
            _limit(WALL_SECONDS)
            if number < 2:
                # What the first cases launch, then all the rest in one go: one by one takes several times as long.
                with metalsim.options(check=True):
                    _launch.prepare(*plan.variants(cases[:1] if number == 0 else cases))
            _limit(plan.allowed(case))
            for sender in _telling:
                sender.send(case.id)
            problem = notice(case)
        except metalsim.errors.MetalSyntaxError as error:
            return Verdict(INVALID, "does not compile", case.id, str(error).splitlines()[-1])
        except Exception as error:  # anything that a broken kernel makes the host say
            return Verdict(CAUGHT, type(error).__name__, case.id, str(error).splitlines()[0], number + 1)
        if problem is not None:
            return Verdict(CAUGHT, problem.how, problem.case, problem.detail, number + 1)
    return Verdict(SURVIVED, tried=len(cases))


def run_mutants(
    mutants: Sequence[Mutant],
    headers: Mapping[str, Header],
    plan: Plan,
    jobs: int,
    *,
    few: frozenset[str] = frozenset(),
    done: Callable[[Mutant, Verdict], None],
) -> None:
    """Runs mutants, ``jobs`` at a time; those named in ``few`` on few cases. ``done`` is called as each ends."""
    by_id = {mutant.id: mutant for mutant in mutants}
    work: list[tuple[str, Callable[[], Any]]] = []
    for mutant in mutants:
        cases = plan.cases(mutant)
        if not cases:
            done(mutant, Verdict(UNREACHED))
            continue
        if mutant.id in few:
            cases = cases[:FEW]
        source = headers[mutant.file].source
        work.append((mutant.id, lambda m=mutant, s=source, c=cases: try_mutant(m, s, c, plan)))  # type: ignore[misc]
    run_children(work, jobs, lambda name, answer: done(by_id[name], answer))


# --- children -------------------------------------------------------------------------------------------------


def run_children(
    work: Sequence[tuple[str, Callable[[], Any]]], jobs: int, collect: Callable[[str, Any], None]
) -> None:
    """Calls functions, each in a forked child; ``collect`` gets what each returned, or the Verdict of how it died."""
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(work))
    running: dict[Connection, tuple[str, Any, float]] = {}
    at: dict[str, str] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name, call = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=_child, args=(call, sender))
            child.start()
            sender.close()
            running[receiver] = (name, child, time.monotonic())
        for ready in wait(list(running), timeout=1.0):
            receiver = next(r for r in running if r is ready)
            name, child, began = running[receiver]
            try:
                answer = receiver.recv()
            except EOFError:
                answer = None
            if isinstance(answer, str):
                at[name] = answer
                continue
            del running[receiver]
            receiver.close()
            child.join()
            if answer is None:
                answer = _death(child.exitcode, at.get(name, ""), time.monotonic() - began)
            collect(name, answer)
        for receiver, (name, child, began) in list(running.items()):
            if time.monotonic() - began > WALL_SECONDS:
                child.kill()
                child.join()
                receiver.close()
                del running[receiver]
                collect(
                    name, Verdict(CAUGHT, "does not end", at.get(name, ""), seconds=time.monotonic() - began)
                )


def _death(status: int | None, case: str, seconds: float) -> Verdict:
    number = -(status or 0)
    name = signal.Signals(number).name if number > 0 else f"status {status}"
    if number == signal.SIGXCPU:
        return Verdict(CAUGHT, "does not end", case, seconds=seconds)
    return Verdict(CAUGHT, "crash", case, name, seconds=seconds)


def _child(call: Callable[[], Any], sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    _telling.append(sender)
    answer = call()
    sender.send(answer if answer is not None else Verdict(SURVIVED))
    sender.close()
