"""Paths.tla: vendor calls beside Steel calls on an Apple GPU, and the running code led along every step of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from steelworks.devices._mps_gate import Gate
from steelworks.paths import _hazards
from steelworks.testing import FakeMPS
from verification.tla import control, models_paths, planted, tlc
from verification.tla.checks import Checks, subject
from verification.tla.models_paths import PathsConfig
from verification.tla.replay import Disagreement, replay

QUICK = [config for config in models_paths.HOLDING if config.quick]
FAILING = [config for config in models_paths.FAILING if config.quick]
REPLAYED = [config for config in QUICK if config.replayed]
BUGS = planted.load(models_paths.BUGS)


def named(config: PathsConfig) -> str:
    return config.name.replace(" ", "-")


@pytest.fixture(scope="module")
def checks() -> Iterator[Checks]:
    """All runs of TLC that this file needs, those first that are needed first."""
    if missing := tlc.missing():
        pytest.fail(f"evidence missing: no model was checked. {missing}")
    checks = Checks(sorted((*QUICK, *FAILING), key=lambda config: not config.replayed))
    yield checks
    checks.close()


@pytest.mark.evidence
@pytest.mark.parametrize("config", REPLAYED, ids=named)
def test_the_device_and_the_selector_take_every_step_of_the_model(
    config: PathsConfig, checks: Checks
) -> None:
    replayed = replay(checks.graph(config), subject(config))
    assert replayed.states == config.states
    assert replayed.steps >= replayed.edges > replayed.states - 1


@pytest.mark.evidence
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_replay_notices_a_planted_bug(
    bug: planted.Bug, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PATIENCE", 5.0)
    config = models_paths.named(bug.config)
    graph = checks.graph(config)
    with planted.planted(bug), pytest.raises(Disagreement):
        replay(graph, subject(config))


@pytest.mark.evidence
@pytest.mark.parametrize("config", QUICK, ids=named)
def test_the_properties_hold_in_every_state(config: PathsConfig, checks: Checks) -> None:
    outcome = checks.outcome(config)
    assert outcome.exit_code == tlc.HOLDS, outcome.output
    assert outcome.states == config.states, "the model says more or less than it did"


@pytest.mark.evidence
@pytest.mark.parametrize("config", FAILING, ids=named)
def test_a_rule_that_is_dropped_is_missed(config: PathsConfig, checks: Checks) -> None:
    outcome = checks.outcome(config)
    assert outcome.exit_code == config.exit_code, outcome.output
    assert outcome.violated == config.violated
    assert outcome.counterexample, outcome.output


def test_every_configuration_has_a_pinned_count_or_must_fail() -> None:
    assert all(config.states for config in models_paths.HOLDING)
    assert all(config.exit_code != tlc.HOLDS for config in models_paths.FAILING)


# What the model leaves out: how the mode of the gate is set, and backward passes.


def test_a_vendor_call_does_not_set_the_mode() -> None:
    gate = Gate()
    holder = gate.enter_vendor()
    assert holder is threading.current_thread()
    gate.leave(holder)
    owner = gate.enter(False, "the test")
    assert gate.enter_vendor() is None, "the owner needs no turn"
    gate.leave(owner)


def test_the_first_owner_waits_for_a_vendor_call_that_began_before() -> None:
    gate = Gate()
    holder = gate.enter_vendor()
    assert holder is not None
    claimed = threading.Event()

    def claim() -> None:
        owner = gate.enter(False, "the test")
        claimed.set()
        gate.leave(owner)

    thread = threading.Thread(target=claim)
    thread.start()
    while gate._streams is None:
        pass
    assert not claimed.is_set()
    gate.leave(holder)
    thread.join(30)
    assert claimed.is_set()
    assert not gate._turn.locked()


def test_a_backward_takes_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller may have the turn, and autograd's thread would wait for it for ever."""
    fake = FakeMPS("2.15.0")
    monkeypatch.setattr(_hazards, "_backend", fake.torch)
    gates: list[bool] = []

    class Squared(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return _hazards.in_turn(note, x * x)  # type: ignore[no-any-return]

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return _hazards.in_turn(note, gradient)  # type: ignore[no-any-return]

    def note(x: torch.Tensor) -> torch.Tensor:
        from steelworks.devices._mps_gate import gate_of

        gates.append(gate_of(fake.torch)._turn.locked())
        return x

    x = torch.ones(2, requires_grad=True)
    Squared.apply(x).sum().backward()  # type: ignore[no-untyped-call]
    assert gates == [True, False]
