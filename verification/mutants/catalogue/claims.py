"""What the catalogue of planted bugs claims: how many of them the evidence notices."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from steelworks import metalsim
from steelworks.metalsim._toolchain import find_compiler
from verification.cbmc import toolchain as cbmc
from verification.claims import Claim, ToolMissing
from verification.lean import toolchain as lean
from verification.mutants.planting import ROOT
from verification.tla import tlc

from .entries import LATE, LAYERS, Mutant, load
from .report import LEAST_CAUGHT

_LIMIT: Final = 3000.0  # seconds
_NAME: Final = "mutants.catalogue"
_SAYS: Final = (
    f"Of the bugs planted across all {len(LAYERS)} layers, the specs and proofs included, at least "
    f"{100 * LEAST_CAUGHT:.0f} % are noticed by the check that each names, for the right reason; each survivor has one"
)
_BINDING: Final = (
    "each is a change of the code's own text, planted in a copy; an entry that no longer fits the code fails"
)
_ASSUMES: Final = (
    "that bugs like these are like those that will be made; some layers need a GPU to show theirs"
)
_CODE: Final = ("verification/mutants/catalogue", "steelworks", "verification", "tests")
_TOOL: Final = f"pytest, TLC, CBMC, Lean, metalsim; Python {platform.python_version()}"


def declared() -> tuple[Claim, ...]:
    """The claim, before anything is run."""
    mutants = load()
    counted = f"{sum(not m.survives for m in mutants)} of {len(mutants)} caught"
    return (_claim(mutants, counted, passed=False, seconds=0.0, why=""),)


def claims(quick: bool) -> Iterator[Claim]:
    """Plants all.

    Raises:
        ToolMissing: A compiler, Java, CBMC or Lean is not there, so that some checks could not run.
    """
    del quick  # of the full set only
    _tools()
    chosen = load()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="catalogue-") as folder:
        file = Path(folder) / "verdicts.json"
        command = [sys.executable, "-m", "verification.mutants.catalogue", "--json", str(file)]
        # A process of its own: it forks, which one with threads had better not do.
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT,
        )
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    seconds = time.monotonic() - began
    if not found:
        yield _claim(chosen, "none", passed=False, seconds=seconds, why=_tail(done.stdout + done.stderr))
        return
    counted = (
        f"{found['caught']} of {found['planted']} caught ({100 * found['share_caught']:.1f} %); of {found['late']} "
        f"written last, the tests chosen before caught {found['late_caught_at_first']} when they were first run"
    )
    passed = bool(found["passed"]) and done.returncode == 0
    yield _claim(chosen, counted, passed=passed, seconds=seconds, why="; ".join(found["faults"][:3]))


def _claim(mutants: tuple[Mutant, ...], counted: str, *, passed: bool, seconds: float, why: str) -> Claim:
    layers = len({m.layer for m in mutants})
    bound = f"{len(mutants)} bugs in {layers} layers; late ones: {LATE.name}"
    return Claim(_NAME, _SAYS, _TOOL, bound, counted, _BINDING, _CODE, _ASSUMES, passed, seconds, why, False)


def _tools() -> None:
    try:
        find_compiler()
        cbmc.find()
        lean.find()
    except (metalsim.errors.ToolchainError, cbmc.CbmcMissing, lean.LeanMissing) as problem:
        raise ToolMissing(str(problem)) from problem
    if missing := tlc.missing():
        raise ToolMissing(missing)


def _tail(output: str) -> str:
    return " / ".join(line for line in output.splitlines() if line.strip())[-500:]
