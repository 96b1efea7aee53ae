"""Measures a scenario in a process of its own.

Plain threads on an Apple GPU end the whole process on many releases of PyTorch. That is worth
showing, and must not end the command that shows it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import steelworks
from steelworks.cli._load import ScenarioResult

TIMEOUT_SECONDS = 600.0


def measure(
    name: str, command: Sequence[str], requests: int, timeout: float = TIMEOUT_SECONDS
) -> tuple[ScenarioResult, str]:
    """Run scenario ``name`` of ``command`` in a child process.

    Args:
        name: the scenario.
        command: arguments after ``python -m steelworks.cli`` that measure the same workload.
        requests: how many requests count as errors if the child does not survive.
        timeout: seconds after which the child counts as hung.

    Returns:
        The row and a sentence about the process. A child that died has answered nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        arguments = [sys.executable, "-m", "steelworks.cli", *command, "--no-isolate", "--json", str(report)]
        arguments += ["--scenario", "single", "--scenario", name]
        try:
            ended = subprocess.run(
                arguments, capture_output=True, text=True, timeout=timeout, check=False, env=_environment()
            )
        except subprocess.TimeoutExpired:
            return _nothing(name, requests), f"its own process hung and was stopped after {timeout:.0f} s"
        if report.exists():
            for row in json.loads(report.read_text(encoding="utf-8"))["scenarios"]:
                if row["name"] == name:
                    return ScenarioResult(**row), "measured in a process of its own"
    return _nothing(name, requests), f"its own process {_how_it_ended(ended)}"


def _environment() -> dict[str, str]:
    """This process's environment; the child imports the same ``steelworks``, installed or not."""
    folders = [str(Path(steelworks.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folder for folder in folders if folder)}


def _nothing(name: str, requests: int) -> ScenarioResult:
    return ScenarioResult(name, 0.0, None, None, requests, None)


def _how_it_ended(ended: subprocess.CompletedProcess[str]) -> str:
    last = (ended.stderr.strip().splitlines() or ["no message"])[-1][:200]
    if ended.returncode < 0:
        try:
            by = signal.Signals(-ended.returncode).name
        except ValueError:
            by = f"signal {-ended.returncode}"
        return f"was ended by {by}: {last}"
    return f"ended with status {ended.returncode}: {last}"
