"""Checks models, replays them on the code and plants bugs: one row for each, as it ends."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import models, models_paths, planted, tlc
from .checks import Checks, subject
from .models import Config
from .replay import Disagreement, Replayed, replay

BUGS = Path(__file__).resolve().parents[2] / "tests" / "verification" / "planted.toml"


@dataclass(frozen=True)
class Row:
    """What became of one configuration or bug.

    Attributes:
        kind: "model", "replay", "mistake" or "bug".
        name: Of the configuration or the bug.
        good: It is as it should be.
        seconds: By the clock.
        counts: States, edges, steps.
        why: Where it is not good: what was seen.
        config: The configuration; of a bug, that which must notice it.
    """

    kind: str
    name: str
    good: bool
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)
    why: str = ""
    config: Config | None = None


def check(
    holding: Sequence[Config], failing: Sequence[Config], bugs: Sequence[planted.Bug] = ()
) -> Iterator[Row]:
    """Checks and replays ``holding``; ``failing`` must fail as they say, and the replay must notice ``bugs``."""
    # A forked child of a program with threads is what the replay tests.
    warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
    configs = {c.name: c for c in (*holding, *(_named(bug.config) for bug in bugs), *failing)}
    checks = Checks(configs.values())
    try:
        for config in holding:
            yield from _holds(config, checks)
        for config in failing:
            outcome = checks.outcome(config)
            good = (outcome.exit_code, outcome.violated) == (config.exit_code, config.violated)
            yield Row(
                "mistake",
                config.name,
                good,
                outcome.seconds,
                {"states": outcome.states},
                outcome.output,
                config,
            )
        for bug in bugs:
            yield _plant(bug, checks)
    finally:
        checks.close()


def _named(name: str) -> Config:
    return next(c for c in (*models.HOLDING, *models_paths.HOLDING) if c.name == name)


def _holds(config: Config, checks: Checks) -> Iterator[Row]:
    outcome = checks.outcome(config)
    good = outcome.exit_code == tlc.HOLDS and outcome.states == config.states
    why = (
        outcome.output if outcome.exit_code else f"{config.states} states were expected, not {outcome.states}"
    )
    yield Row("model", config.name, good, outcome.seconds, {"states": outcome.states}, why, config)
    if config.replayed and outcome.exit_code == tlc.HOLDS:
        why, seconds, done = _timed(lambda: replay(checks.graph(config), subject(config)))
        counts = {} if done is None else {"edges": done.edges, "steps": done.steps}
        yield Row("replay", config.name, not why, seconds, counts, why, config)


def _plant(bug: planted.Bug, checks: Checks) -> Row:
    config = _named(bug.config)
    graph = checks.graph(config)
    with planted.planted(bug):
        why, seconds, _ = _timed(lambda: replay(graph, subject(config)))
    return Row("bug", bug.name, bool(why), seconds, why="not noticed", config=config)


def _timed(work: Callable[[], Replayed]) -> tuple[str, float, Replayed | None]:
    began = time.monotonic()
    try:
        done = work()
        return "", time.monotonic() - began, done
    except Disagreement as error:
        return str(error), time.monotonic() - began, None
