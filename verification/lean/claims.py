"""The proofs as claims: one for each theory, the audit, the cases that bind them to the code, and planted errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from verification.claims import Claim, ToolMissing, declare
from verification.parts import Wanted, everything

from . import evidence, locks, toolchain
from .evidence import Plants, Proofs
from .planted import PLANTED
from .run import THEORIES, source, theorems
from .toolchain import LeanMissing

_LEAN: Final = "Lean 4"


@dataclass(frozen=True)
class _Theory:
    """What a theory says, how far, what ties it to the code, and what it takes for granted."""

    name: str
    says: str
    bound: str
    binding: str
    assumes: str


_TEXTS: Final = {
    "Gemm": _Theory(
        "lean.gemm",
        "the tiled product equals the naive loop bit for bit where the order of terms is kept; each element lies in "
        "exactly one tile and is written once",
        "any sizes, tiles and grids",
        "the real kernels in metalsim on whole numbers, bit for bit; the index header run as a kernel",
        "a tile's product is one step a term in ascending order; 0 added by padding changes nothing (but -0)",
    ),
    "SplitK": _Theory(
        "lean.split-k",
        "split sums and sums over lanes equal one sum",
        "any sizes and splits",
        "the real kernels in metalsim on whole numbers, which float32 adds exactly",
        "addition is associative (and commutative where the order changes): each theorem states its law",
    ),
    "Softmax": _Theory(
        "lean.softmax",
        "online softmax equals two-pass softmax, over lanes too; a fully masked row gives zeros, and only such a row",
        "any length and number of lanes",
        "softmax and attention kernels in metalsim where arithmetic is exact",
        "the laws of exponential and division over the reals; floating point has them up to rounding",
    ),
    "Batch": _Theory(
        "lean.batch",
        "a padded, masked, filled batch gives each request the answer that it gets alone",
        "any number of requests, lengths and buckets",
        "merge and cut of the running code, case by case",
        "the model works on each row by itself and honours its mask, which probe_layout asks of it",
    ),
    "Chooser": _Theory(
        "lean.chooser",
        "the chosen buckets cover every row that waits, none beyond the largest, in the least time; a bucket of "
        "lengths holds its request",
        "any table of buckets",
        "BucketTable, GraphPlan and InputReader of the running code, case by case",
        "times are whole numbers below 2^53, which floats add exactly",
    ),
    "Paths": _Theory(
        "lean.paths",
        "no impossible path is chosen; the choice is a function of what it is said to depend on; what is forced wins",
        "any input",
        "the running selector, case by case",
        "the capabilities that it is told are right",
    ),
    "Locks": _Theory(
        "lean.locks",
        "locks taken in a strict order never form a cycle, and somebody can go on; without locks there is no cycle",
        "any number of threads and locks",
        "the order is recorded from a run of queue, streams and plans, and decided by Lean",
        "locks that the recorded run did not take are not ordered by it",
    ),
}


def _code(theory: str) -> tuple[str, ...]:
    """The files that a theory names."""
    return tuple(sorted(set(re.findall(r"`(steelworks/[\w/]+\.(?:py|h))`", source(theory)))))


def declared() -> tuple[Claim, ...]:
    """What is claimed of the proofs. None is of the quick set: Lean takes minutes, and tests/verification runs it."""
    counts = {theory: len(theorems(theory)) for theory in THEORIES}
    proofs = [
        declare(
            text.name,
            text.says,
            tool=_LEAN,
            bound=text.bound,
            binding=text.binding,
            code=(*_code(theory), f"verification/lean/{theory}.lean"),
            assumes=text.assumes,
            counted=f"{counts[theory]} theorems",
            in_quick=False,
        )
        for theory, text in _TEXTS.items()
    ]
    every = tuple(f"verification/lean/{theory}.lean" for theory in THEORIES)
    return (
        *proofs,
        declare(
            "lean.audit",
            "the proofs rest on no axioms but Lean's three: no sorry, nothing that could bring one in unseen",
            tool=_LEAN,
            bound="all theories",
            binding="sources are searched for what can bring an axiom in, the compiled file for what it would leave; "
            "a native Lean is asked (#print axioms)",
            code=(*every, "verification/lean/audit.py"),
            assumes="Lean's kernel and library",
            in_quick=False,
            counted=f"{sum(counts.values())} theorems",
        ),
        declare(
            "lean.cases",
            "the running code answers as the definitions do",
            tool=f"{_LEAN} and metalsim",
            bound="the cases of verification/lean/vectors.py",
            binding="the code's own answers are written into the file that Lean decides",
            code=("verification/lean/vectors.py", *sorted({f for t in THEORIES for f in _code(t)})),
            assumes="metalsim runs a kernel as a GPU would",
            in_quick=False,
        ),
        declare(
            "lean.lock-order",
            "no thread of queue, streams and plans waits for a signal while it holds a lock; a compiled kernel is "
            "launched without one",
            tool="a recorder of locks",
            bound="one run of all of them from several threads",
            binding="locks and conditions of the running code are recorded",
            code=("verification/lean/locks.py", *_code("Locks")),
            assumes="the run takes every lock",
            in_quick=False,
        ),
        declare(
            "lean.planted",
            "errors planted in definitions and statements are rejected where they must be",
            tool=_LEAN,
            bound="one error at a time",
            binding="the theories' own text, changed",
            code=(*every, "verification/lean/planted.py"),
            assumes="nothing",
            in_quick=False,
            counted=f"{len(PLANTED)} of {len(PLANTED)} errors rejected",
        ),
    )


def claims(quick: bool, wanted: Wanted = everything) -> Iterator[Claim]:
    """Runs the code for its cases and Lean twice; yields each claim as it ends.

    Raises:
        ToolMissing: There is no Lean.
    """
    import torch

    del quick  # of the full set only
    torch.set_num_threads(1)
    known = {claim.name: claim for claim in declared()}
    try:
        lean = toolchain.find(install=False)
    except LeanMissing as problem:
        raise ToolMissing(str(problem)) from problem
    version = f"Lean {lean.version}"
    cases, recorded = evidence.gather_cases()
    if any(wanted(name) for name in known if name != "lean.planted"):
        yield from _proven(evidence.prove(cases, recorded, lean), known, version)
    if wanted("lean.planted"):
        yield _planted(known["lean.planted"], evidence.plant(cases, lean), len(PLANTED), version)


def _proven(proofs: Proofs, known: dict[str, Claim], version: str) -> Iterator[Claim]:
    one_run = f"{version}, all theories and cases in one run"

    def ended(name: str, why: str, counted: str = "", tool: str = one_run) -> Claim:
        claim = known[name]
        return replace(
            claim,
            tool=tool,
            counted=counted or claim.counted,
            passed=not why,
            seconds=proofs.seconds,
            why=why[:2000],
        )

    for theory, text in _TEXTS.items():
        yield ended(text.name, "\n".join(f"line {m.line}: {m.text}" for m in proofs.errors[theory]))
    yield ended("lean.audit", "\n".join(f"{f.place}: {f.what}" for f in proofs.findings))
    groups = ", ".join(f"{group} {count}" for group, count in proofs.cases.items())
    wrong = "\n".join(f"{c.group}, {c.name}: {c.statement}" for c in proofs.disagreeing)
    if not wrong and not proofs.cases:
        wrong = "there were no cases"
    yield ended("lean.cases", wrong, f"{sum(proofs.cases.values())} cases: {groups}")
    yield _order(replace(known["lean.lock-order"], seconds=0.0), proofs.locks)


def _order(claim: Claim, record: locks.Record) -> Claim:
    wrong = [f"{held} is held by a thread that waits for {signal}" for held, signal in record.waited]
    wrong += [f"{place} was taken to launch a kernel" for place in record.kernels]
    counted = (
        f"{len(record.locks)} locks, {len(record.pairs)} pairs (held, taken), {len(record.signals)} signals"
    )
    if not record.locks:
        wrong.append("no lock was recorded")
    return replace(claim, counted=counted, passed=not wrong, why="\n".join(wrong))


def _planted(claim: Claim, plants: Plants, count: int, version: str) -> Claim:
    wrong = [f"not rejected: {name}" for name in plants.messages if name not in plants.rejected]
    wrong += [f"without an error Lean says: {m.text}" for m in plants.controls]
    return replace(
        claim,
        tool=version,
        counted=f"{len(plants.rejected)} of {count} errors rejected",
        passed=not wrong,
        seconds=plants.seconds,
        why="\n".join(wrong)[:2000],
    )
