"""The Triton kernels as claims: races, bounds, programmatic dependent launch, and what the checks are worth."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from verification.claims import Claim, ToolMissing, declare
from verification.parts import Wanted, everything

from . import checks, planted, sanitizer

_FOLDER: Final = Path(__file__).resolve().parent
_KERNELS: Final = "steelworks/kernels/triton"
_BOUND: Final = "one or more small launches of each kernel and form; every form of the tuning tables"
_BINDING: Final = (
    "what the host functions launch, recorded: constants, types, hints, grid and operands are theirs"
)
#: The quick set's calls: one or two of a family.
QUICK: Final = (
    r"^(attention 2x5x7x16|linear 16x32 in 1( early)?|lora mixed none|norms 3x384|norms rms stats|dequantize 8|"
    r"softmax 3x50|softmax backward|topk 2x100 5)$"
)
#: Launches of which each barrier is taken out: those that sentryward decides in seconds.
BARRIERS: Final = (
    r"^(softmax 3x50|softmax 3x1000|softmax exact|softmax rows apart|norms 3x50|norms 3x700|norms backward 100|"
    r"linear 16x32 in 1|linear 16x64x256 no bias|linear 32x64x64 no bias)$"
)


def declared() -> tuple[Claim, ...]:
    """What is claimed of the Triton kernels."""
    bugs = len(tomllib.loads((_FOLDER / "planted.toml").read_text(encoding="utf-8"))["bug"])
    return (
        declare(
            "triton.races",
            "Triton kernels, in the launches that the tool can decide: no two threads conflict in memory "
            "without order, and all threads meet at each barrier; launches that it can't decide are counted",
            tool="sentryward",
            bound=_BOUND,
            binding=f"{_BINDING}; their PTX for sm_90a",
            code=(_KERNELS, "verification/triton"),
            assumes="sentryward's model of PTX; other operands do not overlap; of threads that store one value to one "
            "place alike, one may stand for all; assembler and hardware do what the PTX says",
        ),
        declare(
            "triton.bounds",
            "Triton kernels: each access is to an element of the tensor that it is meant for; no two programs use an "
            "element that one of them writes, unless an atomic operation orders them; nor does a program use "
            "such an element again without a barrier",
            tool="Triton's interpreter",
            bound=f"{_BOUND}; sizes at and around the sides of tiles; random data",
            binding="the kernels themselves, launched by the host functions; constants of an sm_90",
            code=(_KERNELS, "verification/triton/bounds.py"),
            assumes="the compiler keeps addresses; the interpreter's order of programs stands for all",
        ),
        declare(
            "triton.early",
            "Triton kernels that start while the one before them ends write nothing, and read only what no kernel that "
            "may still run can write, before they wait; and every path waits",
            tool="a reader of PTX",
            bound=_BOUND,
            binding=f"{_BINDING}; their PTX for sm_90a, and the order of launches",
            code=(_KERNELS, "verification/triton/early.py"),
            assumes="PyTorch's kernels start when all before them is done; settled() is right about tensors",
        ),
        declare(
            "triton.planted",
            "bugs planted in the Triton kernels and their launches are noticed by the check that is named; each "
            "barrier taken out of PTX is noticed, or proven to be one too many",
            tool="sentryward, Triton's interpreter",
            bound="one bug at a time",
            binding="a copy of the kernels, changed; the recorded launches' PTX, changed",
            code=(_KERNELS, "verification/triton/planted.toml"),
            in_quick=False,
            assumes="nothing",
            counted=f"{bugs} of {bugs} bugs noticed",
        ),
        declare(
            "triton.device",
            "Triton kernels on a GPU, under NVIDIA's compute-sanitizer: no access outside of an allocation or "
            "misaligned, no conflict in shared memory, no barrier that some threads miss, no read of what nobody wrote",
            tool="compute-sanitizer",
            bound=f"{_BOUND}; sizes at and around the sides of tiles; as they ran",
            binding="the kernels themselves, launched by the host functions; a hash says that they are these",
            code=(_KERNELS, "verification/triton/sanitizer.json"),
            in_quick=False,
            assumes="it is a record of a run on such a machine, which nothing here repeats; what asynchronous products "
            "and the copy engine access is hardly seen, as the barriers taken out beside them show; an access by less "
            "than 16 bytes outside may be missed",
        ),
    )


def claims(quick: bool, wanted: Wanted = everything) -> Iterator[Claim]:
    """Records, compiles and checks; yields each claim as it ends.

    Raises:
        ToolMissing: There is no Triton, or no sentryward.
    """
    for package in ("triton", "sentryward"):
        if importlib.util.find_spec(package) is None:
            raise ToolMissing(f"{package} is not here; install it with: python -m pip install {package}")
    triton = f"Triton {importlib.metadata.version('triton')}"
    sentryward = f"sentryward {importlib.metadata.version('sentryward')}, {triton}"
    known = {claim.name: claim for claim in declared()}
    if wanted("triton.bounds"):
        began = time.monotonic()
        found = planted.run("bounds", QUICK if quick else "")
        seconds = time.monotonic() - began
        yield _checked(replace(known["triton.bounds"], tool=triton), "bounds", quick, found, seconds)
    both = [one for one in ("early", "races") if wanted(f"triton.{one}")]
    if both:
        began = time.monotonic()
        calls = QUICK if quick else ""
        found = planted.run("compiled", calls) if len(both) == 2 else {both[0]: planted.run(both[0], calls)}
        seconds = time.monotonic() - began
        for one in both:
            tool = {"early": triton, "races": sentryward}[one]
            yield _checked(replace(known[f"triton.{one}"], tool=tool), one, quick, found[one], seconds)
    if wanted("triton.planted"):
        yield _planted(replace(known["triton.planted"], tool=sentryward))
    if wanted("triton.device"):
        yield _recorded(known["triton.device"])


def _checked(claim: Claim, name: str, quick: bool, found: dict[str, Any], seconds: float) -> Claim:
    wrong = list(found["wrong"])
    if not quick:
        nobody = checks.kernels_launched_by_nobody(found["kernels"])
        wrong += [f"no call launches {kernel}, so it was not checked" for kernel in nobody]
    return replace(
        claim,
        bound="one or two launches of each family" if quick else claim.bound,
        counted=_counted(name, found),
        passed=not wrong and bool(found["kernels"]) and (name != "early" or found["counts"]["early"] > 0),
        seconds=seconds,
        why="\n".join(wrong)[:2000],
    )


def _counted(name: str, found: dict[str, Any]) -> str:
    counts, kernels = found["counts"], len(found["kernels"])
    if name == "bounds":
        return (
            f"{counts['accesses']:,} elements accessed by {counts['programs']:,} programs in {counts['launches']} "
            f"launches of {kernels} kernels"
        )
    if name == "early":
        return (
            f"{counts['launches']} launches, {counts['variants']} variants of {kernels} kernels; "
            f"{counts['early']} launches read early"
        )
    free = counts["free"] + counts["free without copies"]
    reasons = ", ".join(f"{len(where)} {reason}" for reason, where in sorted(found["undecided"].items()))
    said = f"{free} of {counts['variants']} variants of {kernels} kernels free of races"
    if counts["free without copies"]:
        said += f" ({counts['free without copies']} with one thread for those that store alike)"
    return said + (
        f"; {counts['undecided']} undecided: {reasons}" if counts["undecided"] else "; none undecided"
    )


def _recorded(claim: Claim) -> Claim:
    kept = sanitizer.record()
    tools, planted = kept["tools"], kept["planted"]
    wrong = [
        f"{name}: {text}"
        for name, tool in tools.items()
        for text in (*tool["findings"], tool["problem"])
        if text
    ]
    ran = {name: tools.get(name, {}).get("calls", 0) for name in sanitizer.TOOLS}
    there = sanitizer.how_many()
    wrong += [f"{name} ran {count} of {there} calls" for name, count in ran.items() if count != there]
    blind = [kind for kind in ("barriers", "bounds") if not planted.get(kind, {}).get(sanitizer.NOTICED)]
    wrong += [f"no planted bug of the kind {kind} was noticed" for kind in blind]
    shares = [
        f"{len(planted[kind][sanitizer.NOTICED])} of {sum(map(len, planted[kind].values()))} {kind}"
        for kind in sanitizer.KINDS
        if kind in planted
    ]
    return replace(
        claim,
        tool=f"compute-sanitizer {kept['version']}, {kept['gpu']}, PyTorch {kept['torch']}, Triton {kept['triton']}",
        counted=f"{min(ran.values())} calls under each of {len(tools)} tools; planted bugs "
        f"noticed: {', '.join(shares)}",
        passed=not wrong,
        seconds=kept["seconds"],
        why="\n".join(wrong)[:2000],
    )


def _planted(claim: Claim) -> Claim:
    began = time.monotonic()
    bugs = planted.bugs()
    with ThreadPoolExecutor(2) as pool:
        missed = [why for why in pool.map(planted.missed, bugs) if why]
    found = planted.run("barriers", BARRIERS)
    counts = found["counts"]
    undecided = [f"barrier not decided: {label}" for label in found["undecided"].get("undecided", [])]
    if not counts["flagged"]:
        undecided.append("sentryward noticed none of the barriers that were taken out")
    return replace(
        claim,
        counted=f"{len(bugs) - len(missed)} of {len(bugs)} bugs noticed; {counts['barriers']} barriers taken out: "
        f"{counts['flagged']} noticed, {counts['not needed']} proven not to be needed, {counts['undecided']} undecided",
        passed=bool(bugs) and not missed and not undecided,
        seconds=time.monotonic() - began,
        why="\n".join([*missed, *undecided])[:2000],
    )
