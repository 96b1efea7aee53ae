"""Mistakes of the guard: planted in its text one at a time, each to be noticed by the scene that is named beside it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .build import Workshop
from .run import CLEAN, DEADLOCK, PATIENCE, Outcome, run

LIST: Final = Path(__file__).with_name("planted.toml")
#: Encoders that the scene "each" leaves open.
OPEN_AFTER_EACH: Final = 16
#: Seconds without a step after which a scene that must end in a deadlock has done so.
_PATIENCE: Final = 2.0
_TRIES: Final = 5  # of a scene with a mistake in it
_ROW: Final = re.compile(
    r"M\((\w+), (MAKE|USE|END|GONE|INNER), \w+, \w+,[\s\\]*\"([\w:]+)\".*?GIVES\([\w, ]*\)\)", re.S
)


@dataclass(frozen=True)
class Mistake:
    """A mistake of the guard.

    Attributes:
        name: what is wrong.
        scene: which must notice.
        ends: how that scene ends then.
        edits: texts of guard.m and what stands there instead.
        without: roles of methods that are not guarded.
        kind: the build that it is run in.
        refused: calls that are dropped although they are fine, where the scene ends well.
        differs: whether other arguments arrive, where the scene ends well.
    """

    name: str
    scene: str
    ends: str
    edits: tuple[tuple[str, str], ...] = ()
    without: tuple[str, ...] = ()
    kind: str = "plain"
    refused: int = 0
    differs: bool = False


@dataclass(frozen=True)
class Method:
    """A row of guard.m's table of methods."""

    name: str
    role: str
    selector: str
    text: str


def mistakes() -> tuple[Mistake, ...]:
    """All of the list."""
    entries = tomllib.loads(LIST.read_text(encoding="utf-8"))["mistake"]
    return tuple(
        Mistake(
            **{
                **entry,
                "edits": tuple(tuple(edit) for edit in entry.get("edits", ())),
                "without": tuple(entry.get("without", ())),
            }
        )
        for entry in entries
    )


def methods(guard: str) -> tuple[Method, ...]:
    """The methods that ``guard`` replaces."""
    return tuple(Method(row[1], row[2], row[3], row[0]) for row in _ROW.finditer(guard))


def planted(guard: str, mistake: Mistake) -> str:
    """The text of the guard with the mistake in it.

    Raises:
        LookupError: an edit's text does not stand there exactly once: the list no longer fits the guard.
    """
    for find, replace in mistake.edits:
        if guard.count(find) != 1:
            raise LookupError(
                f"{find!r} stands {guard.count(find)} times in guard.m; once is needed: mend {LIST.name}"
            )
        guard = guard.replace(find, replace)
    return left_out(guard, (row for row in methods(guard) if row.role in mistake.without))


def left_out(guard: str, rows: Iterable[Method]) -> str:
    """The text of the guard without some of its methods."""
    for row in rows:
        guard = guard.replace(row.text, "/* left out */" + "\\\n" * row.text.count("\n"))
    return guard


@dataclass(frozen=True)
class Verdict:
    """What came of a mistake.

    Attributes:
        name: of the mistake.
        noticed: the scene ended as it must with this mistake.
        shown: how it ended.
        seconds: wall clock.
    """

    name: str
    noticed: bool
    shown: str
    seconds: float


def notice(shop: Workshop, guard: str, mistake: Mistake, arguments: str = "") -> Verdict:
    """Run the scene that must notice a mistake.

    Args:
        shop: where it is built.
        guard: the text of the guard as it is shipped.
        mistake: what is planted.
        arguments: what the scene ``arguments`` prints without the guard.
    """
    program = shop.program(planted(guard, mistake), mistake.kind).result()
    # The scene about installing does that itself.
    patience = _PATIENCE if mistake.ends == DEADLOCK else PATIENCE
    # Two threads have to meet in the driver, which on a busy machine may not happen every time.
    for _ in range(1 if mistake.ends == CLEAN else _TRIES):
        outcome = run(program, mistake.scene, mistake.scene != "uninstall", patience)
        noticed = outcome.ended == mistake.ends
        if noticed:
            break
    if mistake.ends == CLEAN:
        noticed = noticed and (
            arrived(outcome) != arguments if mistake.differs else mistake.refused == outcome.refused
        )
    return Verdict(mistake.name, noticed, _shown(outcome), outcome.seconds)


def build_left_out(shop: Workshop, guard: str, row: Method) -> Future[Path]:
    """Begin to build the guard without a method."""
    return shop.program(left_out(guard, (row,)), "plain" if row.role == "END" else "tsan")


def notice_left_out(shop: Workshop, guard: str, row: Method) -> Verdict:
    """A method is not guarded: two threads that call it in turn must race, or use an encoder after its end.

    That memory is given back without the guard shows in its books at least.
    """
    program = build_left_out(shop, guard, row).result()
    outcome = run(program, "stale" if row.role == "END" else "each", True)
    noticed = outcome.ended != CLEAN or outcome.open != OPEN_AFTER_EACH
    return Verdict(f"{row.selector} is left out", noticed, _shown(outcome), outcome.seconds)


def arrived(outcome: Outcome) -> str:
    """The arguments that reached the driver's methods, in the scene ``arguments``."""
    return "\n".join(line for line in outcome.said.splitlines() if line.startswith("argument "))


def _shown(outcome: Outcome) -> str:
    told = [line for line in outcome.said.splitlines() if "FAILED" in line or "SUMMARY" in line]
    books = f", {outcome.open} open" if outcome.ended == CLEAN else ""
    return f"{outcome.scene}: {outcome.ended}{books}" + (
        f" ({told[0].split(' (/')[0].strip()})" if told else ""
    )
