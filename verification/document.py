"""Writes docs/verification.md: the trust table from the claims, and around it the text of document.md.

In that text ``${name}`` stands for what a claim counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Final

from .claims import Claim
from .parts import Declared
from .results import FAILED, HOLDS, NOT_CHECKED, Ended, Results
from .show import files

TEMPLATE: Final = Path(__file__).with_name("document.md")
_HEAD: Final = (
    "| claim | bound | counted | bound to the code by | assumed | tool |\n|---|---|---|---|---|---|\n"
)


class Text(Template):
    """A template whose names are those of claims, with dots and hyphens."""

    idpattern = r"(?a:[a-z][a-z0-9.-]*)"


def text(whole: Results, everything: Sequence[Declared]) -> str:
    """The whole page.

    Args:
        whole: What became of every claim.
        everything: The parts, for their titles and order.

    Raises:
        KeyError: The template names a claim that there is not.
    """
    found = {ended.claim.name: ended for ended in whole.ended}
    counted = {name: ended.claim.counted or NOT_CHECKED for name, ended in found.items()}
    return Text(TEMPLATE.read_text(encoding="utf-8")).substitute(
        counted, summary=_summary(whole), table=_tables(found, everything), times=_times(whole, everything)
    )


def row(ended: Ended) -> str:
    """The line of the table."""
    claim = ended.claim
    said = f"`{claim.name}`: {claim.claim}"
    if ended.state != HOLDS:
        said = f"**{ended.state}** {said}"
    tool = claim.tool if ended.state == NOT_CHECKED else f"{claim.tool}, {claim.seconds:.0f} s"
    cells = (
        said,
        claim.bound,
        claim.counted,
        f"{claim.binding}: {files([f'`{name}`' for name in claim.code])}",
        claim.assumes,
        tool,
    )
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |\n"


def rows(page: str) -> dict[str, tuple[str, str]]:
    """Bound and count of each claim on a page that :func:`text` made, by name."""
    found = {}
    for line in page.splitlines():
        cells = line.strip("| ").split(" | ")
        named = re.match(r"(?:\*\*.*?\*\* )?`([\w.-]+)`: ", cells[0])
        if line.startswith("| ") and named and len(cells) == 6:
            found[named[1]] = (cells[1], cells[2])
    return found


def declared_row(claim: Claim) -> tuple[str, str]:
    """Bound and the beginning of the count as a page must have them."""
    return _cell(claim.bound), _cell(claim.counted).strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or "-"


def _tables(found: dict[str, Ended], everything: Sequence[Declared]) -> str:
    parts = []
    for one in everything:
        lines = [row(found[claim.name]) for claim in one.claims if claim.name in found]
        if lines:
            parts.append(f"### {one.part.title}\n\n{_HEAD}{''.join(lines)}")
    return "\n".join(parts).rstrip()


def _summary(whole: Results) -> str:
    count = len(whole.ended)
    said = f"{whole.count(HOLDS)} of {count} claims were checked and hold"
    for state in (FAILED, NOT_CHECKED):
        if whole.count(state):
            said += f"; **{whole.count(state)} {state}**"
    which = (
        "the quick set, which does less than the bounds of the full one" if whole.quick else "the full set"
    )
    where = ", ".join(f"{key} {value}" for key, value in whole.environment.items())
    return f"{said} ({which}; {where})."


def _times(whole: Results, everything: Sequence[Declared]) -> str:
    titles = {one.part.module: one.part.title.lower() for one in everything}
    shown = [f"{titles.get(module, module)} {seconds:.0f} s" for module, seconds in whole.parts.items()]
    return ", ".join(shown)


def unchecked(everything: Sequence[Declared]) -> Results:
    """Results in which nothing was checked: for tests of the text."""
    ended = tuple(
        Ended(replace(claim), one.part.module, NOT_CHECKED, False)
        for one in everything
        for claim in one.claims
    )
    return Results(ended, 0.0, {}, {})
