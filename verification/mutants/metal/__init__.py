"""Mutants of the Metal kernels: each barrier and each bounds guard removed in turn; the checks must notice.

``python -m verification.mutants.metal`` from the project's root runs all of them and prints a table; ``--help``
says more. find.py has the rules by which they are found, cases/ what they are tried on, survivors.toml those that
nothing notices, with the reasons. caught_by.json says which case caught each last, so that it is tried first:
``--write-hints`` brings it up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# The tests' bounds and poisoned outputs are used here too.
if str(ROOT / "tests" / "kernels") not in sys.path:
    sys.path.append(str(ROOT / "tests" / "kernels"))
