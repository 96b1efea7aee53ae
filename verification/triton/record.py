"""What the host code launches, recorded without a GPU: kernel, constants, types, grid, scalars and operands.

The host functions run as they are, on tensors without memory that say they are CUDA tensors of an sm_90 device
(``FakeTensorMode``). Of ``_launch`` only three things are replaced: what compiles, what calls the driver, and what
asks a tensor for its address. What lies between (variants, hints, the twin for unaligned tensors) is its own.

PyTorch's own operators between launches are recorded too, and where the host waits for the device: early.py needs both.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, Final
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from steelworks.kernels.triton import _launch

#: Multiprocessors of the GPU that the host functions believe in.
PROCESSORS: Final = 132
#: What the host functions ask about the device, and are told: that of an sm_90.
DEVICE: Final[dict[str, Callable[[int], Any]]] = {
    "processors": lambda index: PROCESSORS,
    "supports_descriptors": lambda index: True,
    "supports_pdl": lambda index: True,
}
_PACKAGE: Final = "steelworks.kernels.triton"
_APART: Final = 1 << 36  # between the addresses of two tensors' memory
#: Operators that launch nothing: they only make or look at tensors.
_NO_KERNEL: Final = (
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "new_empty_strided",
    "detach",
    "alias",
)


@dataclass(frozen=True)
class Operand:
    """A tensor of a launch: whose memory it lies in, and how many bytes from its beginning."""

    memory: int
    offset: int


@dataclass(frozen=True)
class Launched:
    """One launch of a kernel.

    Attributes:
        kernel: The ``Kernel``.
        name: Its function's name, after the module's: ``softmax._rows_kernel``.
        variant: What decides its machine code.
        grid: Programs.
        operands: One for each pointer.
        scalars: What follows the pointers.
        settled: Memory that ``settled`` said may be read early, in the call that launched this.
    """

    kernel: _launch.Kernel
    name: str
    variant: _launch._Variant
    grid: tuple[int, ...]
    operands: tuple[Operand, ...]
    scalars: tuple[int | float, ...]
    settled: frozenset[int]

    @property
    def parameters(self) -> list[int]:
        """Where the PTX has each operand and scalar; a descriptor is followed by its shape and strides."""
        places, at = [], 0
        for kind in self.variant.types:
            places.append(at)
            at += 5 if kind.startswith("tensordesc") else 1
        return places

    @property
    def key(self) -> tuple[str, object]:
        """What its machine code is the same for."""
        return self.name, self.variant


@dataclass(frozen=True)
class Operator:
    """An operator of PyTorch that may have launched a kernel, and the memory that it wrote."""

    name: str
    written: frozenset[int]


@dataclass(frozen=True)
class Waited:
    """The host waited until all before was done."""


@dataclass(frozen=True)
class Began:
    """A call of a host function begins; what the device did before, nobody knows."""


Event = Launched | Operator | Waited | Began


@dataclass
class Recorder:
    """Collects events; ``during`` the host code runs."""

    events: list[Event] = field(default_factory=list)
    _kept: list[Any] = field(default_factory=list)  # memory is told apart by its address: none may be freed
    _places: dict[int, int] = field(default_factory=dict)
    _settled: set[int] = field(default_factory=set)
    _unseen: bool = False

    def memory(self, tensor: torch.Tensor) -> int:
        """The number of the memory that ``tensor`` lies in."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._places:
            self._kept.append(storage)
            self._places[storage._cdata] = len(self._places)
        return self._places[storage._cdata]

    def address(self, tensor: torch.Tensor) -> int:
        """A made-up address: memory begins at a multiple of 2^36."""
        offset = int(tensor.storage_offset()) * tensor.element_size()
        return (self.memory(tensor) + 1) * _APART + offset

    def begin_call(self) -> None:
        """The next host function runs after kernels that nobody knows."""
        self.events.append(Began())
        self._settled.clear()

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Operators inside are the caller's, not the host function's: they are not recorded."""
        self._unseen = True
        yield
        self._unseen = False

    def _launch(self, *given: Any) -> None:
        *grid, _stream, token = given[:5]
        kernel, variant = token
        pointers = given[5 : 5 + kernel.pointers]
        scalars = given[5 + kernel.pointers : len(given) - len(variant.constants)]
        addresses = [
            p if isinstance(p, int) else self.address(p.base) for p in pointers
        ]  # a descriptor has a base
        operands = tuple(Operand(p // _APART - 1, p % _APART) for p in addresses)
        settled = frozenset(self._settled)
        self.events.append(Launched(kernel, _named(kernel), variant, tuple(grid), operands, scalars, settled))

    def _asked(self, settled: Callable[..., bool]) -> Callable[..., bool]:
        def ask(*tensors: torch.Tensor | None) -> bool:
            answer = settled(*tensors)
            if answer:
                self._settled.update(self.memory(t) for t in tensors if t is not None)
            return answer

        return ask

    @contextlib.contextmanager
    def during(self) -> Iterator[None]:
        """Host functions called inside are recorded; they must be given tensors made inside, on "cuda"."""
        if _launch.interpreted():
            raise RuntimeError(
                "Triton was imported for its interpreter; record in a process without TRITON_INTERPRET=1"
            )
        stream = SimpleNamespace(synchronize=lambda: self.events.append(Waited()), cuda_stream=1)
        driver = {"_cuda_getDevice": lambda: 0, "_cuda_getCurrentRawStream": lambda index: 1}
        with contextlib.ExitStack() as stack:

            def replace(owner: object, name: str, value: object) -> None:
                stack.enter_context(mock.patch.object(owner, name, value, create=True))

            replace(_launch.Kernel, "compiled", lambda kernel, variant: (kernel, variant))
            replace(_launch, "_launcher", lambda token: (self._launch, (token,)))
            replace(_launch, "_data_ptr", self.address)
            replace(torch._subclasses.fake_tensor.FakeTensor, "data_ptr", lambda tensor: self.address(tensor))
            replace(torch.cuda, "current_stream", lambda device=None: stream)
            replace(torch.cuda, "is_current_stream_capturing", lambda: False)
            for name, stand_in in driver.items():
                replace(torch._C, name, stand_in)
            for module in modules():
                for name, stand_in in DEVICE.items():
                    if hasattr(module, name):
                        replace(module, name, stand_in)
                if hasattr(module, "settled"):
                    replace(module, "settled", self._asked(module.settled))
            stack.enter_context(FakeTensorMode())
            stack.enter_context(_Operators(self))
            stack.enter_context(_Indexing())
            yield


class _Operators(TorchDispatchMode):
    """Notes the operators that PyTorch runs."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self._recorder._unseen:
            return result
        results = [
            r
            for r in (result if isinstance(result, tuple | list) else [result])
            if isinstance(r, torch.Tensor)
        ]
        if not func.is_view and name not in _NO_KERNEL and any(r.is_cuda for r in results):
            written = frozenset(self._recorder.memory(r) for r in results)
            self._recorder.events.append(Operator(name, written))
        return result


class _Indexing(TorchFunctionMode):
    """Indexing by operators: that of Python asks for a CUDA runtime, which a build for CPUs lacks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.contiguous and not args[0].is_contiguous():
            return torch.ops.aten.clone.default(args[0], memory_format=torch.contiguous_format)
        if func is not torch.Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        tensor, index = args
        dim = 0
        for one in index if isinstance(index, tuple) else (index,):
            if isinstance(one, int):
                tensor = torch.ops.aten.select.int(tensor, dim, one)
            elif isinstance(one, slice):
                tensor = torch.ops.aten.slice.Tensor(tensor, dim, one.start, one.stop, one.step or 1)
                dim += 1
            else:
                raise NotImplementedError(f"the recorder can't index by {one!r}")
        return tensor


def modules() -> list[ModuleType]:
    """All modules of the package."""
    package = importlib.import_module(_PACKAGE)
    return [importlib.import_module(f"{_PACKAGE}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]


def kernels() -> dict[str, _launch.Kernel]:
    """All kernels of the package, by the module and the name of their functions."""
    return {
        _named(v): v for module in modules() for v in vars(module).values() if isinstance(v, _launch.Kernel)
    }


def _named(kernel: _launch.Kernel) -> str:
    place = kernel.function.__module__.rpartition(".")[2].removeprefix("_").removesuffix("_kernels")
    return f"{place}.{kernel.function.__name__}"
