"""All that is checked: the scenes with and without the guard, what happened in them, and planted mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from . import planted
from .build import Workshop, shipped
from .follow import Followed, follow
from .run import CLEAN, CORRUPT, CRASH, RACE, Event, Outcome, run

#: How each scene must end without the guard: in a plain build, and under ThreadSanitizer.
UNGUARDED: Final = {
    "destroy": CORRUPT,
    "makes": CORRUPT,
    "stale": CRASH,
    "twice": CRASH,
    "freed": CRASH,
    "older": CRASH,
}
REPORTED: Final = ("each", "destroy", "makes", "ends", "stale", "freed", "waits", "work")
#: Calls that the guard must drop; it drops none elsewhere.
DROPPED: Final = {"stale": 1, "twice": 1, "freed": 1, "older": 1}
GUARDED: Final = (
    *UNGUARDED, "each", "ends", "nested", "throws", "waits", "again", "forks", "forgets", "work"
)  # fmt: skip
#: Those whose steps are followed in the model; "forgets" is the long one.
FOLLOWED: Final = ("destroy", "makes", "ends", "stale", "twice", "freed", "older", "nested", "waits", "work")
LONG: Final = ("forgets",)
#: Methods, one of each kind, that the quick set leaves out.
_QUICK_ROWS: Final = ("compute", "end", "gone", "threads", "fill")


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: what.
        good: whether it is as it must be.
        shown: how it is.
        seconds: wall clock.
    """

    name: str
    good: bool
    shown: str
    seconds: float


class Stage:
    """Runs scenes of the guard as it is shipped, each once."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self.guard = shipped()
        self._outcomes: dict[tuple[str, str, bool], Outcome] = {}

    def run(self, scene: str, guarded: bool, kind: str = "plain") -> Outcome:
        """The outcome of a scene."""
        key = (scene, kind, guarded)
        if key not in self._outcomes:
            program = self.shop.program(self.guard, kind).result()
            self._outcomes[key] = run(program, scene, guarded)
        return self._outcomes[key]

    def arguments(self) -> str:
        """What reaches the driver's methods without the guard."""
        return planted.arrived(self.run("arguments", False))


def unguarded(stage: Stage) -> Iterator[Check]:
    """Without the guard: every scene fails, and in the way it must."""
    for scene, ends in UNGUARDED.items():
        outcome = stage.run(scene, False)
        yield Check(f"{scene}, no guard", outcome.ended == ends, _shown(outcome), outcome.seconds)
    for scene in REPORTED:
        outcome = stage.run(scene, False, "tsan")
        yield Check(f"{scene}, no guard, TSan", outcome.ended == RACE, _shown(outcome), outcome.seconds)


def guarded(stage: Stage) -> Iterator[Check]:
    """With the guard: every scene is clean, in both builds; nothing is dropped but what must be."""
    for kind in ("plain", "tsan"):
        for scene in GUARDED:
            if kind == "tsan" and scene == "forks":
                continue  # ThreadSanitizer does not allow a fork beside other threads
            outcome = stage.run(scene, True, kind)
            good = outcome.ended == CLEAN and outcome.refused == DROPPED.get(scene, 0)
            good = good and (scene != "each" or outcome.open == planted.OPEN_AFTER_EACH)
            name = f"{scene}, guard" + (", TSan" if kind == "tsan" else "")
            yield Check(name, good, _shown(outcome), outcome.seconds)


def plumbing(stage: Stage) -> Iterator[Check]:
    """Arguments and results pass through the guard; it can be taken out; no method of it goes unused."""
    outcome = stage.run("arguments", True)
    good = outcome.ended == CLEAN and planted.arrived(outcome) == stage.arguments() != ""
    yield Check("arguments arrive", good, _shown(outcome), outcome.seconds)
    outcome = stage.run("uninstall", False)
    yield Check("uninstalling", outcome.ended == CLEAN, _shown(outcome), outcome.seconds)
    outcome = stage.run("list", False)
    listed = {line.split(" of ")[0] for line in outcome.said.splitlines()}
    replaced = {row.selector for row in planted.methods(stage.guard)}
    differ = ", ".join(sorted(listed ^ replaced))
    yield Check("each method has a case", not differ, differ or f"{len(replaced)} methods", outcome.seconds)


def traces(stage: Stage, scenes: tuple[str, ...]) -> tuple[Followed, list[tuple[Event, ...]]]:
    """What happens under the guard is a behaviour of the model."""
    events = [stage.run(scene, True).events for scene in scenes]
    return follow(events), events


def unguarded_traces(stage: Stage) -> dict[str, tuple[Followed, Followed]]:
    """What happens without the guard, by scene: followed in the model of the guard, and in that without it."""
    wanted = (("destroy", "NoUseAfterDestroy"), ("makes", "Books"))
    with ThreadPoolExecutor(2) as pool:
        begun = {}
        for scene, invariant in wanted:
            events = [stage.run(scene, False).events]
            within = pool.submit(follow, events)
            begun[scene] = within, pool.submit(follow, events, bug="no guard", invariants=(invariant,))
        return {scene: (within.result(), without.result()) for scene, (within, without) in begun.items()}


def mistakes(stage: Stage, quick: bool) -> Iterator[Check]:
    """Plants the listed mistakes, and leaves out methods: all, or some for the quick set."""
    listed = planted.mistakes()
    rows = [row for row in planted.methods(stage.guard) if not quick or row.name in _QUICK_ROWS]
    chosen = listed[::3] if quick else listed
    # The programs are built two at a time while scenes of earlier ones run.
    for mistake in chosen:
        stage.shop.program(planted.planted(stage.guard, mistake), mistake.kind)
    for mistake in chosen:
        verdict = planted.notice(stage.shop, stage.guard, mistake, stage.arguments())
        yield Check(verdict.name, verdict.noticed, verdict.shown, verdict.seconds)
    for row in rows:
        planted.build_left_out(stage.shop, stage.guard, row)
    for row in rows:
        verdict = planted.notice_left_out(stage.shop, stage.guard, row)
        yield Check(verdict.name, verdict.noticed, verdict.shown, verdict.seconds)


def traces_why(followed: Followed, without: dict[str, tuple[Followed, Followed]]) -> str:
    """What is wrong with what TLC found in traces, "" for nothing."""
    if followed.wrong:
        return followed.wrong
    for scene, (held, missing) in without.items():
        if not held.wrong:
            return f"{scene}: what happens without the guard is said to be a behaviour of the model with it"
        if missing.wrong or not missing.violated:
            return f"{scene}: without the guard: {missing.wrong or 'no invariant of the model is violated'}"
    return ""


def _shown(outcome: Outcome) -> str:
    return outcome.ended if outcome.ended != "wrong" else f"wrong: {outcome.said[-300:]}"
