"""The Metal kernels, run and checked by metalsim, as claims; and what that checker is worth."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from verification.claims import Claim, ToolMissing, declare
from verification.parts import ROOT, Wanted, everything

#: Of the tests of the kernels, the quick set runs one in so many.
QUICK_OF: Final = 16
_LIMIT: Final = 1800.0  # seconds for one run of pytest
_CORPUS: Final = "tests/metalsim/test_metal_corpus.py"
_KERNELS: Final = ("steelworks/kernels/metal", "steelworks/metalsim", "tests/kernels")
_FAMILIES: Final = (
    "sizes below, at and above tiles, views, special values, float, half and bfloat of each family"
)


def declared() -> tuple[Claim, ...]:
    """What is claimed of the kernels as metalsim runs them."""
    planted = len(list((ROOT / "tests/metalsim/corpus").glob("*.metal")))
    return (
        declare(
            "metalsim.corpus",
            "the checker finds planted defects, each with its kind and line, and is silent about the corrected twins",
            tool="metalsim",
            bound="one or more defects of each kind that it knows, under four schedules",
            binding="the checker that the kernels are run with",
            code=("steelworks/metalsim", "tests/metalsim/corpus"),
            assumes="a defect of a kernel is of a kind that the corpus has",
            counted=f"{planted} of {planted} defects found, {planted} of {planted} corrected twins silent",
        ),
        declare(
            "metalsim.races",
            "Metal kernels: no race, no access out of bounds, no uninitialised read, every output written once (I6)",
            tool="metalsim",
            bound=f"{_FAMILIES}; four schedules",
            binding="the kernels themselves, launched by the host functions that users call",
            code=_KERNELS,
            assumes="metalsim means what Metal means (docs/metalsim.md); only the schedules that ran are seen",
        ),
        declare(
            "metalsim.values",
            "Metal kernels: results are those of a float64 reference, within the bound for the length of the sum (I7)",
            tool="metalsim",
            bound=_FAMILIES,
            binding="the kernels themselves, launched by the host functions that users call",
            code=_KERNELS,
            assumes="a GPU's exp, log, rsqrt and the like are as exact as its vendor says",
        ),
    )


def claims(quick: bool, wanted: Wanted = everything) -> Iterator[Claim]:
    """Runs pytest on the corpus and on the kernels; yields each claim as it ends.

    Raises:
        ToolMissing: There is no clang++, or no pytest.
    """
    tool = _tool()
    known = {claim.name: replace(claim, tool=tool) for claim in declared()}
    if wanted("metalsim.corpus"):
        yield _corpus(known["metalsim.corpus"])
    if wanted("metalsim.races") or wanted("metalsim.values"):
        yield from _kernels(known, quick)


def _tool() -> str:
    from steelworks.metalsim._toolchain import find_compiler
    from steelworks.metalsim.errors import ToolchainError

    try:
        compiler = find_compiler()
        import pytest
        import pytest_timeout  # type: ignore[import-untyped]  # noqa: F401
    except ToolchainError as problem:
        raise ToolMissing(str(problem)) from problem
    except ImportError as problem:
        raise ToolMissing(
            f"{problem.name} is not here; install with: python -m pip install pytest pytest-timeout hypothesis"
        ) from problem
    return f"metalsim, clang {compiler.major}, pytest {pytest.__version__}"


def _corpus(claim: Claim) -> Claim:
    began = time.monotonic()
    status, said = _pytest(_CORPUS)
    pattern = r"corpus: (\d+ of \d+) defects found.*; (\d+ of \d+) corrected twins silent; (\d+) launches"
    found = re.search(pattern, said)
    counted = (
        f"{found[1]} defects found, {found[2]} corrected twins silent; {found[3]} launches" if found else ""
    )
    return replace(
        claim,
        counted=counted,
        passed=status == 0 and counted.startswith(claim.counted),
        seconds=time.monotonic() - began,
        why="" if status == 0 and counted.startswith(claim.counted) else said[-1500:],
    )


def _kernels(known: dict[str, Claim], quick: bool) -> Iterator[Claim]:
    began = time.monotonic()
    # Not that of the mutants: those are a part of their own.
    files = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "tests/kernels").glob("test_*.py"))
    chosen = [file for file in files if Path(file).stem not in ("test_mutants", "test_on_mps")]
    sampled = ["-p", "verification.metalsim.sample", "--one-in", str(QUICK_OF)] if quick else []
    status, said = _pytest(*sampled, *chosen)
    seconds = time.monotonic() - began
    compared, checked = (re.search(rf"^all: .*?(\d+) {word}", said, re.M) for word in ("compared", "checked"))
    families = re.findall(r"^(\w+): \d+ compared with", said, re.MULTILINE)
    tests = re.search(r"(\d+) passed", said)
    good = status == 0 and compared is not None and checked is not None and tests is not None
    of = f"one in {QUICK_OF} of the tests: " if quick else ""
    for name, number, what in (
        ("metalsim.races", checked, "checked launches"),
        ("metalsim.values", compared, "results compared"),
    ):
        claim = known[name]
        counted = (
            f"{int(number[1]):,} {what} in {tests[1]} tests of {len(families)} families"
            if good and number and tests
            else ""
        )
        yield replace(
            claim,
            bound=of + claim.bound,
            counted=counted,
            passed=good,
            seconds=seconds,
            why="" if good else said[-1500:],
        )


def _pytest(*arguments: str) -> tuple[int, str]:
    """Pytest's exit status and what it printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=_LIMIT,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
