"""Runs pytest many times without importing torch each time: a process that has it forks for each run.

A run of one test takes seconds of imports and milliseconds of test. Steelworks itself is imported by each fork anew,
from the folder that it is told: that is what is under test.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

#: What is imported once. None of these may import steelworks.
_ONCE: Final = (
    "torch",
    "numpy",
    "hypothesis",
    "pytest",
    "pytest_timeout",
    "unittest.mock",
    "prometheus_client",
)
_POLL: Final = 0.02  # seconds


class Forks:
    """The process that forks; use it in a ``with`` block."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "verification.mutants.forks"],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def pytest(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float
    ) -> tuple[int | None, str]:
        """Runs pytest in ``folder``; its exit status (None: it took longer than ``seconds``) and what it printed.

        Whatever it started and left running in its session is ended with it.

        Raises:
            RuntimeError: The process that forks has died.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.TemporaryDirectory(prefix="fork-") as place:
            output = Path(place) / "output"
            asked = {
                "arguments": list(arguments),
                "folder": str(folder),
                "environment": dict(environment),
                "seconds": seconds,
                "output": str(output),
            }
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            if not answer:
                raise RuntimeError(f"the process that forks has died (exit status {self._process.wait()})")
            return json.loads(answer)["status"], output.read_text(encoding="utf-8", errors="replace")


def main() -> int:
    """Forks for each line of standard input; answers with a line."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # As tests/conftest.py does: triton, which comes with some of these, reads it when it is imported.
    if not importlib.import_module("torch").cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    for name in _ONCE:
        try:
            importlib.import_module(name)
        except ImportError:
            pass  # a run that needs it will say so
    gc.freeze()  # pytest collects garbage in each run, and this is none
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_child(asked))
        answers.write(json.dumps({"status": _wait(child, asked["seconds"])}) + "\n")
        answers.flush()
    return 0


def _child(asked: dict[str, Any]) -> int:
    os.setsid()
    output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(file, number)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.dont_write_bytecode = True
    here = str(Path(__file__).resolve().parents[2])
    sys.path[:] = [asked["folder"], *(path for path in sys.path if path not in ("", here))]
    importlib.invalidate_caches()
    import pytest

    try:
        status = int(pytest.main(asked["arguments"]))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _wait(child: int, seconds: float) -> int | None:
    """The child's exit status, as a shell has it; None if it had to be ended."""
    end = time.monotonic() + seconds
    status: int | None = None
    while True:
        done, how = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(how)
            break
        if time.monotonic() > end:
            break
        time.sleep(_POLL)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if not done:
        os.waitpid(child, 0)
    return status


if __name__ == "__main__":
    sys.exit(main())
