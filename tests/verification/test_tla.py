"""The TLA+ models of the runtime: what TLC finds in them, and the running code led along every step of theirs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from verification.tla import control, models, planted, tlc
from verification.tla.checks import Checks, subject
from verification.tla.graph import Graph, parse
from verification.tla.models import Config
from verification.tla.replay import Disagreement, replay

QUICK = [config for config in models.HOLDING if config.quick]
FAILING = [config for config in models.FAILING if config.quick]
REPLAYED = [config for config in QUICK if config.replayed]
BUGS = [
    bug for bug in planted.load(Path(__file__).with_name("planted.toml")) if models.named(bug.config).quick
]


def named(config: Config) -> str:
    return config.name.replace(" ", "-")


@pytest.fixture(scope="module")
def checks() -> Iterator[Checks]:
    """All runs of TLC that this file needs, those first that are needed first."""
    if missing := tlc.missing():
        pytest.fail(f"evidence missing: no model was checked. {missing}")
    wanted = sorted((*QUICK, *FAILING), key=lambda config: not config.replayed)
    checks = Checks(wanted)
    yield checks
    checks.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug may make a thread hang; that need not be waited for as long as on a busy machine."""
    monkeypatch.setattr(control, "PATIENCE", 5.0)


@pytest.mark.evidence
@pytest.mark.parametrize("config", REPLAYED, ids=named)
def test_the_code_takes_every_step_of_the_model(config: Config, checks: Checks) -> None:
    graph = checks.graph(config)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
        replayed = replay(graph, subject(config))
    assert replayed.states == config.states
    assert replayed.steps + replayed.beside >= replayed.edges > replayed.states - 1


@pytest.mark.evidence
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_replay_notices_a_planted_bug(bug: planted.Bug, checks: Checks, impatient: None) -> None:
    config = models.named(bug.config)
    graph = checks.graph(config)
    with planted.planted(bug), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
        with pytest.raises(Disagreement):
            replay(graph, subject(config))


@pytest.mark.evidence
@pytest.mark.parametrize("config", QUICK, ids=named)
def test_the_properties_hold_in_every_state(config: Config, checks: Checks) -> None:
    outcome = checks.outcome(config)
    assert outcome.exit_code == tlc.HOLDS, outcome.output
    assert outcome.states == config.states, "the model says more or less than it did"


@pytest.mark.evidence
@pytest.mark.parametrize("config", FAILING, ids=named)
def test_a_mistake_in_the_model_is_found(config: Config, checks: Checks) -> None:
    outcome = checks.outcome(config)
    assert outcome.exit_code == config.exit_code, outcome.output
    assert outcome.violated == config.violated
    assert outcome.counterexample, outcome.output


def test_a_bug_that_no_longer_fits_the_code_is_refused() -> None:
    bug = planted.Bug("stale", "steelworks.streams._ledger:Ledger.close", "no such text", "pass", "pool-wait")
    with pytest.raises(LookupError, match="0 times"), planted.planted(bug):
        pass


def test_values_of_tla_are_read() -> None:
    text = '[a |-> <<1, "x">>, b |-> (t1 :> {TRUE} @@ t2 :> {}), c |-> -3]'
    assert parse(text) == {"a": (1, "x"), "b": {"t1": frozenset({True}), "t2": frozenset()}, "c": -3}


def test_a_replay_of_the_wrong_model_fails() -> None:
    """The comparison itself: a state of the model that the code is not in is noticed."""
    config = models.named("pool-error")
    with contextlib.closing(Checks([config])) as checks:
        graph = checks.graph(config)
    wrong = [
        {**state, "pool": {**state["pool"], "closed": not state["pool"]["closed"]}} for state in graph.states
    ]
    steps = [(edge.source, edge.action, edge.target) for edge in graph.edges]
    with pytest.raises(Disagreement, match="closed"):
        replay(Graph(wrong, steps, graph.initial), subject(config))


def test_every_configuration_has_a_pinned_count_or_must_fail() -> None:
    unpinned = [config.name for config in models.HOLDING if config.states is None]
    assert not unpinned
    assert all(config.exit_code != tlc.HOLDS for config in models.FAILING)
