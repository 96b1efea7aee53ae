"""The configurations of Paths.tla, and what TLC must find in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .models import Config
from .tlc import INVARIANT, LIVENESS

PATHS: Final = "Paths"
INVARIANTS: Final = (
    "OneVendor",
    "OneUser",
    "InQueue",
    "OneInQueue",
    "SteelFree",
    "NoWaitForGPU",
    "NoCycle",
    "RefusedRightly",
    "TurnKept",
)
BUGS: Final = Path(__file__).resolve().parents[2] / "tests" / "verification" / "planted_paths.toml"
_USUAL: Final = {
    "Threads": "{t1, t2}",
    "Default": "{}",
    "Ops": '{"linear"}',
    "Mode": '"streams"',
    "Queued": "TRUE",
    "Dying": "TRUE",
    "Bug": '"none"',
}
_OWNER: Final = {"Mode": '"owner"', "Default": "{t1, t2}", "Queued": "FALSE"}


@dataclass(frozen=True)
class PathsConfig(Config):
    """Paths.tla in one configuration.

    Attributes:
        invariants: those that are checked.
    """

    invariants: tuple[str, ...] = INVARIANTS

    @property
    def constants(self) -> dict[str, str]:
        """All constants of the model."""
        return {**_USUAL, **self.changed}

    def arguments(self) -> dict[str, Any]:
        """The arguments of ``tlc.run`` but for the dump."""
        return {
            "model": PATHS,
            "constants": self.constants,
            "specification": "FairSpec" if self.properties else "Spec",
            "invariants": () if self.properties else self.invariants,
            "properties": self.properties,
            "symmetry": "Alike" if self.symmetry else "",
        }


def _holds(
    name: str, says: str, states: int, changed: Mapping[str, str] | None = None, **more: Any
) -> PathsConfig:
    return PathsConfig(name, PATHS, says, changed or {}, states, **more)


HOLDING: tuple[PathsConfig, ...] = (
    _holds(
        "paths-streams",
        "two threads with streams: blocks, waits, copies, vendor and Steel calls, one operator migrates",
        319,
        replayed=True,
    ),
    _holds(
        "paths-mixed",
        "the same with one of the two on the default stream",
        341,
        {"Default": "{t2}"},
        replayed=True,
    ),
    _holds(
        "paths-default",
        "two threads that share the default stream's queue",
        386,
        {"Default": "{t1, t2}"},
        replayed=True,
    ),
    _holds(
        "paths-owner",
        "one owner thread, one stream without a queue (before torch 2.15)",
        22,
        _OWNER,
        replayed=True,
    ),
    _holds(
        "paths-owner-queue",
        "one owner thread in torch 2.15",
        22,
        {**_OWNER, "Queued": "TRUE"},
        replayed=True,
    ),
    _holds(
        "paths-owner-three",
        "three threads and one owner",
        62,
        {**_OWNER, "Threads": "{t1, t2, t3}", "Default": "{t1, t2, t3}"},
        replayed=True,
        quick=False,
    ),
    _holds(
        "paths-migration",
        "two operators that get Steel kernels one at a time",
        938,
        {"Ops": '{"linear", "bmm"}'},
        replayed=True,
        quick=False,
    ),
    _holds(
        "paths-three",
        "three threads, two of which share the default stream",
        3700,
        {"Threads": "{t1, t2, t3}", "Default": "{t2, t3}"},
        replayed=True,
        quick=False,
    ),
    _holds(
        "paths-alike",
        "four threads with streams of their own, alike, and three operators",
        27628,
        {"Threads": "{t1, t2, t3, t4}", "Ops": '{"linear", "bmm", "conv2d"}'},
        symmetry=True,
        quick=False,
    ),
    _holds(
        "paths-every-turn-comes",
        "whoever waits comes in; an operator that has a Steel kernel keeps it",
        319,
        properties=("EveryTurnComes", "Grows"),
    ),
    _holds(
        "paths-free-at-last",
        "once all operators have Steel kernels, nobody waits for a turn to call",
        319,
        properties=("FreeAtLast",),
        quick=False,
    ),
    _holds(
        "paths-every-turn-comes-default",
        "the same with two threads that share the default stream's queue",
        386,
        {"Default": "{t1, t2}"},
        properties=("EveryTurnComes", "FreeAtLast"),
        quick=False,
    ),
)


def _bug(bug: str, violated: str, *, quick: bool = False, **more: Any) -> PathsConfig:
    """The mistake shows in the books (TurnKept) at once; what it leads to is what is looked for."""
    changed = more.pop("changed", {})
    properties = more.get("properties", ())
    return PathsConfig(
        f"{PATHS}: {bug}" + (" (liveness)" if properties else ""),
        PATHS,
        f"must fail: {bug}",
        {**changed, "Bug": f'"{bug}"'},
        exit_code=LIVENESS if properties else INVARIANT,
        violated="" if properties else violated,
        invariants=INVARIANTS if violated == "TurnKept" else INVARIANTS[:-1],
        quick=quick,
        **more,
    )


FAILING: tuple[PathsConfig, ...] = (
    _bug("no vendor lock", "OneVendor", quick=True),
    _bug("Steel takes turns", "SteelFree", quick=True),
    _bug("not again", "NoCycle", quick=True),
    _bug("waits with the turn", "NoWaitForGPU"),
    _bug("comes back without a turn", "OneVendor"),
    _bug("off the queue", "InQueue", quick=True),
    _bug("casts on the way out", "InQueue"),
    _bug("the turn is kept", "TurnKept"),
    _bug("no owner", "OneUser", changed=_OWNER, quick=True),
    _bug("a dead owner stays", "RefusedRightly", changed=_OWNER),
    _bug("the turn is kept", "", properties=("EveryTurnComes",)),
)


def named(name: str) -> PathsConfig:
    """The configuration of that name."""
    return next(config for config in HOLDING if config.name == name)
