"""Which tensors may be read before the kernel before has ended: those that it can't be writing.

A kernel that starts early (programmatic dependent launch) finds all memory complete but for what the kernel before it
writes. A parameter is read early if it was seen before, unchanged since, and the stream was waited for when it was
first seen. Whatever writes to a tensor raises its version, so after a write it counts as new. Other tensors may be made
anew for each call (a view of a weight, say), and waiting for each would cost more than it saves: they are read late.
"""

from __future__ import annotations

import functools
import weakref
from typing import Final, NamedTuple

import torch
from torch.nn import Parameter

#: A tensor that was found changed so often is not waited for again.
MOST_CHANGES: Final = 8


class _Seen(NamedTuple):
    tensor: weakref.ref[torch.Tensor]
    version: int
    address: int
    changes: int


_seen: Final[dict[int, _Seen]] = {}


def settled(*tensors: torch.Tensor | None) -> bool:
    """Whether all may be read early.

    New parameters are waited for, once; but not where gradients are on, since then weights change at every step, nor
    while a graph is captured. Those made in inference mode have no version, so they are never read early.
    """
    fresh = [t for t in tensors if t is not None and not _known(t)]
    if not fresh:
        return True
    if torch.is_grad_enabled() or not all(isinstance(t, Parameter) and not t.is_inference() for t in fresh):
        return False
    if torch.cuda.is_current_stream_capturing():
        return False
    found = [(t, t._version, t.data_ptr(), _changes(t)) for t in fresh]
    if any(changes > MOST_CHANGES for *_, changes in found):
        return False
    torch.cuda.current_stream(fresh[0].device).synchronize()
    for tensor, version, address, changes in found:
        key = id(tensor)
        _seen[key] = _Seen(weakref.ref(tensor, functools.partial(_forget, key)), version, address, changes)
    return True


def _known(tensor: torch.Tensor) -> bool:
    seen = _seen.get(id(tensor))
    return (
        seen is not None
        and seen.tensor() is tensor
        and not tensor.is_inference()
        and seen.version == tensor._version
        and seen.address == tensor.data_ptr()
    )


def _changes(tensor: torch.Tensor) -> int:
    seen = _seen.get(id(tensor))
    return 0 if seen is None or seen.tensor() is not tensor else seen.changes + 1


def _forget(key: int, _: object) -> None:
    seen = _seen.get(key)
    if seen is not None and seen.tensor() is None:
        _seen.pop(key, None)
