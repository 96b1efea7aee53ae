"""The race of the GPU driver, reproduced over a stand-in: what happens without the guard, with it, with half of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from steelworks.devices.driver_guard import SOURCE
from verification.claims import ToolMissing
from verification.driver_race import build, checks, claims, planted, run
from verification.driver_race.checks import Check, Stage
from verification.driver_race.follow import follow, steps
from verification.parts import ROOT
from verification.tla import tlc

MISTAKES = planted.mistakes()
#: Every third of them runs here, and some methods that are left out; the command runs all.
QUICK = MISTAKES[::3]
LEFT_OUT = ("computeCommandEncoder", "endEncoding", "dealloc", "fillBuffer:range:value:")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """The scenes, built; what is built for the mistakes is begun at once."""
    try:
        with build.workshop() as shop:
            made = Stage(shop)
            for mistake in QUICK:
                shop.program(planted.planted(made.guard, mistake), mistake.kind)
            for row in planted.methods(made.guard):
                if row.selector in LEFT_OUT:
                    planted.build_left_out(shop, made.guard, row)
            yield made
    except ToolMissing as missing:
        pytest.fail(f"evidence missing: the driver's race was not reproduced. {missing}")


def bad(some: Iterator[Check]) -> list[Check]:
    done = list(some)
    assert done
    return [one for one in done if not one.good]


@pytest.mark.evidence
def test_without_the_guard_every_scene_crashes_or_races(stage: Stage) -> None:
    assert bad(checks.unguarded(stage)) == []


@pytest.mark.evidence
def test_with_the_guard_every_scene_is_clean(stage: Stage) -> None:
    assert bad(checks.guarded(stage)) == []


@pytest.mark.evidence
def test_arguments_pass_through_the_guard_and_it_can_be_taken_out(stage: Stage) -> None:
    assert bad(checks.plumbing(stage)) == []


@pytest.mark.evidence
@pytest.mark.parametrize("mistake", QUICK, ids=lambda mistake: mistake.name)
def test_a_mistake_of_the_guard_is_noticed(mistake: planted.Mistake, stage: Stage) -> None:
    verdict = planted.notice(stage.shop, stage.guard, mistake, stage.arguments())
    assert verdict.noticed, verdict.shown


@pytest.mark.evidence
@pytest.mark.parametrize("selector", LEFT_OUT)
def test_a_method_that_is_left_out_is_noticed(selector: str, stage: Stage) -> None:
    (row,) = (row for row in planted.methods(stage.guard) if row.selector == selector)
    verdict = planted.notice_left_out(stage.shop, stage.guard, row)
    assert verdict.noticed, verdict.shown


def test_every_mistake_fits_the_guard_and_changes_it() -> None:
    guard = build.shipped()
    for mistake in MISTAKES:
        assert planted.planted(guard, mistake) != guard, mistake.name
    assert len(MISTAKES) >= 20
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)


def test_a_mistake_that_no_longer_fits_is_refused() -> None:
    mistake = replace(MISTAKES[0], edits=(("no such text", ""),))
    with pytest.raises(LookupError, match="stands 0 times in guard.m"):
        planted.planted(build.shipped(), mistake)


def test_what_is_checked_is_what_is_shipped() -> None:
    assert build.GUARD == SOURCE
    assert len(planted.methods(build.shipped())) > 30


@pytest.mark.evidence
def test_what_happens_is_a_behaviour_of_the_model_and_without_the_guard_of_the_broken_one(
    stage: Stage,
) -> None:
    if missing := tlc.missing():
        pytest.fail(f"evidence missing: no scene was followed. {missing}")
    followed, _ = checks.traces(stage, checks.FOLLOWED)
    assert followed.events > 500
    assert checks.traces_why(followed, checks.unguarded_traces(stage)) == ""


def test_a_trace_in_which_the_lock_is_taken_too_late_is_refused(stage: Stage) -> None:
    events = list(stage.run("destroy", True).events)
    names = [event.name for event in events]
    at = next(i for i, event in enumerate(events) if event.call == "encode" and event.name == "Lock")
    assert names[at + 1] == "Begin"
    events[at], events[at + 1] = events[at + 1], events[at]
    followed = follow([stage.run("nested", True).events, events])
    assert followed.wrong.startswith(f"event {at + 1} of trace 2 is not allowed")


def test_encoders_are_numbered_as_they_are_made() -> None:
    def event(name: str, call: str, at: str = "0x0") -> run.Event:
        return run.Event(name, 1, call, at, 0)

    made = [event("Send", "make"), event("Finish", "make", "0xa")]
    used = [event("Send", "encode", "0xa"), event("Forget", "end", "0xa")]
    assert [step[3] for step in steps([*made, *used, *made, *used])] == [1, 0, 1, 1, 2, 0, 2, 2]


def test_without_an_objective_c_runtime_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ToolMissing, match="apt install gobjc"):
        build.find()
    assert "apt install gobjc" in build.missing()


def test_the_command_shows_what_happens_in_a_scene() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "verification.driver_race", "--show", "destroy", "--no-guard"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert "thread 1: Begin (encode)\nthread 2: Send end of 1\nthread 2: Enter (end)\n" in done.stdout
    assert "destroy ended: corrupt" in done.stdout


def test_the_claims_are_declared_before_they_are_checked() -> None:
    declared = claims.declared()
    assert [claim.name for claim in declared][:3] == [
        "driver.model",
        "driver.model.ends",
        "driver.model.must-fail",
    ]
    for claim in declared:
        for code in claim.code:
            assert (ROOT / code).is_file(), code
