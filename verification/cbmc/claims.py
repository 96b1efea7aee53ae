"""The bounds as claims: one for each family's harness, the lemmas, addresses, threadgroup memory and planted bugs."""

from __future__ import annotations

import re
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from steelworks.metalsim.errors import ToolchainError
from verification.claims import Claim, ToolMissing, declare
from verification.parts import ROOT, Wanted, everything

from . import toolchain
from .toolchain import CbmcMissing

# What takes z3 is imported where it is used: claims can be declared without it.
_FOLDER: Final = Path(__file__).resolve().parent
_HEADERS: Final = "steelworks/kernels/metal"
_SIZES: Final = "sizes to 4096, offsets partly to 2^30; every row of the tuning table"
_FIRST: Final = "sizes to 4096, offsets partly to 2^30; the first row of each kind"
#: Of the planted bugs, the quick set takes one in so many.
QUICK_OF: Final = 12


def _families() -> list[str]:
    return sorted(path.stem for path in (_FOLDER / "harness").glob("*.c"))


def _harness(family: str) -> str:
    return (_FOLDER / "harness" / f"{family}.c").read_text(encoding="utf-8")


def _says(family: str) -> str:
    """What a harness proves, in its own words."""
    text = _harness(family)
    return "; ".join(dict.fromkeys(re.findall(r"^//: \w+ \| (.+)$", text, re.MULTILINE)))


def _included(family: str) -> tuple[str, ...]:
    """The headers that a harness includes, and the harness."""
    text = _harness(family)
    named = re.findall(r'^#include "([\w/]+\.h)"', text, re.MULTILINE)
    found = [
        f"{_HEADERS}/{folder}{name}"
        for name in named
        for folder in ("", "include/")
        if (ROOT / _HEADERS / folder / name).is_file()
    ]
    if family == "steel":
        found = [f"{_HEADERS}/include/steel/index.h", f"{_HEADERS}/include/steel/lines.h"]
    return (*dict.fromkeys(found), f"verification/cbmc/harness/{family}.c")


def declared() -> tuple[Claim, ...]:
    """What is claimed of bounds."""
    families = [
        declare(
            f"cbmc.{family}",
            f"{family}: {_says(family)}",
            tool="CBMC",
            bound=_SIZES,
            binding="harness and kernel include the same header",
            code=_included(family),
            assumes="the harness combines index functions as the kernel does; premises name the host function "
            "that sees to them",
        )
        for family in _families()
    ]
    bugs = len(tomllib.loads((_FOLDER / "planted.toml").read_text(encoding="utf-8"))["bug"])
    lemmas = sorted(p.relative_to(ROOT).as_posix() for p in _FOLDER.glob("lemma*.py"))
    return (
        *families,
        declare(
            "cbmc.lemmas",
            "where sizes multiply or divide: offsets are linear, inside and apart; splits, chunks and tiles are "
            "taken apart into what they were made of",
            tool="z3",
            bound="extents to 2^30, strides below 2^31, over integers without bounds",
            binding="the lemma reads the header's own text; its premises are shown to be satisfiable",
            code=(_HEADERS, *lemmas),
            assumes="premises name the host function that sees to them",
        ),
        declare(
            "cbmc.addresses",
            "no kernel computes an address in device memory but by index functions, or is listed with a reason",
            tool="a reader of the sources",
            bound="all kernels",
            binding="the kernels' own text",
            code=(_HEADERS, "verification/cbmc/addresses.toml"),
            assumes="the harnesses call index functions as the kernels do; the reasons of what addresses.toml lists",
        ),
        declare(
            "cbmc.threadgroup-memory",
            "no kernel takes more threadgroup memory than there is",
            tool="metalsim",
            bound="every row of the tuning table, float and half",
            binding="the compiled kernels themselves",
            code=(_HEADERS,),
            assumes="Metal lays threadgroup arrays out as clang does",
        ),
        declare(
            "cbmc.planted",
            "bugs that are planted in the index headers are refuted by the check or lemma that is named",
            tool="CBMC and z3",
            bound="one bug at a time",
            binding="a copy of the headers, changed",
            code=(_HEADERS, "verification/cbmc/planted.toml"),
            assumes="nothing",
            counted=f"{bugs} of {bugs} bugs refuted",
        ),
    )


def claims(quick: bool, wanted: Wanted = everything) -> Iterator[Claim]:
    """Reads, compiles and proves; yields each claim as it ends.

    Raises:
        ToolMissing: There is no CBMC, no z3 or no clang++.
    """
    known = {claim.name: claim for claim in declared()}
    try:
        import z3  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as problem:
        raise ToolMissing("z3 is not here; install it with: python -m pip install z3-solver") from problem
    try:
        if wanted("cbmc.addresses"):
            yield _addresses(known["cbmc.addresses"])
        if wanted("cbmc.threadgroup-memory"):
            yield _memory(known["cbmc.threadgroup-memory"])
        if wanted("cbmc.lemmas"):
            yield _lemmas(known["cbmc.lemmas"])
        families = [f for f in _families() if wanted(f"cbmc.{f}")]
        if families or wanted("cbmc.planted"):
            version = f"CBMC {toolchain.find(install=False).version}"
        for family in families:
            yield _family(known[f"cbmc.{family}"], family, quick, version)
        if wanted("cbmc.planted"):
            yield _planted(known["cbmc.planted"], quick, version)
    except (CbmcMissing, ToolchainError) as problem:
        raise ToolMissing(str(problem)) from problem


def _family(claim: Claim, family: str, quick: bool, version: str) -> Claim:
    from . import run

    began = time.monotonic()
    with run.prepared([family]) as made:
        checks = [(made[family], check) for check in made[family].checks]
        results = run.run_all(run.first_rows(checks) if quick else checks)
    wrong = [f"check_{r.check.name}: {failed}" for r in results for failed in r.failed]
    wrong += [f"check_{r.check.name}: its premises are contradictory" for r in results if r.vacuous]
    kinds = len({r.check.base for r in results})
    return replace(
        claim,
        tool=version,
        bound=_FIRST if quick else _SIZES,
        counted=f"{len(results)} checks of {kinds} kinds, {sum(r.proven for r in results):,} assertions",
        passed=bool(results) and not wrong,
        seconds=time.monotonic() - began,
        why="\n".join(wrong)[:2000],
    )


def _lemmas(claim: Claim) -> Claim:
    import z3

    from . import lemma

    began = time.monotonic()
    results = [lemma.prove(one) for one in lemma.all_lemmas().values()]
    wrong = [f"{result.name}: {failed}" for result in results for failed in result.failed]
    return replace(
        claim,
        tool=f"z3 {z3.get_version_string()}",
        counted=f"{len(results)} lemmas, {sum(result.goals for result in results)} goals",
        passed=not wrong,
        seconds=time.monotonic() - began,
        why="\n".join(wrong)[:2000],
    )


def _addresses(claim: Claim) -> Claim:
    from . import addresses

    began = time.monotonic()
    compared = addresses.compare()
    return replace(
        claim,
        counted=f"{compared.count} device addresses, of which {compared.listed} are listed with a reason",
        passed=not compared.faults and compared.count > 0,
        seconds=time.monotonic() - began,
        why="\n".join(compared.faults)[:2000],
    )


def _memory(claim: Claim) -> Claim:
    from steelworks.metalsim._toolchain import find_compiler

    from . import memory

    began = time.monotonic()
    tool = f"metalsim, clang {find_compiler().major}"
    uses = memory.uses()
    most = max(uses, key=lambda use: use.bytes)
    holds = most.bytes <= memory.LIMIT
    return replace(
        claim,
        tool=tool,
        counted=f"{len(uses)} compiled kernels, the largest {most.bytes:,} of {memory.LIMIT:,} bytes",
        passed=holds,
        seconds=time.monotonic() - began,
        why="" if holds else f"{most.kernel} takes {most.bytes} bytes",
    )


def _planted(claim: Claim, quick: bool, version: str) -> Claim:
    from . import planted

    began = time.monotonic()
    bugs = planted.bugs()[:: QUICK_OF if quick else 1]
    results = planted.refute_all(bugs)
    missed = [
        f"not refuted: {r.bug.file}: {r.bug.what} (by {r.bug.caught_by})" for r in results if not r.refuted
    ]
    return replace(
        claim,
        tool=f"{version} and z3",
        counted=f"{len(results) - len(missed)} of {len(results)} bugs refuted",
        passed=bool(results) and not missed,
        seconds=time.monotonic() - began,
        why="\n".join(missed)[:2000],
    )
