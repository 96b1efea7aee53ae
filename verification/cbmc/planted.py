"""Plants bugs in a copy of the index headers, one at a time, and has the named check or lemma refute each."""

from __future__ import annotations

import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import header, lemma, run

LIST: Final = Path(__file__).with_name("planted.toml")


@dataclass(frozen=True)
class Bug:
    """A change of a header that a proof must refute.

    Attributes:
        file: The header, below ``steelworks/kernels/metal``.
        old: Text that stands there exactly once.
        new: What is planted.
        caught_by: ``"family/check"`` of CBMC, or ``"lemma name"`` of z3.
        what: The mistake, in words.
    """

    file: str
    old: str
    new: str
    caught_by: str
    what: str


@dataclass(frozen=True)
class Refutation:
    """What came of a bug.

    Attributes:
        bug: Which.
        refuted: There is a counterexample.
        shown: The first thing that does not hold.
    """

    bug: Bug
    refuted: bool
    shown: str


def bugs() -> tuple[Bug, ...]:
    """All of them."""
    with LIST.open("rb") as text:
        return tuple(Bug(**entry) for entry in tomllib.load(text)["bug"])


@contextmanager
def tree(bug: Bug) -> Iterator[Path]:
    """A copy of the headers with the bug in it.

    Raises:
        ValueError: The text to be changed does not stand there exactly once.
    """
    with tempfile.TemporaryDirectory(prefix="steelworks-planted-") as name:
        root = Path(name)
        for path in header.ROOT.rglob("*.h"):
            target = root / path.relative_to(header.ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        text = (root / bug.file).read_text(encoding="utf-8")
        if text.count(bug.old) != 1:
            raise ValueError(
                f"{bug.file} has {bug.old!r} {text.count(bug.old)} times; once is needed: mend {LIST.name}"
            )
        (root / bug.file).write_text(text.replace(bug.old, bug.new), encoding="utf-8")
        yield root


def refute(bug: Bug) -> Refutation:
    """Plants a bug and runs what must catch it."""
    with tree(bug) as root:
        kind, _, name = bug.caught_by.partition(" ")
        if kind == "lemma":
            failed = lemma.prove(lemma.all_lemmas()[name], root).failed
            failed = tuple(f for f in failed if lemma.UNDECIDED not in f)
        else:
            family, _, wanted = bug.caught_by.partition("/")
            with run.prepared([family], root) as made:
                check = next((c for c in made[family].checks if c.name == wanted), None)
                if check is None:
                    raise ValueError(f"{LIST.name} names a check that there is not: {bug.caught_by}")
                failed = run.run(made[family], check).failed
    return Refutation(bug, bool(failed), failed[0] if failed else "")


def refute_all(wanted: Sequence[Bug]) -> list[Refutation]:
    """Refutes bugs, those of CBMC side by side."""
    # z3 is not made for several threads: those of lemmas go one after another.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        by_check = list(pool.map(refute, [b for b in wanted if not b.caught_by.startswith("lemma ")]))
    return by_check + [refute(b) for b in wanted if b.caught_by.startswith("lemma ")]
