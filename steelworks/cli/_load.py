"""Closed-loop load: the one place where the commands and the benchmarks measure.

*Closed loop*: each caller sends its next request when the answer to its last one is there, as a
thread of a web server does. The clock is host time, from before the request is prepared (for
example tokenised) until its result is on the CPU.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

# With no request ending for this long a run counts as hung: what has not ended becomes an error.
STALL_SECONDS = 300.0
_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 10.0

Call = Callable[[Any], Any]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class ScenarioResult:
    """One way to run the requests, measured.

    Attributes:
        name: which way, for example ``"threads"``.
        throughput_rps: requests answered a second; errors don't count.
        p50_ms: median latency of the answered requests, in milliseconds; None if there is none.
        p99_ms: 99th percentile of the same.
        errors: requests that raised, or had not ended when the run was given up as hung.
        max_abs_difference: largest absolute difference of any output element from the result of
            the same request run alone; None where nothing can be compared.
    """

    name: str
    throughput_rps: float
    p50_ms: float | None
    p99_ms: float | None
    errors: int
    max_abs_difference: float | None


@dataclass
class Run:
    """What one run gave; lists have one entry a request sent, in request order.

    Attributes:
        seconds: from the first request sent to the last answer.
        latencies: seconds a request took; None where it failed.
        outputs: results; None where it failed.
        failures: what failed, by request index.
    """

    seconds: float
    latencies: list[float | None]
    outputs: list[Any]
    failures: dict[int, BaseException] = field(default_factory=dict)

    @property
    def throughput_rps(self) -> float:
        """Answered requests a second."""
        answered = len(self.latencies) - len(self.failures)
        return answered / self.seconds if self.seconds > 0 else 0.0


class StalledError(RuntimeError):
    """A request had not ended when its run was given up as hung."""


def run_callers(
    call: Call,
    requests: Sequence[Any],
    callers: int,
    *,
    warm_up: int = 2,
    time_limit: float | None = None,
    progress: Progress | None = None,
    stall_seconds: float = STALL_SECONDS,
) -> Run:
    """Send ``requests`` through ``call`` from ``callers`` threads in a closed loop.

    Every caller first makes ``warm_up`` calls that are not timed, so that what a thread sets up on
    its first call is not measured. Then all start together and take the requests in order.

    Args:
        call: answers one request; may raise. Its result is kept.
        requests: what to send, at least one.
        callers: number of threads, at least one.
        warm_up: calls a thread makes before the clock starts; their errors are ignored.
        time_limit: after so many seconds no further request is sent; the run then holds the first
            ones only, all of them ended.
        progress: called now and then, on the calling thread, with the number of requests ended.
        stall_seconds: a run in which no request ends for so long is given up.

    Returns:
        The run. Its failures are those of requests; this function raises none of them.

    Raises:
        ValueError: if there is no request or no caller.
    """
    if callers < 1:
        raise ValueError(f"callers is {callers}; at least 1 is needed")
    if not requests:
        raise ValueError("requests is empty; at least 1 is needed")
    state = _ClosedLoop(call, requests, callers, warm_up, time_limit)
    # Daemon threads: a call that never returns must not keep the process from ending.
    threads = [threading.Thread(target=state.run, name=f"caller-{i}", daemon=True) for i in range(callers)]
    for thread in threads:
        thread.start()
    try:
        _wait(state, progress, stall_seconds)
    except BaseException:
        # Ctrl-C: let the calls in flight end. A thread inside torch while Python exits aborts the process.
        state.stop.set()
        state.all_left.wait(_PATIENCE_SECONDS)
        raise
    finally:
        state.stop.set()
    return state.result()


def percentile(values: Iterable[float], percent: float) -> float | None:
    """The ``percent`` percentile of ``values``, linear between neighbours; None of no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    position = (len(ordered) - 1) * percent / 100.0
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarize(name: str, run: Run, reference: Sequence[Any] | None) -> ScenarioResult:
    """Condense ``run`` to one row; ``reference`` holds the results of the requests run alone."""
    latencies = [seconds * 1e3 for seconds in run.latencies if seconds is not None]
    difference: float | None = None
    if reference is not None:
        # Either may have been stopped by a time limit: both hold the first requests.
        for got, alone in zip(run.outputs, reference, strict=False):
            if got is not None and alone is not None:
                difference = max(difference or 0.0, max_abs_difference(got, alone))
    return ScenarioResult(
        name=name,
        throughput_rps=run.throughput_rps,
        p50_ms=percentile(latencies, 50),
        p99_ms=percentile(latencies, 99),
        errors=len(run.failures),
        max_abs_difference=difference,
    )


def max_abs_difference(got: Any, expected: Any) -> float:
    """Largest absolute difference of two outputs; infinite where structure, shape or NaNs differ."""
    left, right = tensors_of(got), tensors_of(expected)
    if len(left) != len(right) or any(a.shape != b.shape for a, b in zip(left, right, strict=True)):
        return float("inf")
    largest = 0.0
    for a, b in zip(left, right, strict=True):
        if a.numel() == 0:
            continue
        wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
        a, b = a.detach().cpu().to(wide), b.detach().cpu().to(wide)
        difference = (a - b).abs()
        # Equal infinities and NaN against NaN are no difference; NaN against a number is.
        difference = torch.where((a == b) | (a.isnan() & b.isnan()), torch.zeros_like(difference), difference)
        largest = max(largest, difference.nan_to_num(nan=float("inf"), posinf=float("inf")).max().item())
    return largest


def tensors_of(value: Any) -> list[torch.Tensor]:
    """All tensors of a nested output, in a fixed order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for key in sorted(value, key=str) for tensor in tensors_of(value[key])]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


class _ClosedLoop:
    """State that the callers of one run share."""

    def __init__(
        self, call: Call, requests: Sequence[Any], callers: int, warm_up: int, time_limit: float | None
    ) -> None:
        self.stop = threading.Event()
        # Not Thread.join: interrupted by Ctrl-C, it takes a running thread for an ended one (Python 3.11).
        self.all_left = threading.Event()
        self.ended = 0
        self._call = call
        self._requests = requests
        self._inside = callers
        self._warm_up = warm_up
        self._time_limit = math.inf if time_limit is None else time_limit
        self._next = 0
        self._lock = threading.Lock()
        self._start_line = threading.Barrier(callers, action=self._start_clock)
        self._started = 0.0
        self._finished = 0.0
        self._latencies: list[float | None] = [None] * len(requests)
        self._outputs: list[Any] = [None] * len(requests)
        self._failures: dict[int, BaseException] = {}

    def run(self) -> None:
        """Body of a caller thread."""
        try:
            self._send_requests()
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self.all_left.set()

    def _send_requests(self) -> None:
        for i in range(self._warm_up):
            try:
                self._call(self._requests[i % len(self._requests)])
            except BaseException:  # the same call is counted when it is timed
                break
        self._start_line.wait()
        while (index := self._take()) is not None:
            began = time.perf_counter()
            try:
                output = self._call(self._requests[index])
            except BaseException as error:  # a caller sees SystemExit as well, and must go on
                self._end(index, None, None, error)
            else:
                self._end(index, output, time.perf_counter() - began, None)

    def result(self) -> Run:
        """A copy of what there is now; requests that have not ended are failures."""
        with self._lock:
            failures = dict(self._failures)
            # A run that hung in its warm-up has sent none, and failed with all.
            sent = self._next or len(self._requests)
            for index, seconds in enumerate(self._latencies[:sent]):
                if seconds is None and index not in failures:
                    failures[index] = StalledError("the request had not ended when the run was given up")
            seconds = (self._finished or time.perf_counter()) - (self._started or time.perf_counter())
            return Run(seconds, self._latencies[:sent], self._outputs[:sent], failures)

    def _start_clock(self) -> None:
        self._started = time.perf_counter()

    def _take(self) -> int | None:
        with self._lock:
            index = self._next
            late = index > 0 and time.perf_counter() - self._started > self._time_limit
            if late or self.stop.is_set() or index >= len(self._requests):
                return None
            self._next += 1
            return index

    def _end(self, index: int, output: Any, seconds: float | None, error: BaseException | None) -> None:
        with self._lock:
            self._finished = time.perf_counter()
            self.ended += 1
            if error is None:
                self._latencies[index], self._outputs[index] = seconds, output
            else:
                self._failures[index] = error


def _wait(state: _ClosedLoop, progress: Progress | None, stall_seconds: float) -> None:
    """Wait for the callers in short steps, so that progress shows and a hang is noticed."""
    last_count, last_change = 0, time.monotonic()
    while not state.all_left.wait(_POLL_SECONDS):
        if progress is not None:
            progress(state.ended)
        if state.ended != last_count:
            last_count, last_change = state.ended, time.monotonic()
        elif time.monotonic() - last_change > stall_seconds:
            return
    if progress is not None:
        progress(state.ended)
