"""Everything about the proofs, in two runs of Lean: theories, audit and cases in one, planted errors in the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import audit, locks, planted, toolchain, vectors
from .audit import Finding
from .planted import PLANTED
from .run import THEORIES, Message, Part, Theorem, check_parts, source, theorems
from .toolchain import Lean
from .vectors import Case


@dataclass(frozen=True)
class Proofs:
    """What the first run gave.

    Attributes:
        theorems: all that were checked.
        errors: by theory.
        findings: of the audit.
        cases: by group: how many agree with the running code.
        disagreeing: cases of which Lean says otherwise than the code.
        locks: what the recorded run of the code showed.
        lean: which Lean checked it.
        seconds: wall-clock time of Lean.
    """

    theorems: tuple[Theorem, ...]
    errors: Mapping[str, tuple[Message, ...]]
    findings: tuple[Finding, ...]
    cases: Mapping[str, int]
    disagreeing: tuple[Case, ...]
    locks: locks.Record
    lean: Lean
    seconds: float


@dataclass(frozen=True)
class Plants:
    """What the second run gave.

    Attributes:
        messages: what Lean said of each planted error, by its name.
        rejected: the names of those that it refused where it must.
        controls: what it said of the same texts without errors: nothing, if it is the errors that it refuses.
        seconds: wall-clock time of Lean.
    """

    messages: Mapping[str, tuple[Message, ...]]
    rejected: frozenset[str]
    controls: tuple[Message, ...]
    seconds: float


def gather_cases(quick: bool = False) -> tuple[list[Case], locks.Record]:
    """Runs the code: the cases of every group, and the order of its locks.

    Args:
        quick: fewer random cases, about a third.

    Raises:
        Cycle: the locks have no strict order.
    """
    recorded = locks.record()
    rank = locks.ranks(recorded.pairs, recorded.locks)
    cases = [
        *vectors.index_cases(),
        *vectors.gemm_cases(),
        *vectors.softmax_cases(),
        *vectors.batch_cases(12 if quick else 40),
        *vectors.chooser_cases(30 if quick else 80),
        *vectors.path_cases(200 if quick else 600),
        *vectors.lock_cases(recorded.pairs, rank),
    ]
    return cases, recorded


def prove(cases: Sequence[Case], recorded: locks.Record, lean: Lean | None = None) -> Proofs:
    """Checks the theories and the cases, and audits what they rest on.

    Raises:
        LeanMissing: there is no Lean.
        LeanFailed: it did not come to the end.
    """
    lean = toolchain.find() if lean is None else lean
    all_theorems = tuple(t for theory in THEORIES for t in theorems(theory))
    parts = [*(Part(theory, source(theory)) for theory in THEORIES), vectors.part(cases)]
    if lean.kind == "native":
        parts.append(audit.axioms_part(all_theorems))
    report, said = check_parts(parts, lean)
    errors = {theory: tuple(m for m in said[theory] if m.severity == "error") for theory in THEORIES}
    wrong = vectors.disagreeing(cases, (m.line for m in said["Vectors"] if m.severity == "error"))
    findings = [f for theory in THEORIES for f in audit.words(theory, source(theory))]
    if lean.kind == "native":
        findings += audit.printed_axioms(said["axioms"], all_theorems)
    elif not report.errors:
        if not report.compiled:
            findings.append(Finding("the compiled theories", "Lean wrote none, so there is nothing to audit"))
        findings += audit.traces(report.compiled)
    agreeing = Counter(c.group for c in cases if c not in wrong)
    return Proofs(
        all_theorems, errors, tuple(findings), agreeing, tuple(wrong), recorded, lean, report.seconds
    )


def _some(cases: Sequence[Case], most: int = 40) -> list[Case]:
    """So many of a group's cases at most, from all over it: they are not in a random order."""
    count = min(len(cases), most)
    return [cases[i * len(cases) // count] for i in range(count)]


def plant(
    cases: Sequence[Case], lean: Lean | None = None, plants: Sequence[planted.Planted] = PLANTED
) -> Plants:
    """Checks that every planted error is rejected.

    Raises:
        LeanMissing: there is no Lean.
        LeanFailed: it did not come to the end.
    """
    of_group = {
        p.rejected_by: _some([c for c in cases if c.group == p.rejected_by]) for p in plants if p.by_cases
    }
    parts = [planted.part(p, number, of_group.get(p.rejected_by, [])) for number, p in enumerate(plants)]
    controls = [planted.control(t, plants) for t in THEORIES if any(p.theory == t for p in plants)]
    report, said = check_parts([*parts, *controls], lean)
    rejected = frozenset(
        p.name
        for p, part in zip(plants, parts, strict=True)
        if planted.is_rejected(p, part.text, said[p.name])
    )
    spared = tuple(m for part in controls for m in planted.refusals(said.pop(part.name)))
    return Plants(
        {name: tuple(messages) for name, messages in said.items()}, rejected, spared, report.seconds
    )
