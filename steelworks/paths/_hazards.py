"""Whether several MPS streams are active: then vendor paths that keep shared objects race (R3 to R5)."""

from __future__ import annotations

from typing import Any, Final

import torch

REASON: Final = (
    "several MPS streams are active, on which PyTorch's own kernels encode shared objects at once (R3 to R5); "
    "ours share none"
)
_backend: Any = torch
_seen = False


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


def forget() -> None:
    """Looks afresh."""
    global _seen
    _seen = False
