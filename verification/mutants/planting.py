"""What plants bugs into copies of the project share: the change of a text, the copy, and a run that can't hang."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_NOT_COPIED: Final = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache", ".hypothesis")


def planted(source: str, file: str, find: str, replace: str, inside: str = "") -> str:
    """``source`` with one piece of its text exchanged.

    Args:
        source: The text of a file.
        file: Its name, for messages.
        find: What must stand there exactly once.
        replace: What stands there instead.
        inside: The function of a Python file (``name`` or ``Class.name``) to look in; "" for the whole file.

    Raises:
        LookupError: the text is not there exactly once, so the entry no longer fits the code.
    """
    start, end = _span(source, inside) if inside else (0, len(source))
    found = source.count(find, start, end)
    if found != 1:
        raise LookupError(f"{find!r} stands {found} times in {inside or file}, not once")
    at = source.index(find, start, end)
    return source[:at] + replace + source[at + len(find) :]


def _span(source: str, name: str) -> tuple[int, int]:
    """Where the function ``name`` starts and ends in ``source``."""
    body: list[ast.stmt] = ast.parse(source).body
    node: ast.stmt | None = None
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        node = next((n for n in body if isinstance(n, kinds) and n.name == part), None)
        if node is None:
            raise LookupError(f"there is no {name}")
        body = getattr(node, "body", [])
    assert node is not None
    lines = source.splitlines(keepends=True)
    return len("".join(lines[: node.lineno - 1])), len("".join(lines[: node.end_lineno]))


def copy_project(target: Path, parts: Iterable[str]) -> None:
    """Copies parts of the project; without compiled files, which could hide a change."""
    for part in parts:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=_NOT_COPIED)
        elif source.exists():
            shutil.copy2(source, target / part)


def run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float
) -> tuple[int | None, str]:
    """Runs a command, with all that it starts ended afterwards: its exit status (None: it hung) and its output."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        # A session of its own, and no pipe: what a bug leaves behind may hang, and must not hold this up.
        running = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdout=output, stderr=output, start_new_session=True
        )
        try:
            status: int | None = running.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        end_group(running.pid)
        running.wait()
        output.seek(0)
        return status, output.read()


def end_group(pid: int) -> None:
    """Ends a process and its session."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
