"""``python -m verification.lean``: checks the proofs, and says what was checked and what it is bound to."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from . import evidence
from .planted import PLANTED
from .run import THEORIES, LeanFailed
from .toolchain import LeanMissing


def main() -> int:
    """Runs everything. Returns the exit status: 0 if all was checked and holds."""
    console = Console()
    try:
        cases, recorded = evidence.gather_cases()
        proofs = evidence.prove(cases, recorded)
        plants = evidence.plant(cases, proofs.lean)
    except (LeanMissing, LeanFailed) as problem:
        console.print(str(problem), style="red")
        return 1
    table = Table("theorem", "what it says", title=f"Lean {proofs.lean.version}, {proofs.seconds:.0f} s")
    for theorem in proofs.theorems:
        if theorem.says:
            table.add_row(f"{theorem.theory}.{theorem.name}", theorem.says)
    console.print(table)
    for group, count in proofs.cases.items():
        console.print(f"{group}: {count} cases agree with the code")
    console.print(
        f"planted errors rejected: {len(plants.rejected)} of {len(PLANTED)}, {plants.seconds:.0f} s"
    )
    bad = [f"{t}.lean:{m.line}: {m.text}" for t in THEORIES for m in proofs.errors[t]]
    bad += [f"{f.place}: {f.what}" for f in proofs.findings]
    bad += [f"the code does not answer so: {c.group}, {c.name}: {c.statement}" for c in proofs.disagreeing]
    bad += [f"without a planted error: {m.text}" for m in plants.controls]
    bad += [f"planted, but not rejected: {p.name}" for p in PLANTED if p.name not in plants.rejected]
    for line in bad:
        console.print(line, style="red")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
