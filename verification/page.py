"""Writes the results as one page of HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Final

from . import show
from .parts import Declared
from .results import FAILED, HOLDS, NOT_CHECKED, Ended, Results

TEMPLATE: Final = Path(__file__).with_name("page.html")
_CLASSES: Final = {HOLDS: "holds", FAILED: "failed", NOT_CHECKED: "unchecked"}


def text(whole: Results, everything: Sequence[Declared]) -> str:
    """The page; what does not hold is open when it is loaded."""
    parts = []
    for one in everything:
        some = [ended for ended in whole.ended if ended.part == one.part.module]
        if some:
            took = (
                f' <span class="soft">{whole.parts[one.part.module]:.0f} s</span>'
                if _timed(whole, one)
                else ""
            )
            parts.append(f"<h2>{escape(one.part.title)}{took}</h2>\n" + "\n".join(map(_claim, some)))
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        verdict=escape(show.verdict(whole)),
        style=("holds", "failed", "unchecked")[whole.status],
        environment=escape(", ".join(f"{key} {value}" for key, value in whole.environment.items())),
        parts="\n".join(parts),
    )


def _timed(whole: Results, one: Declared) -> bool:
    return one.part.module in whole.parts


def _claim(ended: Ended) -> str:
    claim = ended.claim
    code = "<br>".join(f"<code>{escape(name)}</code>" for name in claim.code)
    facts = [
        ("how far", escape(claim.bound)),
        ("counted", escape(claim.counted)),
        ("tool", escape(claim.tool)),
        ("bound to the code by", escape(claim.binding)),
        ("code", code),
        ("assumed", escape(claim.assumes)),
        ("why", f"<pre>{escape(claim.why)}</pre>" if claim.why else ""),
    ]
    shown = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts if value)
    seconds = "" if ended.state == NOT_CHECKED else f"{claim.seconds:.1f} s"
    head = (
        f'<span class="state {_CLASSES[ended.state]}">{ended.state}</span><code>{escape(claim.name)}</code>'
        f'<span>{escape(claim.claim)}</span><span class="soft">{seconds}</span>'
    )
    opened = "" if ended.state == HOLDS else " open"
    return f"<details{opened}><summary>{head}</summary><dl>{shown}</dl></details>"
