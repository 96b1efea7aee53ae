"""What pytest is told to tell of a run: what failed and how, and which tests passed in what time."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest


class Told:
    """A plugin that writes what happens to a file as it happens: a bug may end the process."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._told: dict[str, Any] = {"passed": {}, "failed": [], "broken": []}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Notes each failure with the exception and all that it says."""
        report = yield
        if report.failed:
            kinds = [k.__name__ for k in call.excinfo.type.__mro__] if call.excinfo is not None else []
            entry = {"test": item.nodeid, "when": report.when, "kinds": kinds, "text": report.longreprtext}
            self._told["failed"].append(entry)
        elif report.passed and report.when == "call":
            self._told["passed"][item.nodeid] = round(report.duration, 2)
        self._write()
        return report

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Notes a file that could not even be read."""
        if report.failed:
            self._told["broken"].append(report.longreprtext)
            self._write()

    def _write(self) -> None:
        self._file.write_text(json.dumps(self._told), encoding="utf-8")
