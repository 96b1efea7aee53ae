"""All parts of the evidence, and the claims that each makes, which are known without running anything.

A part is a module with

* ``declared() -> tuple[Claim, ...]``: its claims as the full set makes them, with ``bound``, ``counted`` as far as the
  code pins it, and no result; cheap to call, without a tool;
* ``claims(quick: bool) -> Iterator[Claim]``: runs its checks and yields each claim, under its declared name, as it
  ends. With a second parameter ``wanted``, a function of a claim's name, it may leave out what nobody asked for.

Each part runs in a process of its own (child.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .claims import Claim

ROOT = Path(__file__).resolve().parents[1]

#: Whether a claim of that name is asked for.
Wanted = Callable[[str], bool]


def everything(name: str) -> bool:
    """Every claim is asked for."""
    return True


@dataclass(frozen=True)
class Part:
    """A part of the evidence.

    Attributes:
        module: Its module.
        title: What it is about.
        tools: What ``scripts/setup.sh tools`` makes ready for it.
        minutes: About what the full set takes; the longest begin first.
        whole: It keeps all cores busy by itself, so that nothing else runs beside it.
    """

    module: str
    title: str
    tools: tuple[str, ...] = ()
    minutes: int = 1
    whole: bool = False


_MODEL = ("packages", "java", "compiler")
#: One line a part.
PARTS: tuple[Part, ...] = (
    Part("verification.tla.claims", "Models of the runtime", ("packages", "java", "second"), 14),
    Part("verification.tla.claims_paths_gemm", "Models of paths and GEMM", _MODEL, 5),
    Part("verification.driver_race.claims", "Race of the GPU driver", (*_MODEL, "objc"), 3),
    Part("verification.lean.claims", "Proofs", ("lean", "compiler"), 7),
    Part("verification.cbmc.claims", "Bounds of the Metal kernels", ("packages", "cbmc", "compiler"), 4),
    Part("verification.metalsim.claims", "Metal kernels, run and checked", ("packages", "compiler"), 5),
    Part("verification.mutants.metal.claims", "Mutants of the Metal kernels", ("compiler",), 4, whole=True),
    Part("verification.triton.claims", "Triton kernels", ("triton",), 9),
    Part("verification.frontrun.claims", "Explored schedules", ("packages",), 4),
    Part("verification.runtime.claims", "Tests of queue and plans", ("packages",), 5),
    Part(
        "verification.mutants.catalogue.claims", "Planted bugs of every layer", (*_MODEL, "lean", "cbmc"), 9
    ),
)


@dataclass(frozen=True)
class Declared:
    """A part and what it claims."""

    part: Part
    claims: tuple[Claim, ...]


class BrokenPart(Exception):
    """A part can't be asked for its claims; the message names the module and why."""


def declared(parts: Sequence[Part]) -> list[Declared]:
    """What each part claims.

    Raises:
        BrokenPart: A module can't be imported, has no ``declared``, or a name stands twice.
    """
    found, seen = [], dict[str, str]()
    for part in parts:
        try:
            module = importlib.import_module(part.module)
            if not hasattr(module, "declared"):
                raise BrokenPart(f"{part.module} has no declared(): verification/parts.py says what that is")
            claims = tuple(module.declared())
        except BrokenPart:
            raise
        except Exception as problem:  # whatever a module does when it is imported
            raise BrokenPart(f"{part.module}: {type(problem).__name__}: {problem}") from problem
        for claim in claims:
            if claim.name in seen:
                raise BrokenPart(f"{part.module} and {seen[claim.name]} both claim {claim.name}")
            seen[claim.name] = part.module
        found.append(Declared(part, claims))
    return found
