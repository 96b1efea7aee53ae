"""Runs one workload in every scenario, side by side in one process.

=========  ====================================================================================
threads    every caller calls the model itself, as plain code does
lock       the same, with one lock around the call: the usual cure
single     one thread calls the model; its results are what all others are compared with
oracle     offline: sorted by length, batched, the best use of the cores (see ``_oracle``)
queue      every caller calls one ``steelworks.BatchQueue``
=========  ====================================================================================
"""

from __future__ import annotations

import dataclasses
import statistics
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from steelworks.cli import _isolated
from steelworks.cli._load import Call, Progress, Run, ScenarioResult, run_callers, summarize
from steelworks.cli._oracle import OracleSettings, run_oracle
from steelworks.cli._others import OtherLoad
from steelworks.cli._workload import Workload, call_model, tolerance_for

SCENARIOS = ("threads", "lock", "single", "oracle", "queue")

# The reference comes first: it also warms the device up on one thread.
_ORDER = ("single", "threads", "lock", "oracle", "queue")


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        callers: threads that send requests, except in ``single`` and ``oracle``.
        requests: requests a scenario answers; a shorter list of requests starts over.
        device: where the model runs.
        max_batch_size: largest batch of the oracle and of the queue.
        repeats: how often everything is run; the row of the median throughput is reported.
        time_limit: seconds after which a scenario sends no further request (the oracle runs them all).
        tolerance: largest accepted difference; None: by dtype (``_workload.TOLERANCES``).
        scenarios: which to run; ``single`` is always run, for the others to be compared with.
        isolate: run ``threads`` in a process of its own, because it may end the process.
        isolated_command: arguments that make ``python -m steelworks.cli`` measure this workload.
    """

    callers: int = 8
    requests: int = 1000
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_batch_size: int = 32
    repeats: int = 1
    time_limit: float | None = None
    tolerance: float | None = None
    scenarios: tuple[str, ...] = SCENARIOS
    isolate: bool = False
    isolated_command: tuple[str, ...] = ()


@dataclass
class Comparison:
    """What came out.

    Attributes:
        results: one row a scenario, in the order of ``SCENARIOS``.
        repeats: throughput of every repeat, by scenario, in requests a second.
        tolerance: the difference up to which answers count as equal; None if nothing is comparable.
        oracle: how the best oracle spent the cores.
        notes: what a reader has to know about a scenario, by name.
        others: cores that other programs kept busy meanwhile, by scenario; the most of its repeats.
        queue_statistics: ``BatchQueue.statistics()`` at the end, as a dict.
    """

    results: list[ScenarioResult] = field(default_factory=list)
    repeats: dict[str, list[float]] = field(default_factory=dict)
    tolerance: float | None = None
    oracle: OracleSettings | None = None
    notes: dict[str, str] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)
    queue_statistics: dict[str, Any] = field(default_factory=dict)

    def find(self, name: str) -> ScenarioResult | None:
        """The row of scenario ``name``, if it ran."""
        return next((row for row in self.results if row.name == name), None)

    def efficiency(self, name: str) -> float | None:
        """Throughput of ``name`` as a share of the oracle's; None without an oracle."""
        row, oracle = self.find(name), self.find("oracle")
        if row is None or oracle is None or not oracle.throughput_rps:
            return None
        return row.throughput_rps / oracle.throughput_rps


class Listener:
    """Told how far a comparison is; this one shows nothing."""

    def begin(self, name: str, total: int) -> None:
        """Scenario ``name`` starts; it answers ``total`` requests."""

    def progress(self, done: int) -> None:
        """So many requests of the scenario have ended."""

    def end(self) -> None:
        """The scenario is over."""


def open_queue(
    workload: Workload, settings: Settings, example: Any
) -> AbstractContextManager[Callable[[Any], Any]]:
    """Make the ``BatchQueue`` that is measured; a context manager that gives a callable."""
    from steelworks import BatchQueue

    queue: AbstractContextManager[Callable[[Any], Any]] = BatchQueue(
        workload.model,
        max_batch_size=settings.max_batch_size,
        device=settings.device,
        example=example,
    )
    return queue


def compare(workload: Workload, settings: Settings, listener: Listener | None = None) -> Comparison:
    """Measure ``workload`` in every scenario of ``settings``.

    The model is moved to the device and put into evaluation mode.
    """
    listener = Listener() if listener is None else listener
    requests = [workload.requests[i % len(workload.requests)] for i in range(settings.requests)]
    workload.model.to(settings.device).eval()
    bench = _Bench(workload, settings, requests, listener)
    wanted = [name for name in _ORDER if name == "single" or name in settings.scenarios]
    rows: dict[str, list[ScenarioResult]] = {name: [] for name in wanted}
    for _ in range(settings.repeats):
        for name in wanted:
            listener.begin(name, len(requests) * (len(bench.oracle_settings()) if name == "oracle" else 1))
            load = OtherLoad()
            rows[name].append(bench.measure(name))
            bench.disturbed(name, load.cores())
            listener.end()
    comparison = bench.comparison
    comparison.tolerance = (
        settings.tolerance if settings.tolerance is not None else tolerance_for(bench.reference)
    )
    for name in SCENARIOS:
        if name in rows:
            comparison.results.append(_median_row(rows[name]))
            comparison.repeats[name] = [row.throughput_rps for row in rows[name]]
    return comparison


def _median_row(rows: Sequence[ScenarioResult]) -> ScenarioResult:
    """The repeat of median throughput, with the errors and the difference of all repeats."""
    middle = statistics.median_low([row.throughput_rps for row in rows])
    row = next(row for row in rows if row.throughput_rps == middle)
    differences = [r.max_abs_difference for r in rows if r.max_abs_difference is not None]
    return dataclasses.replace(
        row,
        errors=sum(r.errors for r in rows),
        max_abs_difference=max(differences, default=None),
    )


class _Bench:
    """One comparison while it runs."""

    def __init__(
        self, workload: Workload, settings: Settings, requests: list[Any], listener: Listener
    ) -> None:
        self.comparison = Comparison()
        self.reference: list[Any] = []
        self._workload = workload
        self._settings = settings
        self._requests = requests
        self._listener = listener
        self._torch_threads = torch.get_num_threads()

    def measure(self, name: str) -> ScenarioResult:
        """Run scenario ``name`` once."""
        if name == "threads" and self._settings.isolate:
            row, note = _isolated.measure(name, self._settings.isolated_command, len(self._requests))
            self.comparison.notes[name] = note
            return row
        torch.set_num_threads(self._torch_threads)  # whatever the scenario before has left
        run: Run = getattr(self, f"_{name}")()
        if name == "single" and not self.reference:
            self.reference = run.outputs
        if run.failures:
            first = min(run.failures)
            error = run.failures[first]
            self.comparison.notes[name] = f"request {first} failed with {type(error).__name__}: {error}"
        elif len(run.latencies) < len(self._requests):
            done, wanted = len(run.latencies), len(self._requests)
            self.comparison.notes[name] = (
                f"stopped after {run.seconds:.0f} s, {done} of {wanted} requests done"
            )
        return summarize(name, run, self.reference)

    def disturbed(self, name: str, cores: float | None) -> None:
        """Keep how busy others were while scenario ``name`` ran."""
        if cores is not None:
            others = self.comparison.others
            others[name] = max(cores, others.get(name, 0.0))

    def oracle_settings(self) -> list[OracleSettings]:
        """The ways to spend the cores of which the oracle takes the best."""
        cores, size = self._torch_threads, self._settings.max_batch_size
        ways = [OracleSettings(1, cores, size)]
        if self._settings.device.type == "cpu" and cores > 1:
            ways.append(OracleSettings(cores, 1, size))
        return ways

    def _call(self, request: Any) -> Any:
        return call_model(self._workload.model, self._workload.prepare(request), self._settings.device)

    def _run(self, call: Call, callers: int | None = None) -> Run:
        return run_callers(
            call,
            self._requests,
            self._settings.callers if callers is None else callers,
            time_limit=self._settings.time_limit,
            progress=self._listener.progress,
        )

    def _single(self) -> Run:
        return self._run(self._call, callers=1)

    def _threads(self) -> Run:
        return self._run(self._call)

    def _lock(self) -> Run:
        lock = threading.Lock()

        def call(request: Any) -> Any:
            x = self._workload.prepare(request)
            with lock:
                return call_model(self._workload.model, x, self._settings.device)

        return self._run(call)

    def _oracle(self) -> Run:
        runs: list[tuple[Run, OracleSettings]] = []
        for way in self.oracle_settings():
            progress = _shifted(self._listener.progress, len(runs) * len(self._requests))
            runs.append(
                (
                    run_oracle(self._workload, self._requests, self._settings.device, way, progress),
                    way,
                )
            )
        best, self.comparison.oracle = max(runs, key=lambda pair: pair[0].throughput_rps)
        return best

    def _queue(self) -> Run:
        example = self._workload.prepare(self._requests[0])
        with open_queue(self._workload, self._settings, example) as queue:
            run = self._run(lambda request: queue(self._workload.prepare(request)))
            self.comparison.queue_statistics = _as_dict(getattr(queue, "statistics", None))
        return run


def _shifted(progress: Progress, offset: int) -> Progress:
    return lambda done: progress(offset + done)


def _as_dict(statistics_of: Callable[[], Any] | None) -> dict[str, Any]:
    if statistics_of is None:
        return {}
    value = statistics_of()
    return (
        dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else {}
    )
