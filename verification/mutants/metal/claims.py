"""The mutants of the Metal kernels as a claim."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from verification.claims import Claim, ToolMissing, declare


def declared() -> tuple[Claim, ...]:
    """What is claimed of the mutants."""
    return (
        declare(
            "mutants.metal",
            "the checks of the Metal kernels notice when a barrier or a bounds guard is removed or weakened",
            tool="metalsim",
            bound="every barrier and every guard of the kernels, one at a time",
            binding="the kernels' own headers, changed",
            code=("steelworks/kernels/metal", "verification/mutants/metal/survivors.toml"),
            in_quick=False,
            assumes="what is listed as equivalent is so (survivors.toml has the reasons)",
        ),
    )


def claims(quick: bool) -> Iterator[Claim]:
    """Breaks the kernels; yields the claim.

    Raises:
        ToolMissing: There is no clang++.
    """
    import torch

    from steelworks import metalsim
    from steelworks.metalsim._toolchain import find_compiler

    from .run import CAUGHT, cores
    from .trial import FaultyCases, attempt, choose

    del quick  # of the full set only
    torch.set_num_threads(1)
    (claim,) = declared()
    try:
        compiler = find_compiler()
    except metalsim.errors.ToolchainError as problem:
        raise ToolMissing(str(problem)) from problem
    began = time.monotonic()
    claim = replace(claim, tool=f"metalsim, clang {compiler.major}")
    choice = choose(sample=False)
    try:
        result = attempt(choice, cores())
    except FaultyCases as problem:
        yield replace(claim, why=str(problem)[:2000], seconds=time.monotonic() - began)
        return
    counts = result.counts
    possible = counts[CAUGHT] + counts["missed"] + counts["unexplained"]
    survived = [f"{m.id} survived without a reason" for m in result.unexplained]
    yield replace(
        claim,
        counted=f"{counts[CAUGHT]} of {possible} caught; {counts['equivalent']} equivalent, with reasons"
        + (f"; {counts['missed']} missed, with reasons" if counts["missed"] else ""),
        passed=result.passed,
        seconds=time.monotonic() - began,
        why="\n".join([*result.faults, *survived, *result.stale])[:2000],
    )
