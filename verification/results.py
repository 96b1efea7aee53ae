"""What became of the claims: kept, written as JSON and read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .claims import Claim
from .parts import ROOT, Declared

HOLDS, FAILED, NOT_CHECKED = "holds", "FAILED", "not checked"


class ResultsError(Exception):
    """Results that were written earlier can't be used; the message says why and what to do."""


@dataclass(frozen=True)
class Ended:
    """A claim that has ended, or could not begin.

    Attributes:
        claim: With its result; as declared where it was not checked.
        part: The module of its part.
        state: HOLDS, FAILED or NOT_CHECKED.
        quick: It was checked as the quick set does.
    """

    claim: Claim
    part: str
    state: str
    quick: bool


@dataclass(frozen=True)
class Results:
    """All claims of a run, in the order of the parts.

    Attributes:
        ended: One for each claim.
        seconds: Of the whole run, by the clock.
        parts: Seconds of each part, by its module.
        environment: Versions and machine.
    """

    ended: tuple[Ended, ...]
    seconds: float
    parts: dict[str, float]
    environment: dict[str, str]

    def count(self, state: str) -> int:
        """How many claims are in a state."""
        return sum(ended.state == state for ended in self.ended)

    @property
    def status(self) -> int:
        """0 if all hold; 1 if one fails; 2 if one was not checked. Nothing at all is a failure too."""
        if self.count(FAILED) or not self.ended:
            return 1
        return 2 if self.count(NOT_CHECKED) else 0

    @property
    def quick(self) -> bool:
        """Whether any claim was checked as the quick set does."""
        return any(ended.quick for ended in self.ended)

    def as_json(self) -> str:
        """Everything, with a hash of the code that each claim speaks of."""
        claims = [
            {
                **asdict(ended.claim),
                "part": ended.part,
                "state": ended.state,
                "quick": ended.quick,
                "code_sha256": digest(ended.claim.code),
            }
            for ended in self.ended
        ]
        whole = {
            "passed": self.status == 0,
            "holds": self.count(HOLDS),
            "failed": self.count(FAILED),
            "not_checked": self.count(NOT_CHECKED),
            "seconds": round(self.seconds, 1),
            "environment": self.environment,
            "parts": {name: round(seconds, 1) for name, seconds in self.parts.items()},
            "claims": claims,
        }
        return json.dumps(whole, indent=1) + "\n"


def digest(code: Sequence[str], root: Path = ROOT) -> str:
    """A hash of files, named from the root; of a folder, of all files in it."""
    made = hashlib.sha256()
    for name in code:
        path = root / name
        files = (
            sorted(p for p in path.rglob("*") if "__pycache__" not in p.parts) if path.is_dir() else [path]
        )
        for file in files:
            if file.is_file():
                made.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return made.hexdigest()


@dataclass(frozen=True)
class Earlier:
    """What earlier runs checked and still holds of the code as it is.

    Attributes:
        ended: By the claim's name.
        parts: Seconds of each part, by its module.
        stale: Claims whose code is not what it was, by the file that has them: those have to be run again.
    """

    ended: dict[str, Ended]
    parts: dict[str, float]
    stale: dict[str, Path]


def read(files: Iterable[Path], everything: Sequence[Declared]) -> Earlier:
    """What files that ``--json`` wrote have; of a claim that stands in several, the last.

    Raises:
        ResultsError: A file can't be read.
    """
    known = {claim.name: claim for one in everything for claim in one.claims}
    found = Earlier({}, {}, {})
    for file in files:
        try:
            whole = json.loads(file.read_text(encoding="utf-8"))
            for entry in whole["claims"]:
                name = entry["name"]
                if entry["state"] == NOT_CHECKED or name not in known:
                    continue
                if entry["code_sha256"] != digest(known[name].code):
                    found.stale[name] = file
                else:
                    found.ended[name] = _read_claim(entry)
            found.parts.update(whole["parts"])
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise ResultsError(
                f"{file} is no file that --json wrote ({type(problem).__name__}: {problem})"
            ) from None
    return found


def _read_claim(entry: dict[str, Any]) -> Ended:
    given = {field.name: entry[field.name] for field in fields(Claim) if field.name != "in_quick"}
    claim = Claim(**given, in_quick=entry.get("in_quick", True))
    return Ended(replace(claim, code=tuple(claim.code)), entry["part"], entry["state"], entry["quick"])
