"""The configurations of SteelGEMM.tla: which kernels are recorded, and what TLC must find in each.

The cases are small instances of the kernels' own templates: the same source with smaller tiles than the tuning table
has, so that every pair of threads of every threadgroup can be taken.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from steelworks.kernels.metal.tuning import GemmTile, GemvColumns, GemvDot

from . import gemm_programs
from .gemm_programs import Case, Edit, Programs
from .models import Config
from .tlc import INVARIANT

GEMM: Final = "SteelGEMM"
INVARIANTS: Final = ("SameBarrier", "AllReach", "WrittenOnce", "NothingShared", "NoConflict", "WrittenAll")
BUGS: Final = Path(__file__).resolve().parents[2] / "tests" / "verification" / "planted_gemm.toml"

#: The kernels that are recorded. Sizes are ragged: tiles and steps are cut off by the edges.
CASES: Final[Mapping[str, Case]] = {
    # one tile in threadgroup memory: two barriers a step
    "gemm-one-tile": Case(GemmTile(8, 8, 8, 1, 1, 1), m=7, n=6, k=11),
    # two tiles in turn: one barrier a step; two threadgroups, operands transposed
    "gemm-two-tiles": Case(GemmTile(8, 8, 8, 1, 1, 2), m=13, n=6, k=11, trans_a=True, trans_b=True),
    # few rows: simdgroups share the terms of a sum and add their parts up in threadgroup memory
    "gemm-dot": Case(GemvDot(1, 4, 2, 1), m=1, n=3, k=24),
    # two simdgroups, three steps
    "gemm-two-simdgroups": Case(GemmTile(8, 16, 8, 1, 2, 1), m=5, n=12, k=19),
    # the second of two simdgroups has nothing to do but to load and to come to the barriers
    "gemm-idle-simdgroup": Case(GemmTile(8, 16, 8, 1, 2, 2), m=5, n=6, k=11),
    # four threadgroups in two rows and two columns of tiles
    "gemm-four-groups": Case(GemmTile(8, 8, 8, 1, 1, 2), m=13, n=11, k=20, trans_b=True),
    # threadgroups that share the terms of a sum, in a batch
    "gemm-splits": Case(GemmTile(8, 8, 8, 1, 1, 2), m=8, n=7, k=25, batch=2, splits=2),
    # few rows, b with its columns contiguous
    "gemm-columns": Case(GemvColumns(1, 4, 2), m=1, n=50, k=9),
}
_QUICK: Final = ("gemm-one-tile", "gemm-two-tiles", "gemm-dot")

#: The barriers of the kernels, in order of their lines, and the same source without each.
_LOOP: Final = (
    "* TileB::kSize, thread_at);\n        threadgroup_barrier(mem_flags::mem_threadgroup);",
    "* TileB::kSize, thread_at);\n",
)
_FIRST: Final = (
    "commit(b_held, b_tiles, thread_at);\n    threadgroup_barrier(mem_flags::mem_threadgroup);",
    "commit(b_held, b_tiles, thread_at);\n",
)
_SECOND: Final = ("if (STAGES == 1) threadgroup_barrier(mem_flags::mem_threadgroup);", "")
_DOT: Final = ("+ lane] = mine;\n    threadgroup_barrier(mem_flags::mem_threadgroup);", "+ lane] = mine;\n")
BARRIERS: Final[Mapping[str, tuple[Edit, ...]]] = {
    "gemm-one-tile": (_FIRST, _SECOND, _LOOP),
    "gemm-two-tiles": (_FIRST, _LOOP),
    "gemm-dot": (_DOT,),
}


@dataclass(frozen=True)
class GemmConfig(Config):
    """A recorded kernel, and what is changed in its programs.

    Attributes:
        case: which of CASES.
        edit: what is changed in the kernel's source before it is recorded.
        site: leave out the barriers of one place in the source: 0 for the first line; None: none.
        number: leave out one barrier of each thread: 1 for the first; 0: none.
        unfenced: make one barrier of each thread order nothing.
        stray: one thread goes past its last barrier (0: none).
        crew: threads taken together; 2: every pair.
    """

    case: str = ""
    edit: Edit | None = None
    site: int | None = None
    number: int = 0
    unfenced: int = 0
    stray: int = 0
    crew: int = 2

    @property
    def programs(self) -> Programs:
        """The recorded programs."""
        return gemm_programs.record(CASES[self.case], self.edit)

    @property
    def constants(self) -> dict[str, str]:
        dropped = (self.number,) if self.number else ()
        if self.site is not None:
            dropped = self.programs.numbers(sorted(self.programs.lines)[self.site])
        return {
            "Dropped": _numbers(*dropped),
            "Unfenced": _numbers(*filter(None, (self.unfenced,))),
            "Strays": _numbers(*filter(None, (self.stray,))),
        }

    def arguments(self) -> dict[str, Any]:
        """The arguments of ``tlc.run``."""
        return {
            "model": GEMM,
            "constants": self.constants,
            "invariants": INVARIANTS,
            "modules": {"GemmPrograms": gemm_programs.module(self.programs, self.crew)},
        }


def _numbers(*values: int) -> str:
    return "{" + ", ".join(map(str, values)) + "}"


def _holds(case: str, says: str, states: int, **more: Any) -> GemmConfig:
    return GemmConfig(
        more.pop("name", case), GEMM, says, states=states, case=case, quick=case in _QUICK, **more
    )


def _fails(what: str, case: str, violated: str, *, quick: bool = True, **more: Any) -> GemmConfig:
    return GemmConfig(
        f"{case}: {what}",
        GEMM,
        f"must fail: {what}",
        exit_code=INVARIANT,
        violated=violated,
        case=case,
        quick=quick and case in _QUICK,
        **more,
    )


HOLDING: tuple[GemmConfig, ...] = (
    _holds("gemm-one-tile", "one tile in threadgroup memory, two barriers a step", 7936),
    _holds("gemm-two-tiles", "two tiles in turn, one barrier a step, two threadgroups", 11908),
    _holds("gemm-dot", "simdgroups that share a sum", 16128),
    _holds("gemm-two-simdgroups", "two simdgroups, three steps", 48384),
    _holds("gemm-idle-simdgroup", "a simdgroup that has no results to compute", 24192),
    _holds("gemm-four-groups", "four threadgroups", 31768),
    _holds("gemm-splits", "threadgroups that share the terms of a sum, in a batch", 23832),
    _holds("gemm-columns", "few rows, columns contiguous", 16128),
    _holds("gemm-one-tile", "four threads at a time", 4096, name="gemm-crews-of-four", crew=4),
)

FAILING: tuple[GemmConfig, ...] = (
    *(
        _fails(f"without the barrier of line {site + 1}", case, "NoConflict", site=site)
        for case, edits in BARRIERS.items()
        for site in range(len(edits))
    ),
    *(
        _fails(f"without barrier {number} of each thread", case, "NoConflict", number=number, quick=False)
        for case, count in (("gemm-one-tile", 3), ("gemm-two-tiles", 2), ("gemm-two-simdgroups", 5))
        for number in range(1, count + 1)
    ),
    _fails("a barrier that orders nothing", "gemm-two-tiles", "NoConflict", quick=False, unfenced=2),
    _fails("a thread goes past its last barrier", "gemm-idle-simdgroup", "AllReach", stray=64),
    _fails("the same with four at a time", "gemm-one-tile", "NoConflict", number=3, crew=4, quick=False),
)


def named(name: str) -> GemmConfig:
    """The configuration of that name."""
    return next(config for config in HOLDING if config.name == name)


def bugs(path: Path = BUGS) -> tuple[GemmConfig, ...]:
    """The kernels with the bugs of a file planted into them: each must fail in the way that is written there."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["bug"]
    return tuple(
        GemmConfig(
            e["name"],
            GEMM,
            f"must fail: {e['name']}",
            exit_code=INVARIANT,
            violated=e["violated"],
            case=e["config"],
            edit=(e["find"], e["replace"]),
            quick=e.get("quick", False),
        )
        for e in entries
    )
