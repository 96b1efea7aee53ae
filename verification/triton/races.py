"""Data races in PTX, by sentryward: a static verifier that looks at every thread of a launch."""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from verification.claims import ToolMissing

from .compile import Compiled
from .record import Launched

#: Of one launch.
SECONDS: Final = 60
MEBIBYTES: Final = 5000
#: A scalar's type as Triton names it, and in PTX.
_SCALARS: Final = {"i32": ("u32", 2**32 - 1), "i64": ("u64", 2**64 - 1), "fp32": ("f32", 0)}


@dataclass(frozen=True)
class Verdict:
    """What sentryward says.

    Attributes:
        result: Its word.
        why: Where that is not "race_free", the codes of its diagnostics, and more.
        seconds: What it took.
        alike: The race is between two threads that store to shared memory in one place of the source.
    """

    result: str
    why: str
    seconds: float
    alike: bool = False

    @property
    def free(self) -> bool:
        """It proved that there is no race and that barriers are met by all."""
        return self.result == "race_free"

    @property
    def flagged(self) -> bool:
        """It found something, rather than gave up."""
        return self.result in ("potential_race", "not_wellsynced", "invalid_lifecycle")


def version() -> str:
    """Its version.

    Raises:
        ToolMissing: It is not installed.
    """
    try:
        return importlib.metadata.version("sentryward")
    except importlib.metadata.PackageNotFoundError as problem:
        raise ToolMissing(
            "sentryward is not here; install with: python -m pip install sentryward"
        ) from problem


def inputs(launched: Launched, compiled: Compiled, assume: dict[str, bool] | None = None) -> dict[str, Any]:
    """The launch as sentryward reads it. Operands in the same place are the same object; all others are apart."""
    pointers = len(launched.operands)
    last = pointers + len(launched.scalars)
    declared = [
        {"parameter": number, "type": "pointer", "space": "global", "object": f"memory{o.memory}_{o.offset}"}
        for number, o in enumerate(launched.operands)
    ]
    # Triton adds two pointers to scratch memory, which no kernel here has.
    declared += [
        {"parameter": last + more, "type": "pointer", "space": "global", "object": f"scratch{more}"}
        for more in range(2)
    ]
    types = launched.variant.types[pointers:]
    return {
        "schema": "spverify.kernel-input/v1",
        "launch": {
            "grid_dim": list(launched.grid),
            "block_dim": [compiled.threads, 1, 1],
            "dynamic_shared_bytes": compiled.shared,
        },
        "declarations": declared,
        "arguments": [
            {"parameter": number, "type": _SCALARS[kind][0], "value": _as_unsigned(value, _SCALARS[kind][1])}
            for number, (kind, value) in enumerate(zip(types, launched.scalars, strict=True), pointers)
        ],
        "assumptions": assume or {},
    }


def _as_unsigned(value: int | float, mask: int) -> int | float:
    return value & mask if isinstance(value, int) else value


def check(
    launched: Launched, compiled: Compiled, assume: dict[str, bool] | None = None, seconds: float = SECONDS
) -> Verdict:
    """Runs sentryward on one launch, within limits of time and memory."""
    from sentryward import verify  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with tempfile.TemporaryDirectory(prefix="steelworks-races-") as folder:
        ptx, config = Path(folder, "kernel.ptx"), Path(folder, "input.json")
        ptx.write_text(compiled.ptx, encoding="utf-8")
        config.write_text(json.dumps(inputs(launched, compiled, assume)), encoding="utf-8")
        said = verify(ptx, input=config, timeout_seconds=seconds, memory_limit_mib=MEBIBYTES)
    result = str(said.get("result"))
    if result == "race_free" and said["checks"]["memory"] != "passed":
        result = "unsupported"
    why = "" if result == "race_free" else _why(said)
    return Verdict(result, why, float(said.get("elapsed_seconds", 0.0)), _alike(said))


def _alike(said: dict[str, Any]) -> bool:
    found = said.get("races") or []
    return bool(found) and all(
        race["first"]["mode"] == race["second"]["mode"] == "write"
        and race["first"]["location"] == race["second"]["location"]
        and race["region"]["address_space"] == "shared"
        for race in found
    )


def _why(said: dict[str, Any]) -> str:
    found = Counter[str]()
    for one in said.get("diagnostics", []):
        details = one.get("details")
        details = details if isinstance(details, dict) else {}
        what = str(details.get("instruction") or details.get("opcode") or "").split("//")[0].strip()
        found[" ".join(f"{one.get('code')} {one.get('message', '')} {what}".split())] += 1
    return "; ".join(f"{text} ({count})" if count > 1 else text for text, count in found.most_common(3))[:400]
