"""What a comparison shows: progress while it works, then a table, a verdict and a JSON file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from steelworks.cli._compare import Comparison, Listener, Settings
from steelworks.cli._environment import describe_environment, describe_versions
from steelworks.cli._load import ScenarioResult
from steelworks.cli._options import device_title
from steelworks.cli._others import DISTURBED

EXPLANATIONS = {
    "threads": "every thread calls the model",
    "lock": "the same, one lock around the call",
    "single": "one thread; the reference",
    "oracle": "offline, sorted by length, batched",
    "queue": "every thread calls one BatchQueue",
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether the queue did its job, and the sentence that says so."""

    passed: bool
    sentence: str


class ProgressBars(Listener):
    """One progress bar a scenario."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._total = 0

    def begin(self, name: str, total: int) -> None:
        """Add the bar of scenario ``name``."""
        self._total = total
        self._task = self._progress.add_task(f"{name:8}", total=total)

    def progress(self, done: int) -> None:
        """Move the bar of the current scenario."""
        if self._task is not None:
            self._progress.update(self._task, completed=done)

    def end(self) -> None:
        """Fill the bar: what failed has ended as well."""
        self.progress(self._total)


@contextmanager
def progress_bars(console: Console) -> Iterator[ProgressBars]:
    """Show a bar a scenario for the length of the ``with`` block."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        yield ProgressBars(progress)


def judge(comparison: Comparison, settings: Settings) -> Verdict:
    """Say what the comparison means for the queue; it passes if every answer is there and right."""
    queue = comparison.find("queue")
    if queue is None:
        return Verdict(True, "the queue was not measured; add '--scenario queue' to judge it")
    faults = []
    if queue.errors:
        faults.append(f"{queue.errors} of its requests failed")
    difference, tolerance = queue.max_abs_difference, comparison.tolerance
    if difference is not None and tolerance is not None and not difference <= tolerance:
        faults.append(f"its answers differ by {difference:.2g} from single calls (limit {tolerance:.2g})")
    if faults:
        return Verdict(False, f"FAILED: BatchQueue: {' and '.join(faults)}")
    parts = []
    for name, words in (("threads", "plain threads"), ("lock", "one lock")):
        other = comparison.find(name)
        if other is not None and other.throughput_rps:
            parts.append(f"{queue.throughput_rps / other.throughput_rps:.2f} x {words}")
        elif other is not None:
            parts.append(f"{words} answered nothing")
    efficiency = comparison.efficiency("queue")
    if efficiency is not None:
        parts.append(f"{efficiency:.0%} of the offline oracle")
    answers = "no errors"
    if difference is not None:
        answers += f", answers {_agreement(difference)} single calls"
    compared = f" ({', '.join(parts)})" if parts else ""
    rivals = [row for row in map(comparison.find, ("threads", "lock")) if row is not None]
    if any(row.throughput_rps > queue.throughput_rps and not row.errors for row in rivals):
        answers += (
            ". It is slower here than calling the model directly: this model gains nothing from batches"
        )
    return Verdict(
        True,
        f"ok: BatchQueue answered {queue.throughput_rps:.0f} requests a second from "
        f"{settings.callers} threads{compared}; {answers}",
    )


def show(console: Console, comparison: Comparison, settings: Settings) -> None:
    """Print the table and what has to be known to read it."""
    table = Table(title=f"{settings.callers} threads, {settings.requests} requests, {settings.device}")
    table.add_column("scenario", no_wrap=True)
    for heading in ("req/s", "effi-\nciency", "p50\nms", "p99\nms", "errors", "largest\ndifference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in comparison.results:
        table.add_row(*_cells(row, comparison), style="bold" if row.name == "queue" else None)
    console.print(table)
    for row in comparison.results:
        text = f"  {row.name:8} {EXPLANATIONS[row.name]}"
        if row.name == "oracle" and comparison.oracle is not None:
            text += f" (best: {_plural(comparison.oracle.workers, 'worker')} of "
            text += f"{_plural(comparison.oracle.threads_per_worker, 'thread')})"
        console.print(text, highlight=False)
        if row.name in comparison.notes:
            console.print(f"           note: {comparison.notes[row.name]}", highlight=False, markup=False)
    if sentence := disturbance(comparison):
        console.print(f"  {sentence}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    console.print(
        "  efficiency: throughput as a share of the oracle's\n"
        "  difference: of any output element from the same request run alone\n"
        "  latency of the oracle: run time of the request's batch; offline, nobody waits",
        highlight=False,
    )


def disturbance(comparison: Comparison) -> str:
    """Say which figures other programs disturbed; "" where none are known to be."""
    disturbed = {name: cores for name, cores in comparison.others.items() if cores >= DISTURBED}
    if not disturbed:
        return ""
    listed = ", ".join(f"{name} {cores:.1f}" for name, cores in disturbed.items())
    return (
        f"disturbed: other programs kept cores busy meanwhile ({listed}); these figures are lower than on a quiet "
        "machine, and their ratios may be wrong: run it again"
    )


def show_verdict(console: Console, verdict: Verdict) -> None:
    """Print the verdict; the last line of a command."""
    console.print(
        f"verdict: {verdict.sentence}",
        style="bold green" if verdict.passed else "bold red",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def write_json(path: Path, command: str, title: str, comparison: Comparison, settings: Settings) -> None:
    """Write everything as JSON; figures that don't exist or aren't finite are ``null``."""
    verdict = judge(comparison, settings)
    report: dict[str, Any] = {
        "command": command,
        "workload": title,
        "versions": describe_versions(),
        "environment": describe_environment(device_title(settings.device)),
        "settings": {
            "callers": settings.callers,
            "requests": settings.requests,
            "device": str(settings.device),
            "max_batch_size": settings.max_batch_size,
            "repeats": settings.repeats,
            "time_limit_s": settings.time_limit,
            "tolerance": comparison.tolerance,
            "clock": "host time, from before a request is prepared until its result is on the CPU",
        },
        "scenarios": [dataclasses.asdict(row) for row in comparison.results],
        "efficiency": {row.name: comparison.efficiency(row.name) for row in comparison.results},
        "throughput_of_repeats": comparison.repeats,
        "oracle": dataclasses.asdict(comparison.oracle) if comparison.oracle else None,
        "notes": comparison.notes,
        "cores_used_by_others": comparison.others,
        "queue_statistics": comparison.queue_statistics,
        "passed": verdict.passed,
        "verdict": verdict.sentence,
    }
    path.write_text(json.dumps(_jsonable(report), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _cells(row: ScenarioResult, comparison: Comparison) -> list[str]:
    efficiency = comparison.efficiency(row.name)
    return [
        row.name,
        f"{row.throughput_rps:.1f}",
        "-" if efficiency is None else f"{efficiency:.0%}",
        _milliseconds(row.p50_ms),
        _milliseconds(row.p99_ms),
        str(row.errors),
        _difference(row.max_abs_difference),
    ]


def _difference(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}" if value else "0"


def _agreement(difference: float) -> str:
    return f"within {difference:.1g} of" if difference else "identical to those of"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _jsonable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, torch.Tensor):
        return _jsonable(value.tolist())
    return str(value)
