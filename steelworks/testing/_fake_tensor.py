"""A tensor that says it is on ``mps:0``, holds its data on the CPU, and keeps the rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

from steelworks.testing._metal import Machine

MPS = torch.device("mps", 0)
CPU = torch.device("cpu")
_WITHOUT_WORK = frozenset({"is_pinned", "sym_size", "sym_stride", "empty_like", "new_empty"})
_MAY_MIX_DEVICES = frozenset({"copy_", "_to_copy", "index", "index_put_", "_local_scalar_dense"})
_READS_BACK = frozenset({"_local_scalar_dense", "nonzero", "equal", "is_nonzero"})


class FakeMPSTensor(torch.Tensor):
    """Made by ``FakeMPS``; any torch operation on it goes through the stand-in's rules.

    Attributes:
        recorded_on: numbers of the streams that ``record_stream`` was called with.
    """

    _machine: Machine
    _inner: torch.Tensor
    recorded_on: list[int]

    @staticmethod
    def __new__(cls, inner: torch.Tensor, machine: Machine) -> FakeMPSTensor:
        # To C++ it is a CPU tensor: this torch may have no MPS to ask for a device guard.
        made: FakeMPSTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CPU,
            requires_grad=inner.requires_grad,
        )
        made._inner = inner.detach()
        made._machine = machine
        made.recorded_on = []
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS

    @property
    def is_mps(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As ``torch.Tensor.to``, with what the real one does off the stream's queue (R1)."""
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        dtype = self.dtype if dtype is None else dtype
        if device is not None and device.type == "cpu":
            return self._read_back(dtype, bool(kwargs.get("non_blocking")))
        if dtype == self.dtype and not kwargs.get("copy"):
            return self
        return self._machine.operate(
            "cast", self.shape, lambda: FakeMPSTensor(self._inner.to(dtype, copy=True), self._machine)
        )

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.to(CPU)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def contiguous(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.is_contiguous():
            return self
        return self._machine.operate(
            "contiguous",
            self.shape,
            lambda: FakeMPSTensor(self._inner.contiguous(*args, **kwargs), self._machine),
        )

    def record_stream(self, stream: Any) -> None:
        self._machine.check_alive()
        self.recorded_on.append(int(stream.stream_id))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"FakeMPSTensor(shape={tuple(self.shape)}, dtype={self.dtype})"

    def _read_back(self, dtype: torch.dtype, non_blocking: bool = False) -> torch.Tensor:
        if "copy_" not in self._machine.overrides:
            return self._read(dtype)
        read = torch.empty(self.shape, dtype=dtype)
        self._machine.overrides["copy_"](read, self, non_blocking)
        return read

    def _read(self, dtype: torch.dtype) -> torch.Tensor:
        machine = self._machine
        if dtype == self.dtype:
            kind = "copy_out" if self.is_contiguous() else "contiguous"
            return machine.operate(kind, self.shape, self._inner.clone, wait=True)
        result = machine.operate("cast", self.shape, lambda: self._inner.to(dtype))
        machine.synchronize(machine.current, off_queue="R1")
        return result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        kind = func._schema.name.rpartition("::")[2]
        if kind == "copy_":
            dst, src, non_blocking = (*args, kwargs.get("non_blocking", False))[:3]
            machine = (dst if isinstance(dst, FakeMPSTensor) else src)._machine
            return machine.overrides.get("copy_", own_copy)(dst, src, non_blocking)
        fakes, machine = _operands(kind, (args, kwargs))
        wrappers = {id(fake._inner): fake for fake in fakes}
        inner_args, inner_kwargs = tree_map_only(cls, lambda fake: fake._inner, (args, kwargs))
        if kwargs.get("device") is not None:
            inner_kwargs["device"] = CPU

        def wrap(result: torch.Tensor) -> torch.Tensor:
            known = wrappers.get(id(result))
            return FakeMPSTensor(result, machine) if known is None else known

        def body() -> Any:
            return tree_map_only(torch.Tensor, wrap, func(*inner_args, **inner_kwargs))

        if func.is_view or kind in _WITHOUT_WORK:
            machine.check_alive()
            return body()
        shapes = tuple(tuple(fake.shape) for fake in fakes)
        return machine.operate(kind, shapes, body, wait=kind in _READS_BACK)


def own_copy(dst: torch.Tensor, src: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """What torch's own ``copy_`` does with a tensor on the device, hazards included."""
    if isinstance(dst, FakeMPSTensor):
        machine, target = dst._machine, dst._inner
        if not isinstance(src, FakeMPSTensor):
            if is_pinned(src):
                machine.record_event(machine.current, off_queue="R2")
            machine.operate("copy_in", src.shape, lambda: target.copy_(src), wait=not non_blocking)
            return dst
        inner = src._inner
        machine.operate("copy_", src.shape, lambda: target.copy_(inner))
        return dst
    assert isinstance(src, FakeMPSTensor)
    if is_pinned(dst):
        src._machine.record_event(src._machine.current, off_queue="R2")
    return dst.copy_(src._read(dst.dtype))


def is_pinned(tensor: torch.Tensor) -> bool:
    """Whether ``FakeMPS.pin`` made it."""
    return bool(getattr(tensor, "_fake_pinned", False))


def _operands(kind: str, tree: object) -> tuple[list[FakeMPSTensor], Machine]:
    """Return the stand-in tensors in ``tree``; a CPU tensor among them is refused, as by torch."""
    tensors = [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]
    fakes = [tensor for tensor in tensors if isinstance(tensor, FakeMPSTensor)]
    if kind not in _MAY_MIX_DEVICES and any(
        not isinstance(tensor, FakeMPSTensor) and tensor.dim() > 0 for tensor in tensors
    ):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"mps:0 and cpu! (in {kind})"
        )
    return fakes, fakes[0]._machine


def factory(machine: Machine, make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return torch's factory function ``make``, which on ``device='mps'`` encodes an operation."""

    def call(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != "mps":
            return make(*args, device=device, **kwargs)
        return machine.operate(make.__name__, args, lambda: FakeMPSTensor(make(*args, **kwargs), machine))

    return call


class FactoriesOnDevice(TorchFunctionMode):
    """Serves ``torch.arange(..., device="mps")`` and the like inside a module's forward.

    Args:
        machine: the device's state.
        factories: torch's functions that make a tensor from none.
    """

    def __init__(self, machine: Machine, factories: frozenset[Any]) -> None:
        super().__init__()
        self._machine = machine
        self._factories = factories

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self._factories:
            func = factory(self._machine, func)
        return func(*args, **(kwargs or {}))
