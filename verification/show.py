"""The results in a terminal: a line for each claim as it ends, then a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from .parts import Declared
from .results import FAILED, HOLDS, NOT_CHECKED, Ended, Results

STYLES: Final = {HOLDS: "green", FAILED: "bold red", NOT_CHECKED: "yellow"}


_MOST_FILES: Final = 4


class Progress:
    """Lines as claims end, and below them what is going on.

    Args:
        console: Where to.
        count: How many claims will end.
    """

    def __init__(self, console: Console, count: int) -> None:
        self._console = console
        self._count = count
        self._status: Status = console.status(self._told(0))

    def _told(self, number: int) -> str:
        return f"{number} of {self._count} claims have ended"

    def __enter__(self) -> Progress:
        self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._status.stop()

    def line(self, ended: Ended, number: int) -> None:
        """Print a claim that has ended, the so manieth."""
        claim = ended.claim
        text = Text(f"{ended.state:11} ", STYLES[ended.state])
        text.append(f"{claim.name:32} ", "bold")
        if ended.state == HOLDS:
            text.append(f"{claim.seconds:7.1f} s  {claim.tool}: {claim.counted}", "default")
        else:
            text.append(claim.why, "default")
        self._console.print(text, soft_wrap=True, highlight=False)
        self._status.update(self._told(number))


def summary(console: Console, whole: Results, everything: Sequence[Declared]) -> None:
    """Print the table, what failed, the time of each part, and a verdict."""
    table = Table(title="what was checked", show_lines=True, expand=True)
    for heading, ratio in (("claim", 5), ("how far", 5), ("tool", 2), ("bound to the code by", 5)):
        table.add_column(heading, ratio=ratio, overflow="fold")
    table.add_column("result", no_wrap=True)
    for ended in whole.ended:
        claim = ended.claim
        table.add_row(
            Text.assemble((claim.name, "bold"), f"\n{claim.claim}"),
            Text(_joined(claim.bound, claim.counted)),
            Text(claim.tool),
            Text(f"{claim.binding}: {files(claim.code)}"),
            Text.assemble((ended.state, STYLES[ended.state]), _took(ended)),
        )
    console.print(table)
    titles = {one.part.module: one.part.title for one in everything}
    for module, seconds in whole.parts.items():
        note(console, f"  {titles.get(module, module):36} {seconds:7.1f} s")
    for (state, why), names in _troubles(whole).items():
        note(console, f"{state}: {', '.join(names)}: {why}", STYLES[state])
    note(console, verdict(whole), "bold green" if whole.status == 0 else "bold red")


def verdict(whole: Results) -> str:
    """The last line."""
    count = len(whole.ended)
    said = f"{whole.count(HOLDS)} of {count} claims were checked and hold"
    if whole.count(FAILED):
        said += f", {whole.count(FAILED)} FAILED"
    if whole.count(NOT_CHECKED):
        said += f", {whole.count(NOT_CHECKED)} not checked as a tool is missing"
    which = "quick set" if whole.quick else "full set"
    return f"verdict: {said} ({which}, {whole.seconds:.0f} s)"


def listing(console: Console, wanted: Sequence[tuple[Declared, tuple[str, ...]]]) -> None:
    """Print the names of claims, by part."""
    for one, names in wanted:
        note(console, f"{one.part.title} ({one.part.module})", "bold")
        for claim in one.claims:
            if claim.name in names:
                note(console, f"  {claim.name:32} {claim.claim}")


def files(code: Sequence[str]) -> str:
    """Names of files; of many, the first."""
    more = len(code) - _MOST_FILES
    return ", ".join(code[:_MOST_FILES]) + (f" and {more} more" if more > 0 else "")


def _troubles(whole: Results) -> dict[tuple[str, str], list[str]]:
    """What does not hold: the claims by their state and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for ended in whole.ended:
        if ended.state != HOLDS:
            found.setdefault((ended.state, ended.claim.why), []).append(ended.claim.name)
    return found


def _took(ended: Ended) -> str:
    return "" if ended.state == NOT_CHECKED else f"\n{ended.claim.seconds:.1f} s"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def note(console: Console, text: str, style: str | None = None) -> None:
    """Print a line as it is, however long."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
