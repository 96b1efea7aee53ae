"""Runs the kernels' tests on an Apple GPU: ``pytest tests/kernels --kernels-on mps``.

The tests make CPU tensors, with views at offsets and stale data around them. Here each launch copies their whole
storages to the GPU, binds the same views there, runs, and copies the storages back: what a kernel writes beside its
output is seen, too. Checking mode and counters are metalsim's and do not exist there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from steelworks.kernels.metal import _launch


class OnDevice:
    """A kernel that takes CPU tensors and runs on a device.

    Args:
        kernel: What ``compile_shader`` gave for that device.
        device: Where it runs.
        synchronize: Waits for the device.
    """

    def __init__(self, kernel: Any, device: str, synchronize: Callable[[], None]) -> None:
        self._kernel = kernel
        self._device = device
        self._synchronize = synchronize

    def __call__(self, *args: Any, **options: Any) -> None:
        """Launches, waits, and brings the storages back."""
        there: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        bound = [self._moved(a, there) if isinstance(a, torch.Tensor) else a for a in args]
        self._kernel(*bound, **options)
        self._synchronize()
        for here, copy in there.values():
            here.copy_(copy)

    def _moved(
        self, tensor: torch.Tensor, there: dict[int, tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0:
            return tensor.to(self._device)
        if storage.data_ptr() not in there:
            here = torch.empty(0, dtype=torch.uint8).set_(storage)
            copy = torch.empty_like(here, device=self._device)
            there[storage.data_ptr()] = here, copy.copy_(here)
        size = tensor.element_size()
        whole = there[storage.data_ptr()][1]
        typed = whole[: whole.numel() // size * size].view(tensor.dtype)
        return typed.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def compiler(
    device: str, compile_shader: Callable[[str], Any], synchronize: Callable[[], None]
) -> Callable[[Sequence[tuple[str, _launch.Variant]]], list[Any]]:
    """What takes the place of the launcher's compiler, for kernels that run on ``device``."""

    def compile(keys: Sequence[tuple[str, _launch.Variant]]) -> list[Any]:
        library = compile_shader(_launch.source_of(*(variant for _, variant in keys)))
        return [OnDevice(getattr(library, variant.name), device, synchronize) for _, variant in keys]

    return compile
