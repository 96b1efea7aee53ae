"""softmax: long rows against the copy's bandwidth, small ones against the time of a launch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.ops import _mlx
from benchmarks.ops._cases import Case, Goal, Make, compiled, random
from steelworks.kernels.triton import softmax

LARGE = ((4096, 4096), (32768, 4096))
SMALL = ((1, 1024), (32, 1024))


def bandwidth_goals() -> tuple[Goal, ...]:
    """The share of the copy's bandwidth, and the time against Liger's."""
    return (
        Goal("share of the copy's bandwidth", lambda us: us["copy"] / us["steel"], 0.95, 0.99),
        Goal("time of Liger / ours", lambda us: us.get("liger", float("nan")) / us["steel"], 0.0, 1.0),
    )


SMALL_GOALS = (Goal("us in a graph", lambda us: us["steel"], 1.5, 1.1, least=False),)


def liger(path: str, name: str) -> Any:
    """Something of Liger-Kernel, or None where it is not installed."""
    import importlib

    try:
        return getattr(importlib.import_module(f"liger_kernel.ops.{path}"), name)
    except (ImportError, AttributeError):
        return None


def quack(path: str, name: str) -> Any:
    """Something of quack, or None where it, or what it needs, is not installed."""
    import importlib

    try:
        return getattr(importlib.import_module(f"quack.{path}"), name)
    except (ImportError, AttributeError, OSError):
        return None


def cases() -> Iterator[Case]:
    """Rows of 4096 and of 1024 elements in bfloat16."""
    fast = compiled(lambda x: torch.softmax(x, -1))
    peer, other = liger("softmax", "LigerSoftmaxFunction"), quack("softmax", "softmax")
    implementations: dict[str, Make] = {
        "steel": lambda x: lambda: softmax.softmax(x),
        "torch": lambda x: lambda: torch.softmax(x, -1),
        "compile": lambda x: lambda: fast(x),
    }
    if peer is not None:
        implementations["liger"] = lambda x: lambda: peer.apply(x)
    if other is not None:
        implementations["quack"] = lambda x: lambda: other(x)
    for shape in (*LARGE, *SMALL):
        large = shape in LARGE
        yield Case(
            op="softmax",
            name=f"{shape[0]}x{shape[1]} bf16",
            bytes=2 * 2 * shape[0] * shape[1],
            inputs=lambda shape=shape: random(*shape),
            implementations=implementations,
            launches=(12 if shape[0] == 4096 else 4) if large else 200,
            goals=bandwidth_goals() if large else SMALL_GOALS,
            check=lambda x: torch.softmax(x.double(), -1),
            rotate=large,
            chains=_mlx.softmax(*shape, 24 if large else 200),
            host=shape == (32, 1024),
        )
