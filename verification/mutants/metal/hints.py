"""Which case caught each mutant last: it is tried first. A hint that is wrong or missing costs time, nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

HINTS: Final = Path(__file__).with_name("caught_by.json")


def read_hints(path: Path = HINTS) -> dict[str, str]:
    """The case of each mutant, both by id; nothing if there is no such file."""
    if not path.is_file():
        return {}
    by_case: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return {mutant: case for case, mutants in by_case.items() for mutant in mutants}


def write_hints(hints: Mapping[str, str], path: Path = HINTS) -> None:
    """Writes them by case, in order."""
    by_case: dict[str, list[str]] = {}
    for mutant, case in sorted(hints.items()):
        by_case.setdefault(case, []).append(mutant)
    text = json.dumps(dict(sorted(by_case.items())), indent=1)
    path.write_text(text + "\n", encoding="utf-8")
