"""The models of the gemm kernels and of the two paths on an Apple GPU, as claims."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from verification.claims import Claim, ToolMissing, declare
from verification.parts import Wanted, everything

from . import gemm_programs, models_gemm, models_paths, planted, tlc
from .checking import Row, check
from .claims import _version
from .models import Config
from .models_gemm import BARRIERS, CASES

_TLC: Final = "TLC"
_GEMM_CODE: Final = (
    "steelworks/kernels/metal/gemm/gemm.h",
    "steelworks/kernels/metal/gemm/vector.h",
    "steelworks/kernels/metal/gemm/index.h",
    "steelworks/kernels/metal/gemm.py",
)
_PATHS_CODE: Final = (
    "steelworks/devices/mps.py",
    "steelworks/devices/_mps_gate.py",
    "steelworks/paths/_choose.py",
    "steelworks/paths/_hazards.py",
)
_RECORDED: Final = (
    "the threads' programs are recorded from the kernels as metalsim runs them, to the last byte counted"
)
_ON_STAND_IN: Final = (
    "FakeMPS keeps the rules of torch.mps as they were read from torch's wheels; nothing of this ran on a Mac"
)
_REPLAYED: Final = (
    "every edge of the state graph is replayed on the real classes, the state compared after each step"
)
_GEMM: Final = "tla.steel-gemm"
_PATHS: Final = "tla.paths"


def _some(configs: Sequence[Config], quick: bool) -> list[Config]:
    return [c for c in configs if c.quick or not quick]


def _safe(quick: bool = False) -> list[Config]:
    return [c for c in _some(models_paths.HOLDING, quick) if not c.properties]


def _live(quick: bool = False) -> list[Config]:
    return [c for c in _some(models_paths.HOLDING, quick) if c.properties]


def _gemm(quick: bool = False) -> list[Config]:
    return _some(models_gemm.HOLDING, quick)


def _names(configs: Sequence[Config]) -> str:
    return ", ".join(c.name for c in configs)


def _states(configs: Sequence[Config]) -> str:
    return _counted(sum(c.states or 0 for c in configs), len(configs))


def _counted(states: int, configurations: int) -> str:
    return f"{states:,} states in {configurations} configuration" + ("" if configurations == 1 else "s")


def declared() -> tuple[Claim, ...]:
    """What is claimed of the kernels and the paths."""
    sites = sum(len(edits) for edits in BARRIERS.values())
    return (
        declare(
            _GEMM,
            "gemm kernels share no mutable state between threadgroups, have no conflict within one, write each result "
            "once, and all threads come to each barrier (I6)",
            tool=_TLC,
            bound=f"all pairs of threads and of threadgroups in {_names(_gemm())}; sizes to 50 x 25",
            binding=_RECORDED,
            code=_GEMM_CODE,
            assumes="what a kernel touches does not depend on the values of its operands",
            counted=_states(_gemm()),
        ),
        declare(
            f"{_GEMM}.barriers",
            "without any one barrier there is a counterexample, and a barrier left out of the model is one left out of "
            "the kernel",
            tool=_TLC,
            bound=f"{sites} barriers in {len(BARRIERS)} kernels",
            binding="the kernel's source is compiled without the barrier, and recorded again",
            code=_GEMM_CODE[:2],
            assumes="nothing",
            counted=f"{len(models_gemm.FAILING)} configurations",
        ),
        declare(
            f"{_GEMM}.planted",
            "bugs planted in the kernels and index headers violate the property that is named for them",
            tool=_TLC,
            bound="one bug at a time",
            binding="the bug is planted in a copy of the kernel's source, whose text it must fit",
            code=(*_GEMM_CODE[:3], "tests/verification/planted_gemm.toml"),
            in_quick=False,
            assumes="nothing",
            counted=f"{len(models_gemm.bugs())} of {len(models_gemm.bugs())} bugs noticed",
        ),
        declare(
            _PATHS,
            "a Steel call is never blocked by a vendor call, vendor calls exclude each other, nobody waits for itself "
            "or for another's work on the GPU, while operators get Steel kernels one at a time; the rules of MPS hold",
            tool=_TLC,
            bound="2-4 threads, 1-3 operators, streams or one owner",
            binding=f"its graphs are replayed ({_PATHS}.replay)",
            code=_PATHS_CODE,
            assumes="vendor calls outside the device's blocks come through the selector (steelworks.ops, install)",
            counted=_states(_safe()),
        ),
        declare(
            f"{_PATHS}.turns",
            "whoever waits for a turn or a queue gets it; once all operators have Steel kernels no call waits for "
            "a turn",
            tool=_TLC,
            bound="2 threads, 1 operator",
            binding=f"the same graphs are replayed ({_PATHS}.replay)",
            code=_PATHS_CODE,
            assumes="calls and blocks end; the lock is given to whoever keeps asking (strong fairness)",
            counted=_states(_live()),
        ),
        declare(
            f"{_PATHS}.replay",
            "the running device and selector take every step of the model, and are where it is after each",
            tool="TLC and a scheduler of threads",
            bound=f"graphs: {_names([c for c in _safe() if c.replayed])}",
            binding=_REPLAYED,
            code=(*_PATHS_CODE, "steelworks/testing/fake_mps.py"),
            assumes=_ON_STAND_IN,
        ),
        declare(
            f"{_PATHS}.must-fail",
            "the model can fail: with a rule dropped, TLC finds the violation that was expected",
            tool=_TLC,
            bound="one dropped rule at a time",
            binding="the rules are those of the code: the turn, its return, the owner, the queue of a stream",
            code=_PATHS_CODE,
            assumes="nothing",
            counted=f"{len(models_paths.FAILING)} configurations",
        ),
        declare(
            f"{_PATHS}.planted",
            "the replay notices bugs that are planted in the running device, gate and selector",
            tool="TLC and a scheduler of threads",
            bound="one bug at a time",
            binding="the bug is planted in the real function, whose text it must fit",
            code=(*_PATHS_CODE, "tests/verification/planted_paths.toml"),
            assumes=_ON_STAND_IN,
            counted=f"{len(planted.load(models_paths.BUGS))} of {len(planted.load(models_paths.BUGS))} bugs noticed",
        ),
    )


def claims(quick: bool, wanted: Wanted = everything) -> Iterator[Claim]:
    """Records, runs TLC, replays and plants; yields each claim as it ends.

    Raises:
        ToolMissing: There is no Java, or no TLC.
    """
    if missing := tlc.missing():
        raise ToolMissing(missing)
    version = _version()
    known = {claim.name: claim for claim in declared()}

    def end(name: str, rows: Sequence[Row], counted: str, bound: str = "") -> Claim:
        bad = [row for row in rows if not row.good]
        return replace(
            known[name],
            bound=bound or known[name].bound,
            tool=known[name].tool.replace(_TLC, version),
            counted=counted,
            passed=bool(rows) and not bad,
            seconds=sum(row.seconds for row in rows),
            why=f"{bad[0].name}: {bad[0].why}"[:2000] if bad else "" if rows else "nothing was run",
        )

    if wanted(_GEMM):
        rows = list(check(_gemm(quick), ()))
        bound = f"all pairs of threads and of threadgroups in {_names(_gemm(quick))}; sizes to 50 x 25"
        yield end(_GEMM, rows, _sum(rows), bound=bound)
    if wanted(f"{_GEMM}.barriers"):
        rows = [*_without_barriers(), *check((), _some(models_gemm.FAILING, quick))]
        yield end(f"{_GEMM}.barriers", rows, f"{sum(r.kind == 'mistake' for r in rows)} configurations")
    if wanted(f"{_GEMM}.planted"):
        rows = list(check((), models_gemm.bugs()))
        yield end(f"{_GEMM}.planted", rows, f"{sum(r.good for r in rows)} of {len(rows)} bugs noticed")
    if wanted(_PATHS) or wanted(f"{_PATHS}.replay"):
        rows = list(check(_safe(quick), ()))
        states = [row for row in rows if row.kind == "model"]
        replayed = [row for row in rows if row.kind == "replay"]
        edges, steps = (sum(row.counts.get(what, 0) for row in replayed) for what in ("edges", "steps"))
        bound = "2 threads, 1 operator, streams or one owner" if quick else known[_PATHS].bound
        yield end(_PATHS, states, _sum(states), bound=bound)
        graphs = f"graphs: {_names([row.config for row in replayed if row.config is not None])}"
        yield end(f"{_PATHS}.replay", replayed, f"{edges:,} edges, {steps:,} steps taken", bound=graphs)
    if wanted(f"{_PATHS}.turns"):
        rows = list(check(_live(quick), ()))
        yield end(f"{_PATHS}.turns", rows, _sum(rows))
    if wanted(f"{_PATHS}.must-fail"):
        rows = list(check((), _some(models_paths.FAILING, quick)))
        yield end(f"{_PATHS}.must-fail", rows, f"{sum(r.good for r in rows)} configurations")
    if wanted(f"{_PATHS}.planted"):
        rows = list(check((), (), planted.load(models_paths.BUGS)))
        yield end(f"{_PATHS}.planted", rows, f"{sum(r.good for r in rows)} of {len(rows)} bugs noticed")


def _sum(rows: Sequence[Row]) -> str:
    return _counted(sum(row.counts.get("states", 0) for row in rows), len(rows))


def _without_barriers() -> Iterator[Row]:
    """Each barrier taken out of the kernel: its programs are those of the model without that barrier."""
    for case, edits in BARRIERS.items():
        usual = gemm_programs.record(CASES[case])
        for site, edit in enumerate(edits):
            began = time.monotonic()
            same = gemm_programs.record(CASES[case], edit) == usual.without(sorted(usual.lines)[site])
            why = (
                "" if same else "the kernel without the barrier does something else than the model without it"
            )
            yield Row("kernel", f"{case}: barrier {site + 1}", same, time.monotonic() - began, why=why)
