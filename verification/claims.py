"""What every part of the evidence returns: claims, each with what was checked, how far, and what binds it to the code.

A part of the evidence is a module with a function ``claims(quick: bool) -> Iterator[Claim]`` that runs its checks and
yields one :class:`Claim` for each property as it ends, and with ``declared() -> tuple[Claim, ...]``, which says what
those will be without running anything (parts.py lists the parts, and says more). ``steelworks verify`` runs the parts,
prints the table and writes docs/verification.md, JSON and a page from them; nothing in those is written by hand.
"""

from __future__ import annotations

from dataclasses import dataclass


class ToolMissing(Exception):
    """A part could not be checked. The message names the tool and how to install it."""


@dataclass(frozen=True)
class Claim:
    """One property and what became of it.

    Attributes:
        name: Unique, with dots: ``tla.stream-pool``. ``--only`` selects by any part of it.
        claim: The property, in a sentence.
        tool: What checked it, with its version: ``TLC 2.15``.
        bound: How far: sizes, threads, rows of a table; "any" where it is proven for all.
        counted: What was done, in figures: states, edges, cases, mutants.
        binding: What ties it to the running code.
        code: The files it speaks of, from the root of the project; each exists.
        assumes: What is taken for granted.
        passed: Whether the property holds, with the figures that are pinned.
        seconds: Wall-clock time.
        why: Where it did not pass: the first thing that went wrong.
        in_quick: It belongs to the quick set, too.
    """

    name: str
    claim: str
    tool: str
    bound: str
    counted: str
    binding: str
    code: tuple[str, ...]
    assumes: str
    passed: bool
    seconds: float
    why: str = ""
    in_quick: bool = True


def declare(
    name: str,
    claim: str,
    *,
    tool: str,
    bound: str,
    binding: str,
    code: tuple[str, ...],
    assumes: str,
    counted: str = "",
    in_quick: bool = True,
) -> Claim:
    """A claim before it is checked: what a part's ``declared()`` returns (parts.py).

    ``bound`` is the full set's; ``counted`` is the beginning of what will be counted, as far as the code pins it.
    """
    return Claim(name, claim, tool, bound, counted, binding, code, assumes, False, 0.0, in_quick=in_quick)
