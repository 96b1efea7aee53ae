"""``copy_`` on an Apple GPU, by the ways that do not race: part of ``install("mps")``.

Every copy with an MPS tensor comes here, whatever it was called: ``to``, ``cpu``, ``float``, ``_to_copy`` and
assignments all end in aten's ``copy_``, and of a CPU and an MPS tensor the dispatcher takes the MPS kernel. It becomes:

* between CPU and MPS a copy of equal dtypes, and the conversion on the CPU (R1: PyTorch's own, to the CPU with another
  dtype, synchronizes outside the stream's queue);
* from and to ordinary memory, pinned memory being copied on the CPU (R2: PyTorch's own records an event outside it);
* where there are streams, with a turn (R3: ``copy_`` on two streams uses one object), before which a copy to the CPU
  waits for its own stream, so that the turn is not held meanwhile. Nothing here waits for all streams.

PyTorch's own copy is called through the dispatcher, in the CPU's place: aten has one ``copy_`` for all devices, which
looks at the tensors and not at the key, and only the entry for MPS is replaced. The other way to keep a kernel,
``torch.library.get_kernel``, calls it with the GIL held: all of Python would wait for the GPU. (Seen with
``aten::mm`` of 2500 x 2500 on the CPU, 0.8 s: another thread ran 1 time meanwhile, through the dispatcher 512 times.)

**Not run on a Mac.** It is tested against :class:`steelworks.testing.FakeMPS`, and with PyTorch's dispatcher in the
place of another device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from steelworks.errors import DeviceRuleError
from steelworks.paths import _hazards

Copy = Callable[[torch.Tensor, torch.Tensor, bool], torch.Tensor]
ATEN: Final = "copy_"
_C: Any = torch._C


def pytorchs_own() -> Copy:
    """aten's ``copy_``, past what is registered for MPS.

    Raises:
        DeviceRuleError: in this torch the CPU has a copy of its own, which would not know of MPS.
    """
    name = f"aten::{ATEN}"
    for_cpu = _C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
    if for_cpu or not _C._dispatch_has_kernel_for_dispatch_key(name, "CompositeExplicitAutograd"):
        raise DeviceRuleError(
            f"install: torch {torch.__version__} has an {name} for the CPU alone, past which no way is known to its "
            "copy for mps; use torch 2.11 to 2.15"
        )
    key = _C.DispatchKeySet(_C.DispatchKey.CPU)

    def copy(dst: torch.Tensor, src: torch.Tensor, non_blocking: bool) -> torch.Tensor:
        done: torch.Tensor = torch.ops.aten.copy_.default.redispatch(key, dst, src, non_blocking)
        return done

    return copy


def copy_safely(
    own: Copy, dst: torch.Tensor, src: torch.Tensor, non_blocking: bool, *, patient: bool = True
) -> torch.Tensor:
    """Copies ``src`` into ``dst``, as ``dst.copy_(src)``; at least one of them is on mps.

    Args:
        own: PyTorch's own copy.
        dst: Any shape and dtype.
        src: Broadcastable to it.
        non_blocking: May be ignored: a copy through a tensor that nobody else holds waits.
        patient: Whether others may encode while it waits for the stream; not in the midst of an operation.

    Returns:
        ``dst``.
    """
    from_cpu, to_cpu = src.device.type == "cpu", dst.device.type == "cpu"
    if not from_cpu and not to_cpu:
        return _turn(own, dst, src, non_blocking)
    plain = dst.dtype == src.dtype and not _pinned(src if from_cpu else dst)
    if from_cpu:
        if plain:
            return _turn(own, dst, src, non_blocking)
        return _turn(own, dst, src.to(dst.dtype, copy=True), False)
    if plain:
        if patient and not non_blocking:
            _finish()
        return _turn(own, dst, src, non_blocking)
    received = torch.empty(src.shape, dtype=src.dtype)  # aligned, dense and pageable, whatever dst is
    if patient:
        _finish()
    _turn(own, received, src, False)
    return dst.copy_(received)


def _turn(own: Copy, dst: torch.Tensor, src: torch.Tensor, non_blocking: bool) -> torch.Tensor:
    _hazards.in_turn(own, dst, src, non_blocking)
    return dst


def _pinned(tensor: torch.Tensor) -> bool:
    return bool(_hazards.backend().Tensor.is_pinned(tensor))


def _finish() -> None:
    """Waits for the thread's own stream, while others may encode. Before torch 2.15 the copy itself has to wait."""
    backend = _hazards.backend()
    if not hasattr(backend.mps, "Stream"):
        return
    from steelworks.devices._mps_gate import gate_of  # most processes have no Apple GPU

    with gate_of(backend).waiting():
        backend.mps.current_stream().synchronize()
