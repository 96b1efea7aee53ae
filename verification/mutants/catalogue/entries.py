"""The entries of the catalogue: what is planted where, and which check must notice."""

from __future__ import annotations

import hashlib
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from verification.mutants import planting

FOLDER: Final = Path(__file__).parent
#: The layers, in the order of the table.
LAYERS: Final = (
    "streams",
    "batching",
    "plans",
    "devices",
    "metal",
    "index",
    "triton",
    "selector",
    "ops",
    "nn",
    "metalsim",
    "evidence",
)
LATE: Final = FOLDER / "late.toml"
#: A check that is no test: a command, run in the copy.
COMMAND: Final = "python -m "
#: Of a layer with at least so many, the sample has two.
_LARGE: Final = 14
#: Seconds for a check, unless the entry says otherwise.
_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Mutant:
    """One planted bug.

    Attributes:
        name: What goes wrong, in a few words joined by hyphens.
        layer: Where; one of LAYERS.
        file: The file it is planted in, from the root of the project.
        find: The text it replaces; there exactly once.
        replace: What stands there instead.
        what: What goes wrong, in a sentence.
        caught_by: The check that must notice: one test, or a command that begins with ``python -m``.
        inside: The function of a Python file to look for ``find`` in; "" for the whole file.
        shows: What the failure must say; needed for a command.
        raises: The exception, where it is one that otherwise counts as a broken mutant, not as a finding.
        hangs: The check notices by its time limit.
        crashes: It ends the check's process by a signal: for kernels that write outside of what is theirs, where
            nothing stands between them and the process's memory.
        seconds: That limit.
        survives: Why nothing notices it; "" for one that must be caught.
        chosen: Of a late one: the test files that were to notice it, chosen before they were run.
        first_run: Of a late one: what became of it in that run: ``"caught"``, ``"survived"`` or ``"crashed"``.
        late: It was written after the checks were done.
    """

    name: str
    layer: str
    file: str
    find: str
    replace: str
    what: str
    caught_by: str = ""
    inside: str = ""
    shows: str = ""
    raises: str = ""
    hangs: bool = False
    crashes: bool = False
    seconds: float = _SECONDS
    survives: str = ""
    chosen: tuple[str, ...] = ()
    first_run: str = ""
    late: bool = False

    @property
    def checks(self) -> tuple[str, ...]:
        """What is run: the named check, or of a late one that has none yet, the chosen files."""
        return (self.caught_by,) if self.caught_by else self.chosen

    def planted(self, root: Path = planting.ROOT) -> str:
        """The text of the file with the bug in it.

        Raises:
            LookupError: the text is not there exactly once.
            SyntaxError: a Python file that does not compile any more.
        """
        source = (root / self.file).read_text(encoding="utf-8")
        text = planting.planted(source, self.file, self.find, self.replace, self.inside)
        if self.file.endswith(".py"):
            compile(text, self.file, "exec")
        return text


def load(folder: Path = FOLDER) -> tuple[Mutant, ...]:
    """All entries: by file, the late ones last.

    Raises:
        ValueError: a name stands twice, or an entry lacks something.
    """
    found: list[Mutant] = []
    for path in sorted(folder.glob("*.toml"), key=lambda p: (p.name == LATE.name, p.name)):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
            found.append(_mutant(entry, path.name == LATE.name))
    twice = [name for name, count in Counter(m.name for m in found).items() if count > 1]
    if twice:
        raise ValueError(f"mutants need names of their own; these stand twice: {', '.join(twice)}")
    return tuple(found)


def _mutant(entry: dict[str, Any], late: bool) -> Mutant:
    mutant = Mutant(**{**entry, "chosen": tuple(entry.get("chosen", ()))}, late=late)
    if mutant.layer not in LAYERS:
        raise ValueError(f"{mutant.name}: there is no layer {mutant.layer!r}; there are {', '.join(LAYERS)}")
    if not mutant.checks:
        raise ValueError(f"{mutant.name}: caught_by names no check")
    if mutant.caught_by.startswith(COMMAND) and not mutant.shows:
        raise ValueError(f"{mutant.name}: a command needs 'shows', what it must say when it fails")
    if mutant.find == mutant.replace:
        raise ValueError(f"{mutant.name}: it changes nothing")
    return mutant


def sample(mutants: Sequence[Mutant]) -> tuple[Mutant, ...]:
    """One of each layer, two of a large one; always the same, as long as the names are."""
    chosen: list[Mutant] = []
    for layer in LAYERS:
        own = [m for m in mutants if m.layer == layer and not m.survives]
        own.sort(key=lambda m: hashlib.sha256(m.name.encode()).hexdigest())
        chosen += own[: 2 if len(own) >= _LARGE else 1]
    return tuple(chosen)
