"""``python -m verification.mutants.catalogue.theory NAME``: has Lean check one theory, and the audit read it."""

from __future__ import annotations

import sys

from verification.lean import audit, run, toolchain


def main() -> int:
    """The exit status: 0 if Lean accepts the theory and the audit finds nothing; 2 if there is no Lean."""
    (theory,) = sys.argv[1:]
    try:
        report = run.check(run.source(theory), toolchain.find())
    except toolchain.LeanMissing as problem:
        sys.stdout.write(f"{problem}\n")
        return 2
    for message in report.errors:
        sys.stdout.write(f"{theory}.lean:{message.line}: error: {message.text}\n")
    findings = [*audit.words(theory, run.source(theory)), *audit.traces(report.compiled)]
    for finding in findings:
        sys.stdout.write(f"{finding.place}: {finding.what} is not allowed\n")
    return 1 if report.errors or findings else 0


if __name__ == "__main__":
    sys.exit(main())
