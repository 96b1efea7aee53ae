"""Whether several MPS streams are active: then vendor paths that keep shared objects race (R3 to R5).

A call that still takes a vendor path takes turns with the others, and with the blocks of the device's streams. Our
kernels share no objects: they take no turn, and wait for nobody's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

REASON: Final = (
    "several MPS streams are active, on which PyTorch's own kernels encode shared objects at once (R3 to R5); "
    "ours share none"
)
_backend: Any = torch
_seen = False


def backend() -> Any:
    """What stands for torch: torch itself, outside tests."""
    return _backend


def several_streams() -> bool:
    """Whether a thread was ever seen on a stream of its own, as threads are when there are several.

    From then on the answer is yes for all threads: one on the default stream races with those as well. Before torch
    2.15 there is one stream, and the answer is no.
    """
    global _seen
    if not _seen:
        current = getattr(_backend.mps, "current_stream", None)
        _seen = current is not None and bool(current() != _backend.mps.default_stream())
    return _seen


def in_turn(run: Callable[..., Any], *args: Any) -> Any:
    """Runs PyTorch's own on mps while no other thread runs such a call, or encodes in a block of the device's.

    Not before torch 2.15, where there is one stream; nor in a backward: autograd's own thread runs it for a thread that
    waits, and that may have the turn.
    """
    if not hasattr(_backend.mps, "Stream") or torch._C._current_graph_task_id() != -1:
        return run(*args)
    from steelworks.devices._mps_gate import (
        gate_of,
    )  # not before it is needed: most processes have no Apple GPU

    gate = gate_of(_backend)
    holder = gate.enter_vendor()
    try:
        return run(*args)
    finally:
        if holder is not None:
            gate.leave(holder)


def forget() -> None:
    """Looks afresh."""
    global _seen
    _seen = False
