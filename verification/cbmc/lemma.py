"""Lemmas about the index headers, proven by z3 over integers without bounds, with the headers' own text as functions.

CBMC is blind where sizes multiply (a symbolic stride, a division by a symbolic size); these are the places that this
module covers. A lemma gives names to sizes, states what the host function guarantees, calls functions of the headers
and states goals. Proven are: each goal, that no operation overflows its type, and that what is given can be had at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import z3  # type: ignore[import-untyped]

from . import header
from .header import Reader

#: Extents, and strides: what fits the parameter structs (steelworks/kernels/metal/_launch.py: _fits_int32).
EXTENT: Final = 2**30
INT: Final = 2**31 - 1
_MILLISECONDS: Final = 60_000  # for one goal: many times what it takes, as a busy machine is slow

Build = Callable[["Proof"], None]


@dataclass(frozen=True)
class Lemma:
    """A lemma.

    Attributes:
        family: Whose header it speaks of.
        name: Within the family.
        says: What is proven, in words.
        build: Fills a proof.
    """

    family: str
    name: str
    says: str
    build: Build

    @property
    def full_name(self) -> str:
        """With the family."""
        return f"{self.family}.{self.name}"


@dataclass(frozen=True)
class Proven:
    """What came of a lemma.

    Attributes:
        name: The lemma.
        says: What it says.
        failed: The goals and obligations that do not hold or could not be decided; empty if all is proven.
        goals: How many there were.
        seconds: Wall clock.
    """

    name: str
    says: str
    failed: tuple[str, ...]
    goals: int
    seconds: float


@dataclass
class Proof:
    """Names, premises and goals of a lemma, while it is built."""

    reader: Reader
    premises: list[Any] = field(default_factory=list)
    goals: list[tuple[str, Any]] = field(default_factory=list)
    hints: list[Any] = field(default_factory=list)

    def size(self, name: str, least: int = 1, most: int = EXTENT) -> Any:
        """A whole number within limits."""
        made = z3.Int(name)
        self.premises.append(z3.And(made >= least, made <= most))
        return made

    def below(self, name: str, end: Any) -> Any:
        """An index: at least 0, and below ``end``."""
        made = z3.Int(name)
        self.premises.append(z3.And(made >= 0, made < end))
        return made

    def given(self, premise: Any, why: str) -> None:
        """A premise, with the line of the host or of the kernel that sees to it."""
        assert why, "a premise needs its reason"
        self.premises.append(premise)

    def call(self, name: str, *arguments: Any) -> Any:
        """What a function of the header returns."""
        return self.reader.call(name, arguments)

    def goal(self, text: str, holds: Any) -> None:
        """To be proven."""
        self.goals.append((text, holds))

    # Instances of facts that are lemmas of their own (family "arithmetic"); z3 does not find them by itself.
    def divides(self, number: Any, by: Any, quotient: Any, rest: Any) -> None:
        """``number`` is ``quotient * by + rest`` with 0 <= rest < by: so that is its division."""
        self.hints.append(euclid(number, by, quotient, rest))

    def within(self, row: Any, column: Any, rows: Any, columns: Any) -> None:
        """row * columns + column is below rows * columns."""
        self.hints.append(offset(row, column, rows, columns))

    def unique(self, row: Any, column: Any, other_row: Any, other_column: Any, columns: Any) -> None:
        """Different (row, column) have different offsets."""
        self.hints.append(apart(row, column, other_row, other_column, columns))

    def product(self, a: Any, b: Any, most_a: Any, most_b: Any) -> None:
        """0 <= a * b <= most_a * most_b."""
        self.hints.append(bounded(a, b, most_a, most_b))

    def divided(self, number: Any, by: Any) -> None:
        """What a division of a number that is not negative gives."""
        self.hints.append(division(number, by))

    def known(self) -> list[Any]:
        """All that a goal may rest on."""
        return self.premises + self.hints


def euclid(number: Any, by: Any, quotient: Any, rest: Any) -> Any:
    """The quotient of a division is the only one with such a rest."""
    return z3.Implies(
        z3.And(by > 0, rest >= 0, rest < by, number == quotient * by + rest), number / by == quotient
    )


def division(number: Any, by: Any) -> Any:
    """A quotient times the divisor is the number without the rest."""
    taken = number / by
    return z3.Implies(
        z3.And(number >= 0, by > 0),
        z3.And(taken >= 0, taken <= number, taken * by <= number, number < taken * by + by),
    )


def offset(row: Any, column: Any, rows: Any, columns: Any) -> Any:
    """The linear-offset lemma."""
    return z3.Implies(
        z3.And(row >= 0, row < rows, column >= 0, column < columns),
        z3.And(row * columns + column >= 0, row * columns + column < rows * columns),
    )


def apart(row: Any, column: Any, other_row: Any, other_column: Any, columns: Any) -> Any:
    """Linear offsets tell places apart."""
    return z3.Implies(
        z3.And(
            column >= 0,
            column < columns,
            other_column >= 0,
            other_column < columns,
            row * columns + column == other_row * columns + other_column,
        ),
        z3.And(row == other_row, column == other_column),
    )


def bounded(a: Any, b: Any, most_a: Any, most_b: Any) -> Any:
    """A product of bounded factors is bounded."""
    return z3.Implies(
        z3.And(a >= 0, a <= most_a, b >= 0, b <= most_b), z3.And(a * b >= 0, a * b <= most_a * most_b)
    )


def paths(family: str, root: Path) -> list[Path]:
    """The headers whose functions a family's lemmas may call."""
    own = [] if family in ("arithmetic", "steel") else [root / family / "index.h"]
    more = {"scan": ["reduce"], "topk": ["sort"]}.get(family, [])
    shared = [root / "include" / "steel" / name for name in ("index.h", "lines.h")]
    return shared + [root / name / "index.h" for name in more] + own


def prove(lemma: Lemma, root: Path = header.ROOT) -> Proven:
    """Proves a lemma about the headers under ``root``."""
    started = time.monotonic()
    proof: Proof

    def never_negative(term: Any, when: Any) -> bool:
        return _holds(proof.known(), z3.Implies(when, term >= 0), 2_000)

    proof = Proof(Reader(header.read(paths(lemma.family, root)), never_negative))
    lemma.build(proof)
    goals = list(proof.goals)
    # The same operation is met on many ways; each is proven once.
    for duty in {(o.text, str(o.when), str(o.holds)): o for o in proof.reader.obligations}.values():
        goals.append((duty.text, z3.Implies(duty.when, duty.holds)))
    failed = [
        f"{text}: {_counterexample(proof.premises, holds)}"
        for text, holds in goals
        if not _holds(proof.known(), holds, _MILLISECONDS)
    ]
    if not _possible(proof.premises):
        failed.append("what is given is shown to be possible")
    return Proven(lemma.full_name, lemma.says, tuple(failed), len(goals), time.monotonic() - started)


def _holds(premises: Sequence[Any], goal: Any, milliseconds: int) -> bool:
    # Products as unknowns first: with the hints that is mostly enough, and quick. It proves no more than is true.
    for products_too in (False, True):
        solver = z3.Solver()
        solver.set("timeout", milliseconds)
        solver.set("arith.nl", products_too)
        solver.add(*premises, z3.Not(goal))
        if solver.check() == z3.unsat:
            return True
    return False


UNDECIDED: Final = "z3 does not decide it"


def _counterexample(premises: Sequence[Any], goal: Any) -> str:
    """Numbers for which a goal does not hold; small ones, if there are."""
    numbers = sorted({n for term in (*premises, goal) for n in _numbers(term)})
    for most in (1, 3, 8, 70, None):
        solver = z3.Solver()
        solver.set("timeout", 2_000)
        solver.add(*premises, z3.Not(goal))
        if most is not None:
            solver.add(*(z3.Int(n) <= most for n in numbers))
        if solver.check() == z3.sat:
            model = solver.model()
            return "not so for " + ", ".join(f"{n} = {model.eval(z3.Int(n))}" for n in numbers)
    return UNDECIDED


def _possible(premises: Sequence[Any]) -> bool:
    numbers = {n for premise in premises for n in _numbers(premise)}
    for most in (1, 2, 8, 70, None):  # small numbers are found sooner
        solver = z3.Solver()
        solver.set("timeout", _MILLISECONDS)
        solver.add(*premises)
        if most is not None:
            solver.add(*(z3.Int(n) <= most for n in numbers))
        if solver.check() == z3.sat:
            return True
    return False


def _numbers(term: Any) -> set[str]:
    if z3.is_const(term) and term.decl().kind() == z3.Z3_OP_UNINTERPRETED:
        return {str(term)} if z3.is_int(term) else set()
    return {n for child in term.children() for n in _numbers(child)}


LEMMAS: dict[str, Lemma] = {}


def lemma(family: str, says: str) -> Callable[[Build], Build]:
    """Adds a function that builds a proof to the lemmas, under its own name."""

    def add(build: Build) -> Build:
        made = Lemma(family, build.__name__.removeprefix(f"_{family}_"), says, build)
        assert made.full_name not in LEMMAS, made.full_name
        LEMMAS[made.full_name] = made
        return build

    return add


def all_lemmas() -> Mapping[str, Lemma]:
    """All lemmas by their full name."""
    from . import lemmas_products, lemmas_rows  # they add themselves

    assert lemmas_products and lemmas_rows
    return LEMMAS


@lemma(
    "arithmetic",
    "row * ld + col < rows * ld for row < rows, col < ld; and different places have different offsets",
)
def _arithmetic_linear_offset(p: Proof) -> None:
    row, column, other, beside, rows, columns = z3.Ints("row column other beside rows columns")
    p.goal("offset", offset(row, column, rows, columns))
    p.goal("apart", apart(row, column, other, beside, columns))


@lemma("arithmetic", "the facts about products and divisions that other lemmas use")
def _arithmetic_products(p: Proof) -> None:
    a, b, c, d = z3.Ints("a b c d")
    p.goal("euclid", euclid(a, b, c, d))
    p.goal("division", division(a, b))
    p.goal("bounded", bounded(a, b, c, d))
