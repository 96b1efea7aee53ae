"""Counters that are zero at the start of a launch: how the parts of a split sum find out which of them is last.

A kernel that counts leaves its counters at zero, so they are cleared once, when the arena is made, and not before
each launch. Launches that may run at the same time must not share counters:

* a stream has counters of its own (its launches follow each other; no kernel counts before it has waited for the
  kernels before it);
* a launch captured in a CUDA graph gets counters that nobody else ever gets, because the graph may be replayed on any
  stream. They are not handed out again: 64 Ki of them are there for each device, a few for each captured launch. When
  they are used up, a captured launch gets counters that the graph clears itself, which costs it a node.
"""

from __future__ import annotations

import threading
from typing import Final

import torch

#: Most counters of one launch that come from the arena.
MOST: Final = 512
_ARENA: Final = 65_536

_guard = threading.Lock()
_by_stream: dict[tuple[int, int], torch.Tensor] = {}
_left: dict[int, torch.Tensor] = {}


def zeros(count: int, like: torch.Tensor) -> torch.Tensor:
    """At least ``count`` int32 zeros on the device of ``like``, for one launch on the current stream."""
    index = like.get_device()
    if index < 0 or count > MOST:
        return torch.zeros(count, dtype=torch.int32, device=like.device)
    if torch.cuda.is_current_stream_capturing():
        return _never_again(count, like)
    key = (index, torch.cuda.current_stream(index).cuda_stream)
    found = _by_stream.get(key)
    if found is None:
        with _guard:
            found = _by_stream.get(key)
            if found is None:
                found = torch.zeros(MOST, dtype=torch.int32, device=like.device)
                if index not in _left:
                    _left[index] = torch.zeros(_ARENA, dtype=torch.int32, device=like.device)
                    torch.cuda.current_stream(index).synchronize()  # any stream may use it from now on
                _by_stream[key] = found
    return found


def _never_again(count: int, like: torch.Tensor) -> torch.Tensor:
    with _guard:
        left = _left.get(like.get_device())
        if left is None or left.numel() < count:
            return torch.zeros(count, dtype=torch.int32, device=like.device)
        _left[like.get_device()] = left[count:]
        return left[:count]
