"""The tests of queue and plans as a claim: they notice the bugs that are planted in the code."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from scripts import planted_bugs
from verification.claims import Claim, ToolMissing, declare

#: For the quick set: files of tests that are quick themselves, and so many bugs of each.
QUICK_TESTS: Final = (
    "tests/test_pending.py",
    "tests/test_plans_cost.py",
    "tests/test_plans_batches.py",
    "tests/test_statistics.py",
    "tests/test_queue_basics.py",
)
QUICK_EACH: Final = 1
#: The full set takes one of so many: a bug may take a minute, where a test has to hang.
EVERY: Final = 8


def declared() -> tuple[Claim, ...]:
    """What is claimed of the tests of queue and plans."""
    everything = planted_bugs.load()
    bugs = everything[::EVERY]
    return (
        declare(
            "runtime.planted",
            "the tests of queue and plans notice bugs that are planted in the code",
            tool="pytest",
            bound=f"{len(bugs)} of {len(everything)} bugs written by hand, every {EVERY}th; "
            "`python scripts/planted_bugs.py` plants all",
            binding="a copy of the package, changed; the test that notices passes without the change",
            code=(*sorted({bug.file for bug in everything}), "tests/planted"),
            assumes="a test that hangs has noticed too",
            counted=f"{len(bugs)} of {len(bugs)} bugs caught",
        ),
    )


def sample(bugs: Sequence[planted_bugs.Bug]) -> list[planted_bugs.Bug]:
    """The bugs of the quick set: spread over those of each quick file of tests that name their test."""
    chosen = []
    for tests in QUICK_TESTS:
        some = [bug for bug in bugs if bug.tests == tests]
        chosen += [some[i * len(some) // QUICK_EACH] for i in range(min(QUICK_EACH, len(some)))]
    return chosen


def claims(quick: bool) -> Iterator[Claim]:
    """Plants the bugs; yields the claim.

    Raises:
        ToolMissing: There is no pytest.
    """
    try:
        import hypothesis
        import pytest
        import pytest_timeout  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as problem:
        raise ToolMissing(
            f"{problem.name} is not here; install with: python -m pip install pytest pytest-timeout hypothesis"
        ) from problem
    (claim,) = declared()
    began = time.monotonic()
    everything = planted_bugs.load()
    bugs: Sequence[planted_bugs.Bug] = everything[::EVERY]
    if quick:
        bugs = sample(everything)
        claim = replace(claim, bound=f"{len(bugs)} of {len(everything)} bugs written by hand")
    claim = replace(claim, tool=f"pytest {pytest.__version__}, hypothesis {hypothesis.__version__}")
    caught, wrong = 0, []
    for tried in planted_bugs.try_all(bugs):
        if tried.verdict == planted_bugs.CAUGHT:
            caught += 1
        else:
            wrong.append(f"{tried.verdict}: {tried.bug.name}: {tried.reason}")
    yield replace(
        claim,
        counted=f"{caught} of {len(bugs)} bugs caught",
        passed=caught == len(bugs) and not wrong,
        seconds=time.monotonic() - began,
        why="\n".join(wrong)[:2000],
    )
