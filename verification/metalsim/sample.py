"""A plugin of pytest: runs one test in so many. ``pytest -p verification.metalsim.sample --one-in 8``."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many are passed over."""
    parser.addoption("--one-in", type=int, default=1, metavar="N", help="run every Nth test")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep every Nth, in the order of the files."""
    kept = items[:: config.getoption("--one-in")]
    left = [item for item in items if item not in set(kept)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept
