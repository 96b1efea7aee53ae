"""Checks Lean text, and reads what Lean says of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from . import toolchain
from .toolchain import Lean

FOLDER: Final = Path(__file__).parent
#: The theories, independent of each other.
THEORIES: Final = ("Gemm", "SplitK", "Softmax", "Batch", "Chooser", "Paths", "Locks")
_LIMIT: Final = 900.0  # seconds for one run
_END: Final = "steelworksEnd"
# Every warning counts as an error: sorry is only a warning. All errors are told: planted ones make more than a hundred.
_ARGUMENTS: Final = ("-j1", "--json", "-DwarningAsError=true", "-DmaxErrors=0")


class LeanFailed(RuntimeError):
    """Lean did not come to the end of a file: it crashed, or took too long."""


@dataclass(frozen=True)
class Message:
    """What Lean says of a place in the text.

    Attributes:
        line: from 1.
        severity: ``"error"`` or ``"information"``.
        text: what it says.
    """

    line: int
    severity: str
    text: str


@dataclass(frozen=True)
class Report:
    """What a run of Lean gave.

    Attributes:
        messages: all, in order.
        seconds: wall-clock time.
        lean: which Lean it was.
        names: bytes of the compiled file, in which the names of all constants stand; empty if there were errors.
    """

    messages: tuple[Message, ...]
    seconds: float
    lean: Lean
    compiled: bytes = field(repr=False, default=b"")

    @property
    def errors(self) -> tuple[Message, ...]:
        """The messages that are errors."""
        return tuple(m for m in self.messages if m.severity == "error")


@dataclass(frozen=True)
class Part:
    """A piece of a text that is checked as one file.

    Attributes:
        name: what it is.
        text: Lean, complete in itself.
    """

    name: str
    text: str


def source(theory: str) -> str:
    """The text of a theory."""
    return (FOLDER / f"{theory}.lean").read_text(encoding="utf-8")


def check(text: str, lean: Lean | None = None) -> Report:
    """Checks a text as one file.

    Raises:
        LeanMissing: there is no Lean.
        LeanFailed: it did not come to the end.
    """
    lean = toolchain.find() if lean is None else lean
    ended = f"\ntheorem {_END} : True := trivial\n#check @{_END}\n"
    with tempfile.TemporaryDirectory(prefix="steelworks-lean-") as name:
        folder = Path(name)
        (folder / "Checked.lean").write_text(text + ended, encoding="utf-8")
        started = time.monotonic()
        try:
            said = subprocess.run(
                (*lean.command, *_ARGUMENTS, "-o", "Checked.olean", "Checked.lean"),
                cwd=folder,
                env=_environment(lean, folder),
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=_LIMIT,
            )
        except subprocess.TimeoutExpired as problem:
            raise LeanFailed(f"Lean did not end within {_LIMIT:.0f} s") from problem
        seconds = time.monotonic() - started
        messages = tuple(_messages(said.stdout))
        if not any(m.severity == "information" and _END in m.text for m in messages):
            raise LeanFailed(
                f"Lean ended with {said.returncode} before the end of the file, and said: "
                f"{_tail(said.stdout)} {_tail(said.stderr)}"
            )
        compiled = b"".join(path.read_bytes() for path in sorted(folder.glob("Checked.olean*")))
    messages = tuple(m for m in messages if _END not in m.text)
    report = Report(messages, seconds, lean, compiled)
    if said.returncode and not report.errors:
        raise LeanFailed(f"Lean ended with {said.returncode} without an error: {_tail(said.stderr)}")
    return report


def check_parts(parts: Sequence[Part], lean: Lean | None = None) -> tuple[Report, dict[str, list[Message]]]:
    """Checks several texts as one file, which costs one start. Returns the messages of each, with its own lines."""
    text, begins = "", []
    for part in parts:
        begins.append(text.count("\n"))
        text += part.text.rstrip("\n") + "\n\n"
    report = check(text, lean)
    found: dict[str, list[Message]] = {part.name: [] for part in parts}
    for message in report.messages:
        place = max(i for i, begin in enumerate(begins) if begin < message.line)
        found[parts[place].name].append(Message(message.line - begins[place], message.severity, message.text))
    return report, found


def _environment(lean: Lean, folder: Path) -> dict[str, str]:
    environment = dict(os.environ)
    if lean.library is not None:
        mounts = [[toolchain.LIBRARY_AT, str(lean.library)], [toolchain.WORK_AT, str(folder)]]
        environment |= {
            "LEAN_MOUNTS": json.dumps(mounts),
            "LEAN_CWD": toolchain.WORK_AT,
            "LEAN_PATH": toolchain.LIBRARY_AT,
            "NODE_OPTIONS": "",
        }
    return environment


def _messages(output: str) -> Iterator[Message]:
    for line in output.splitlines():
        if not line.startswith("{"):
            continue  # this build also says what it is doing
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if "severity" in said and "data" in said:
            yield Message(int(said["pos"]["line"]), said["severity"], said["data"])


def _tail(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("[DEBUG")]
    return " / ".join(lines[-5:])[-500:]


@dataclass(frozen=True)
class Theorem:
    """A theorem of a theory.

    Attributes:
        theory: its file, without the ending.
        name: without its namespace.
        says: its docstring, which names what of the code it speaks of; empty for a lemma.
        line: where it begins.
    """

    theory: str
    name: str
    says: str
    line: int

    @property
    def full_name(self) -> str:
        """With its namespace."""
        return f"Steelworks.{self.theory}.{self.name}"


_THEOREM: Final = re.compile(
    r"^(?:/--(?P<says>(?:(?!-/).)*)-/\n)?theorem (?P<name>[\w.']+)", re.MULTILINE | re.DOTALL
)


def theorems(theory: str) -> tuple[Theorem, ...]:
    """The theorems of a theory, in order."""
    text = source(theory)
    return tuple(
        Theorem(
            theory, m["name"], " ".join((m["says"] or "").split()), text.count("\n", 0, m.start("name")) + 1
        )
        for m in _THEOREM.finditer(text)
    )
