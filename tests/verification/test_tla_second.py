"""A second model checker on the TLA+ models: it agrees with TLC, and a disagreement is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from verification.tla import models, models_paths, plain, second, tlc
from verification.tla.models import Config

HOLDING = ("pool-error", "queue-core", "driver-waits-end", "paths-streams")
FAILING = ("StreamPool: lost wake-up", "BatchQueue: bisect loses a neighbour", "DriverRace: no guard")
CONFIGS = {c.name: c for c in (*models.HOLDING, *models_paths.HOLDING, *models.FAILING)}


@pytest.fixture(scope="module", autouse=True)
def tools() -> Iterator[None]:
    if missing := tlc.missing() or second.missing(install=True):
        pytest.fail(f"evidence missing: no model was checked a second time. {missing}")
    yield


def why(config: Config) -> str:
    [row] = second.agree([config])
    return row.why


@pytest.mark.parametrize("name", HOLDING)
def test_it_finds_as_many_states_as_tlc_and_no_violation(name: str) -> None:
    assert why(CONFIGS[name]) == ""


@pytest.mark.evidence
@pytest.mark.parametrize("name", FAILING)
def test_it_finds_the_same_invariant_violated(name: str) -> None:
    assert why(CONFIGS[name]) == ""


def test_a_wrong_count_is_noticed() -> None:
    assert why(replace(CONFIGS["paths-owner"], states=23)) == "it found 22 states, and TLC 23"


def test_a_violation_that_only_one_of_them_finds_is_noticed() -> None:
    config = CONFIGS["StreamPool: lost wake-up"]
    assert why(replace(config, violated="NoWaste")) == "it found Findable violated, and TLC NoWaste"


def test_a_model_that_is_another_for_one_of_them_is_noticed() -> None:
    config = CONFIGS["pool-error"]
    text, settings = second.source(config)
    assert text.count('(Mode = "wait")') == 1
    changed = text.replace('(Mode = "wait")', '(Mode = "error")')  # who finds none free waits after all
    [opinion] = second.ask([(changed, settings, second.invariants(config))])
    assert second.disagreement(config, opinion)


def test_what_the_checker_cannot_read_is_a_disagreement() -> None:
    config = CONFIGS["paths-owner"]
    text, settings = second.source(config)
    [opinion] = second.ask([(text.replace("Scope(", "Scoop(", 1), settings, second.invariants(config))])
    assert "undefined" in second.disagreement(config, opinion)


def test_what_it_is_given_does_not_depend_on_precedence() -> None:
    text = plain.plain(plain.read("BatchQueue"), "BatchQueue", ["Closing"])
    assert 'Closing == ((state = "closed") => (AllLeft /\\ (line = <<>>)))' in text


def test_what_is_left_out_has_a_reason() -> None:
    reasons = {second.left_out(c) for c in (*models.HOLDING, *models_paths.HOLDING, *models.FAILING)}
    assert "its symmetry reduction is TLC's own" in reasons
    assert "it violates a property over time" in reasons
    assert len(second.holding()) > 35
    assert len(second.failing()) > 30


def test_a_package_of_another_hash_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "package.tgz"
    archive.write_bytes(b"something else")
    with pytest.raises(second.SecondMissingError, match="with the hash"):
        second.checked(archive)
