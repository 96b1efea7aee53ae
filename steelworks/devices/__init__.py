"""Devices: the CPU, NVIDIA GPUs and the Apple GPU behind one small interface."""

from __future__ import annotations

import os
import threading

import torch

from steelworks.devices.base import Capabilities, Device, Hazard, Stream
from steelworks.devices.cpu import CPUDevice
from steelworks.devices.cuda import CUDADevice
from steelworks.devices.mps import MPSDevice
from steelworks.errors import InvalidInputError

__all__ = [
    "CPUDevice",
    "CUDADevice",
    "Capabilities",
    "Device",
    "Hazard",
    "MPSDevice",
    "Stream",
    "resolve",
]

_cache: dict[torch.device, Device] = {}
_cache_lock = threading.Lock()


def resolve(device: str | torch.device | Device | None = None) -> Device:
    """Return the :class:`Device` for ``device``; the same object for the same device every time.

    Args:
        device: ``"cpu"``, ``"cuda"`` (the current GPU), ``"cuda:1"``, ``"mps"``, a
            ``torch.device``, a :class:`Device` (returned as it is), or None for torch's default
            device, which is the CPU unless ``torch.set_default_device`` was called.

    Raises:
        InvalidInputError: the device is unknown, or this machine or this torch lacks it.
    """
    if isinstance(device, Device):
        return device
    key = _normalize(torch.get_default_device() if device is None else device)
    with _cache_lock:
        found = _cache.get(key)
        if found is None:
            found = _cache[key] = _make(key)
        return found


def _normalize(device: str | torch.device) -> torch.device:
    """Give ``device`` the one spelling under which it is cached."""
    if not isinstance(device, (str, torch.device)):
        raise InvalidInputError(
            f"{device!r} was given as a device; give a string, a torch.device or a steelworks Device"
        )
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InvalidInputError(
            f"{device!r} is no device that torch knows; use 'cpu', 'cuda', 'cuda:<number>' or 'mps'"
        ) from error
    if wanted.type == "cuda":
        return _normalize_cuda(wanted)
    if wanted.type == "mps":
        if not torch.backends.mps.is_available():
            raise InvalidInputError(
                f"{str(wanted)!r} was given, but this torch ({torch.__version__}) sees no Apple GPU; "
                "use 'cpu', or a torch built for macOS on an Apple machine"
            )
        return torch.device("mps")
    if wanted.type == "cpu":
        return torch.device("cpu")
    raise InvalidInputError(f"{str(wanted)!r} was given; Steelworks runs on 'cpu', 'cuda' and 'mps'")


def _normalize_cuda(wanted: torch.device) -> torch.device:
    if not torch.cuda.is_available():
        raise InvalidInputError(
            f"{str(wanted)!r} was given, but this torch ({torch.__version__}) sees no NVIDIA GPU; "
            "use 'cpu', or install a CUDA build of torch and check the driver with nvidia-smi"
        )
    index = torch.cuda.current_device() if wanted.index is None else wanted.index
    count = torch.cuda.device_count()
    if index >= count:
        raise InvalidInputError(f"{str(wanted)!r} was given; this machine has cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def _make(key: torch.device) -> Device:
    if key.type == "cuda":
        return CUDADevice(key.index)
    if key.type == "mps":
        return MPSDevice()
    return CPUDevice()


def _forget_lock() -> None:
    """Replace the lock in a forked child: another thread may have held it."""
    global _cache_lock
    _cache_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)
