"""A stand-in for torch on an Apple GPU that enforces the rules of a given torch version.

**Nothing here has run on a Mac.** The rules come from reading torch's macOS wheels and its issue
tracker. Where the real thing crashes by luck, the stand-in is stricter: below 2.15 any two
threads inside an operation at the same time end the process.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from steelworks.testing._fake_tensor import (
    MPS,
    FactoriesOnDevice,
    FakeMPSTensor,
    factory,
    is_pinned,
    own_copy,
)
from steelworks.testing._metal import (
    NOT_ON_QUEUE,
    QUEUED_SINCE,
    CommandBuffer,
    FakeMPSAbort,
    Hold,
    Machine,
    StreamState,
)

_FACTORIES: frozenset[Any] = frozenset(
    {
        torch.arange,
        torch.empty,
        torch.eye,
        torch.full,
        torch.linspace,
        torch.logspace,
        torch.ones,
        torch.rand,
        torch.randn,
        torch.tensor,
        torch.zeros,
    }
)
_UNSUPPORTED = (torch.float64, torch.complex128)


class FakeMPS:
    """An Apple GPU under a given torch version.

    Give :attr:`torch` to ``MPSDevice(backend=...)``, put a module on it with :meth:`put`, and
    tensors with ``device.copy_in``. Arithmetic is done on the CPU, so answers are real.

    Args:
        version: ``"2.13.0"``, ``"2.14.1"``, ``"2.15.0"`` or the like.

    Attributes:
        torch: stands in for the ``torch`` module.
        mps: stands in for ``torch.mps``.
    """

    def __init__(self, version: str = "2.15.0") -> None:
        match = re.match(r"(\d+)\.(\d+)", version)
        if match is None:
            raise ValueError(f"version={version!r} was given; expected something like '2.15.0'")
        number = (int(match[1]), int(match[2]))
        self.version = version
        self._machine = Machine(number)
        self.mps = _TorchMPS215(self._machine) if number >= QUEUED_SINCE else _TorchMPS(self._machine)
        self.torch = _Torch(self)

    @property
    def aborted(self) -> FakeMPSAbort | None:
        """The abort that ended the process, if one did."""
        return self._machine.dead

    @property
    def latent(self) -> tuple[str, ...]:
        """Rules that were broken without a collision this time, such as ``R1``."""
        return tuple(self._machine.latent)

    @property
    def threads(self) -> frozenset[int]:
        """Idents of the threads that put work on the device."""
        return frozenset(thread for thread, _, _ in self._machine.log)

    @property
    def streams_used(self) -> frozenset[int]:
        """Numbers of the streams that got work; 0 is the default stream."""
        return frozenset(stream for _, stream, _ in self._machine.log)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the operations so far, in order."""
        return tuple(kind for _, _, kind in self._machine.log)

    @property
    def ready(self) -> frozenset[str]:
        """The kinds of operation whose lazy state exists (R6)."""
        return frozenset(self._machine.ready)

    @property
    def global_synchronizes(self) -> tuple[int, ...]:
        """Idents of the threads that called ``torch.mps.synchronize()``, in order."""
        return tuple(self._machine.global_synchronizes)

    def check(self) -> None:
        """Raise unless every rule was kept, by luck or not.

        Raises:
            FakeMPSAbort: the process would have ended.
            AssertionError: a rule was broken without a collision.
        """
        self._machine.check_alive()
        if self.latent:
            raise AssertionError(f"rules broken without a collision: {', '.join(self.latent)}")

    def run(self, kind: str, shapes: object = ()) -> None:
        """Encode an operation of ``kind`` on the current stream, without arithmetic."""
        self._machine.operate(kind, shapes, lambda: None)

    def put(self, module: nn.Module) -> nn.Module:
        """Move a module's parameters and buffers to the device, in place; return the module.

        Inside its ``forward``, torch's factory functions know ``device="mps"``.
        """
        for part in module.modules():
            for name, parameter in list(part._parameters.items()):
                if parameter is not None and not isinstance(parameter, FakeMPSTensor):
                    moved = self._to_device(parameter.detach())
                    part._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
            for name, buffer in list(part._buffers.items()):
                if buffer is not None:
                    part._buffers[name] = self._to_device(buffer)
        forward = module.forward

        def on_device(*args: Any, **kwargs: Any) -> Any:
            with FactoriesOnDevice(self._machine, _FACTORIES):
                return forward(*args, **kwargs)

        module.forward = on_device
        return module

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy of a CPU tensor that the stand-in takes for pinned memory."""
        pinned = tensor.clone()
        pinned._fake_pinned = True  # type: ignore[attr-defined]
        return pinned

    def override_copies(self, kernel: Callable[..., torch.Tensor] | None) -> None:
        """Take ``kernel(dst, src, non_blocking)`` for every copy, as ``torch.library`` would; None for torch's own.

        Its own is :meth:`own_copy`.
        """
        self._machine.overrides.pop("copy_", None)
        if kernel is not None:
            self._machine.overrides["copy_"] = kernel

    @staticmethod
    def own_copy(dst: torch.Tensor, src: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        """What torch's own ``copy_`` does, hazards included; at least one of the tensors is on the device."""
        return own_copy(dst, src, non_blocking)

    def get_command_buffer(self) -> CommandBuffer:
        """What an extension gets from ``torch::mps::get_command_buffer()``; on the queue only, from 2.15."""
        stream = self._machine.current
        if self._machine.queued and stream.queue_thread != threading.get_ident():
            self._machine.abort(NOT_ON_QUEUE, "E1")
        return stream.buffer

    @contextmanager
    def hold(self, kind: str = "any", phase: str = "encode", *, patience: float = 30.0) -> Iterator[Hold]:
        """Stop the first thread that comes to a point inside an operation, until the block ends.

        Two threads inside at the same time are then no matter of luck: wait until one is inside,
        then act from another.

        Args:
            kind: the operation, ``"synchronize"``, or ``"any"``.
            phase: ``"encode"`` (its encoder is at work), ``"first_use"`` (it makes its lazy
                state), ``"commit"`` (of ``"synchronize"``: the buffer is committed) or
                ``"off_queue"`` (of ``"synchronize"``: about to begin, outside the queue).
            patience: seconds after which a hold that nothing reaches, or nobody releases, fails.
        """
        hold = Hold(kind, phase, patience)
        self._machine.add_hold(hold)
        try:
            yield hold
        finally:
            hold.release()
            self._machine.remove_hold(hold)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeMPSTensor):
            return tensor
        if tensor.dtype in _UNSUPPORTED:
            raise TypeError(
                f"Cannot convert a MPS Tensor to {str(tensor.dtype).removeprefix('torch.')} dtype as the "
                "MPS framework doesn't support it."
            )
        if is_pinned(tensor):
            self._machine.record_event(self._machine.current, off_queue="R2")
        return self._machine.operate(
            "copy_in", tensor.shape, lambda: FakeMPSTensor(tensor.detach().clone(), self._machine), wait=True
        )


class _Torch:
    """The ``torch`` module: the stand-in's own where MPS matters, the real one elsewhere."""

    def __init__(self, fake: FakeMPS) -> None:
        self.__version__ = fake.version
        self.mps = fake.mps
        self.Tensor = SimpleNamespace(
            to=lambda tensor, *args, **kwargs: _move(fake, tensor, *args, **kwargs),
            is_pinned=is_pinned,
            contiguous=lambda tensor: tensor.contiguous(),
        )
        self.backends = SimpleNamespace(
            mps=SimpleNamespace(is_available=lambda: True, get_name=lambda: "Apple GPU (stand-in)")
        )
        self._factories = {make.__name__: factory(fake._machine, make) for make in _FACTORIES}

    def __getattr__(self, name: str) -> Any:
        made: Callable[..., torch.Tensor] | None = self.__dict__.get("_factories", {}).get(name)
        return getattr(torch, name) if made is None else made


def _move(fake: FakeMPS, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if isinstance(tensor, FakeMPSTensor):
        return tensor.to(*args, **kwargs)
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
    if device is None or device.type != MPS.type:
        return tensor.to(*args, **kwargs)
    kernel = fake._machine.overrides.get("copy_")
    if kernel is None:
        return fake._to_device(tensor).to(dtype)
    empty = FakeMPSTensor(torch.empty(tensor.shape, dtype=dtype or tensor.dtype), fake._machine)
    moved: torch.Tensor = kernel(empty, tensor, non_blocking)
    return moved


class _TorchMPS:
    """``torch.mps`` before 2.15: one stream, and a synchronize."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def synchronize(self) -> None:
        """Wait for all streams."""
        self._machine.global_synchronizes.append(threading.get_ident())
        for stream in list(self._machine.streams.values()):
            self._machine.synchronize(stream)

    def Event(self, enable_timing: bool = False) -> _Event:
        return _Event(self._machine)


class _TorchMPS215(_TorchMPS):
    """``torch.mps`` from 2.15: streams."""

    def Stream(self) -> _Stream:
        return _Stream(self._machine, self._machine.take_stream())

    def default_stream(self) -> _Stream:
        return _Stream(self._machine, self._machine.streams[0])

    def current_stream(self) -> _Stream:
        return _Stream(self._machine, self._machine.current)

    def set_stream(self, stream: _Stream) -> None:
        self._machine.current = stream._state

    def stream(self, stream: _Stream) -> AbstractContextManager[None]:
        return _StreamBlock(self._machine, stream._state)


class _Stream:
    """``torch.mps.Stream``: a handle; two handles to the same stream are equal."""

    def __init__(self, machine: Machine, state: StreamState) -> None:
        self._machine = machine
        self._state = state

    @property
    def stream_id(self) -> int:
        return self._state.number

    def synchronize(self) -> None:
        self._machine.synchronize(self._state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stream) and other._state is self._state

    def __hash__(self) -> int:
        return hash(self._state)


class _StreamBlock(AbstractContextManager[None]):
    """``torch.mps.stream(stream)``."""

    def __init__(self, machine: Machine, state: StreamState) -> None:
        self._machine = machine
        self._state = state
        self._before = state

    def __enter__(self) -> None:
        self._before = self._machine.current
        self._machine.current = self._state

    def __exit__(self, *_: object) -> None:
        self._machine.current = self._before


class _Event:
    """``torch.mps.Event``: on the default stream only."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def record(self) -> None:
        self._on_default_stream("record")
        self._machine.record_event(self._machine.current)

    def wait(self) -> None:
        self._on_default_stream("wait")

    def _on_default_stream(self, what: str) -> None:
        self._machine.check_alive()
        if self._machine.current.number != 0:
            raise NotImplementedError(f"torch.mps.Event.{what} is supported on the default stream only")
