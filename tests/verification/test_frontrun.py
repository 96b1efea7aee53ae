"""Small scenes of the pool and the queue, explored bytecode by bytecode."""

from __future__ import annotations

import pytest

from verification.frontrun import claims

if problem := claims.missing():
    pytest.skip(problem, allow_module_level=True)


@pytest.mark.evidence
@pytest.mark.parametrize("scene", claims.EVERY)
def test_every_schedule_of_a_scene_ends_well(scene: str) -> None:
    found = claims.explored(scene)
    assert found["holds"] and found["ended"], found["why"]
    assert found["schedules"] >= 2


@pytest.mark.parametrize("bug", ["looks-before-it-returns", "who-gives-up-ends-a-request-again"])
def test_a_planted_bug_is_noticed(bug: str) -> None:
    assert claims.explored(claims.PLANTED[bug], bug)["holds"] is False


def test_a_process_that_fails_is_no_evidence() -> None:
    found = claims.explored("no-such-scene")
    assert found["holds"] is None and "no-such-scene" in found["why"]
