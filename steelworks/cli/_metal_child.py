"""Runs a job in a child process and gathers what it tells; a crash or an endless loop ends only the child."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import steelworks
from steelworks.cli._metal_job import PREFIX, Job

# Compiling the runtime for the first time takes longest, and more so on a busy machine.
COMPILE_SECONDS = 600.0


@dataclass(frozen=True)
class MergedFinding:
    """A finding, and the schedules that showed it.

    Attributes:
        finding: The fields of ``metalsim.Finding``; of a crash those that apply.
        schedules: Each ``SCHEDULE/ORDER``.
    """

    finding: dict[str, Any]
    schedules: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self.finding, "schedules": list(self.schedules)}


@dataclass
class Outcome:
    """All that is known of a job.

    Attributes:
        kernel: Its name.
        parameters: Index, name and constness of its buffers.
        findings: Those of all schedules, each once.
        counters: Of the first launch.
        outputs: What the kernel may have written, after the first launch.
        notes: What is worth knowing and no finding.
        reason: Why the job could not be run to its end; "" if it could.
        schedules: Those that were run to their end.
        seconds: From the start of the child to its end.
    """

    kernel: str
    parameters: list[dict[str, Any]] = field(default_factory=list)
    findings: list[MergedFinding] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reason: str = ""
    schedules: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def status(self) -> int:
        """The exit status: 0 clean, 1 findings, 2 not runnable."""
        return 1 if self.findings else 2 if self.reason else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = asdict(self)
        data["findings"] = [f.to_dict() for f in self.findings]
        return {"status": self.status, "clean": self.status == 0, **data}


def run_job(job: Job, timeout: float) -> Outcome:
    """Runs ``job`` in a child.

    Args:
        job: What to run.
        timeout: Seconds that one launch may take.
    """
    started = time.monotonic()
    outcome = Outcome(job.kernel)
    merger = _Merger(outcome)
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "steelworks.cli._metal_job"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            env=_environment(),
        )
        assert child.stdin is not None and child.stdout is not None
        events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(child.stdout, events), daemon=True)
        reader.start()
        try:
            _send(child.stdin, job.to_json())
            _follow(events, merger, timeout)
        finally:
            child.kill()
            status = child.wait()
            reader.join()
            child.stdout.close()
        if not merger.ended:
            errors.seek(0)
            merger.crashed(status, errors.read().decode("utf-8", "replace"))
    outcome.seconds = time.monotonic() - started
    return outcome


def _send(stdin: IO[str], text: str) -> None:
    try:
        stdin.write(text)
        stdin.close()
    except BrokenPipeError:
        pass  # it has died already, and how it did is looked at below


def _read(stdout: IO[str], events: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    for line in stdout:
        if line.startswith(PREFIX):
            events.put(json.loads(line[len(PREFIX) :]))
    events.put(None)


def _follow(events: queue.SimpleQueue[dict[str, Any] | None], merger: _Merger, timeout: float) -> None:
    """Takes events until the end, or until the child is silent for too long."""
    while True:
        limit = timeout if merger.running else COMPILE_SECONDS
        try:
            event = events.get(timeout=limit)
        except queue.Empty:
            merger.silent(limit)
            return
        if event is None:
            return
        merger.take(event)


class _Merger:
    """Makes one outcome of the events."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.running = ""
        self.ended = False
        self._found: dict[tuple[Any, ...], int] = {}
        self._digests: dict[int, str] = {}

    def take(self, event: dict[str, Any]) -> None:
        """One event of the child."""
        kind = event["event"]
        if kind == "compiled":
            self.outcome.kernel, self.outcome.parameters = event["kernel"], event["parameters"]
        elif kind == "launch":
            self.running = event["schedule"]
        elif kind == "launched":
            self._launched(event)
        elif kind == "refused":
            self.outcome.reason = event["reason"]
            self.ended = True
        elif kind == "done":
            self.ended = True

    def _launched(self, event: dict[str, Any]) -> None:
        schedule = event["schedule"]
        self.running = ""
        self.outcome.schedules.append(schedule)
        for finding in event["findings"]:
            self._file(finding, schedule)
        if len(self.outcome.schedules) == 1:
            self.outcome.counters, self.outcome.outputs = event["counters"], event["outputs"]
            self._digests = {o["argument"]: o["digest"] for o in event["outputs"]}
            return
        for output in event["outputs"]:
            if self._digests.get(output["argument"]) != output["digest"]:
                note = (
                    f"'{output['name']}' differs between the schedules: "
                    "the result depends on the order of threads"
                )
                if note not in self.outcome.notes:
                    self.outcome.notes.append(note)

    def _file(self, finding: dict[str, Any], schedule: str) -> None:
        """A pair of places counts as one finding, whichever came first."""
        places = sorted(
            str((a["file"], a["line"])) for a in (finding["first"], finding["second"]) if a is not None
        )
        key = (finding["kind"], finding["variable"], *places)
        known = self._found.get(key)
        if known is None:
            self._found[key] = len(self.outcome.findings)
            self.outcome.findings.append(MergedFinding(finding, (schedule,)))
            return
        merged = self.outcome.findings[known]
        if schedule not in merged.schedules:
            self.outcome.findings[known] = MergedFinding(merged.finding, (*merged.schedules, schedule))

    def silent(self, seconds: float) -> None:
        """Nothing came for so long."""
        self.ended = True
        if self.running:
            self.outcome.reason = (
                f"the kernel did not end within {seconds:g} s under schedule {self.running}: it loops "
                "without end, or the "
                "grid is too large for a CPU; try fewer threads, or raise --timeout"
            )
        else:
            self.outcome.reason = f"the compiler did not end within {seconds:g} s"

    def crashed(self, status: int, errors: str) -> None:
        """The child ended before it was done."""
        last = (errors.strip().splitlines() or ["it said nothing"])[-1][:300]
        how = f"ended with status {status}"
        if status < 0:
            try:
                how = f"was ended by {signal.Signals(-status).name}"
            except ValueError:
                how = f"was ended by signal {-status}"
        if not self.running:
            self.outcome.reason = f"the process that compiles and runs the kernel {how}: {last}"
            return
        finding = {
            "kind": "crash", "kernel": self.outcome.kernel, "variable": "", "offset": 0, "bytes": 0,
            "count": 1, "first": None, "second": None,
            "detail": f"the process that ran it {how}; its last words: {last}",
        }  # fmt: skip
        self.outcome.findings.append(MergedFinding(finding, (self.running,)))


def _environment() -> dict[str, str]:
    """This process's environment; the child imports the same ``steelworks``, installed or not."""
    folders = [str(Path(steelworks.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folder for folder in folders if folder)}
