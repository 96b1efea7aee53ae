"""What the checks are worth: barriers taken out of PTX, and bugs planted in a copy of the kernels."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from verification.mutants.planting import ROOT, copy_project, planted

_FOLDER: Final = Path(__file__).resolve().parent
_KERNELS: Final = "steelworks/kernels/triton"
_SECONDS: Final = 240.0


@dataclass(frozen=True)
class Bug:
    """An entry of planted.toml, which says what its fields are."""

    what: str
    file: str
    find: str
    replace: str
    check: str
    calls: str
    says: str
    inside: str = ""


def bugs() -> list[Bug]:
    """All entries."""
    return [
        Bug(**one) for one in tomllib.loads((_FOLDER / "planted.toml").read_text(encoding="utf-8"))["bug"]
    ]


def run(check: str, calls: str = "", folder: Path = ROOT, seconds: float | None = None) -> dict[str, Any]:
    """A check in a process of its own: what ``python -m verification.triton`` prints.

    Raises:
        RuntimeError: It printed nothing of the kind; the message has its last words.
    """
    search = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "verification.triton", check, calls]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise RuntimeError(f"{' '.join(command[1:])} failed: {done.stderr[-1500:]}") from None
    return found


@contextlib.contextmanager
def copy_with(bug: Bug) -> Iterator[Path]:
    """A copy of the project with the bug in it.

    Raises:
        LookupError: the text is not there exactly once.
    """
    with tempfile.TemporaryDirectory(prefix="steelworks-triton-bug-") as name:
        folder = Path(name)
        copy_project(folder, ("steelworks", "verification"))
        file = folder / _KERNELS / bug.file
        text = file.read_text(encoding="utf-8")
        file.write_text(planted(text, bug.file, bug.find, bug.replace, bug.inside), encoding="utf-8")
        yield folder


def missed(bug: Bug) -> str:
    """Why a planted bug was not noticed as it should be, or ""."""
    try:
        with copy_with(bug) as folder:
            found = run(bug.check, bug.calls, folder, _SECONDS)
    except (LookupError, RuntimeError, subprocess.TimeoutExpired) as problem:
        return f"{bug.what}: {problem}"
    if not any(bug.says in wrong for wrong in found["wrong"]):
        return f"{bug.what}: {bug.check} says {found['wrong'][:2]}, not {bug.says!r}"
    return ""


def without_barrier(ptx: str) -> list[str]:
    """The text with each of its barriers taken out in turn."""
    lines = ptx.splitlines(keepends=True)
    places = [n for n, line in enumerate(lines) if re.match(r"\s*(bar\.sync|barrier\.sync)\b", line)]
    return ["".join(lines[:n] + lines[n + 1 :]) for n in places]
