"""Copies between pinned host memory and the device inside a captured graph.

A small copy is made by a kernel that reads or writes the pinned memory in place, through an alias of it on
the device: a copy engine's work item costs several microseconds on the path from the first input to the
last output, and graphs that run side by side wait for the same few engines. Large copies are left to the
engines.
"""

from __future__ import annotations

from typing import Any

import torch

MOST_BYTES = 1 << 16  # of one tensor that a kernel copies
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CODES = {1: "|u1", 2: "<i2", 4: "<i4", 8: "<i8"}


class _Alias:
    """Pinned host memory, for torch to see as memory of the device: both use the same addresses."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": tuple(tensor.shape),
            "typestr": _CODES[tensor.element_size()],
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }


def copy_to_device(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy pinned, contiguous ``source`` to ``target`` of the same shape and dtype, on the current stream.

    Both must stay alive, and ``source`` must not change, until that has run.
    """
    if _suits(source):
        alias = torch.as_tensor(_Alias(source), device=target.device)
        torch.bitwise_or(alias, 0, out=_bits(target))
    else:
        target.copy_(source, non_blocking=True)


def copy_to_host(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy ``source`` to pinned, contiguous ``target`` of the same shape and dtype, on the current stream."""
    if _suits(target):
        alias = torch.as_tensor(_Alias(target), device=source.device)
        torch.bitwise_or(_bits(source), 0, out=alias)
    else:
        target.copy_(source, non_blocking=True)


def _suits(pinned: torch.Tensor) -> bool:
    size = pinned.numel() * pinned.element_size()
    return 0 < size <= MOST_BYTES and pinned.element_size() in _BITS and pinned.is_contiguous()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(_BITS[tensor.element_size()])
