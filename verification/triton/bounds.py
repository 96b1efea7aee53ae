"""Every access of every program, checked while Triton's interpreter runs the kernels: its place, and who else uses it.

A pointer of a launch is replaced by a made-up address of 2^44 bytes of its own, so that each access says which operand
it is meant for, however far it misses. Only the elements of the tensor are legal: not the gaps between the rows of a
view. Accesses are noted by program; two programs that touch an element, one of them writing, must be ordered by
read-modify-writes of one address (the interpreter runs one program after the other, so that is the order it knows).

Constants are those of an sm_90 device with 132 multiprocessors, but for the few that stand for what the interpreter
lacks (products of bfloat16, packed arithmetic); those do not change an address.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from unittest import mock

import numpy as np
import torch

from .calls import Call, Make
from .record import DEVICE, modules

_WINDOW: Final = 44  # bits of an operand's address
_PACKAGE: Final = "steelworks.kernels.triton"
_Array = np.ndarray[Any, Any]
#: Kernels that store over what they have loaded, each element by the threads that hold what was there.
OVERWRITES: Final = ("lora._add_kernel",)


class Wrong(Exception):
    """An access that is not allowed; the message says which."""


@dataclass
class _Operand:
    """A tensor of a launch: where it really lies, its legal bytes counted from there, and its name."""

    name: str
    address: int
    legal: _Array


class _Row(NamedTuple):
    """An access to one element.

    Attributes:
        program: Whose.
        writes: 1 if it writes.
        counted: 1 if the program had done an atomic operation before.
        barriers: How many the program had passed.
        number: Of the load or store in the launch.
    """

    program: int
    writes: int
    counted: int
    barriers: int
    number: int


@dataclass
class _Noted:
    """Accesses of a launch: keys (operand and byte) of each, and for each what _Row says, as a row of numbers."""

    keys: list[_Array] = field(default_factory=list)
    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)


@dataclass
class Checker:
    """Stands in for the interpreter's memory.

    Attributes:
        launches: How many were checked.
        programs: Likewise.
        accesses: Elements that were read or written.
        kernels: Names of the kernels that ran.
    """

    launches: int = 0
    programs: int = 0
    accesses: int = 0
    kernels: set[str] = field(default_factory=set)
    _kernel: str = ""
    _operands: list[_Operand] = field(default_factory=list)
    _noted: _Noted = field(default_factory=_Noted)
    _program: int = -1
    _barriers: int = 0
    _joined: dict[int, list[int]] = field(default_factory=dict)  # program to the addresses of its atomics
    _memory: Any = None

    # What the interpreter calls --------------------------------------------------------------------------------

    def load(self, pointers: _Array, mask: _Array, other: _Array, dtype: Any) -> Any:
        """A checked load."""
        return self._memory.load(
            self._translate(pointers, mask, np.dtype(dtype).itemsize, False), mask, other, dtype
        )

    def store(self, pointers: _Array, values: _Array, mask: _Array) -> Any:
        """A checked store."""
        return self._memory.store(self._translate(pointers, mask, values.itemsize, True), values, mask)

    def atomic_rmw(self, operation: Any, pointers: _Array, values: _Array, mask: _Array, sem: Any) -> Any:
        """A checked read-modify-write: it orders what is before it in programs that came earlier."""
        real = self._translate(pointers, mask, values.itemsize, None)
        self._joined.setdefault(self._program, []).extend(int(p) for p in pointers[mask])
        return self._memory.atomic_rmw(operation, real, values, mask, sem)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)

    # ------------------------------------------------------------------------------------------------------------

    def _translate(self, pointers: _Array, mask: _Array, size: int, writes: bool | None) -> _Array:
        """Real addresses; those that the mask leaves out are not looked at. ``writes`` None: an atomic operation."""
        pointers, mask = np.broadcast_arrays(np.asarray(pointers, np.uint64), mask)
        real = np.zeros_like(pointers)
        used = pointers[mask]
        if used.size == 0:
            return real
        number = (used >> np.uint64(_WINDOW)).astype(np.int64) - 1
        at = (used & np.uint64((1 << _WINDOW) - 1)).astype(np.int64) - (1 << (_WINDOW - 1))
        moved = np.zeros(used.shape, np.uint64)
        for one in np.unique(number):
            if not 0 <= one < len(self._operands):
                raise Wrong(f"{self._where()}: an address that belongs to no operand")
            operand, mine = self._operands[one], at[number == one]
            inside = (mine >= 0) & (mine + size <= operand.legal.size)
            inside[inside] = operand.legal[mine[inside]] & operand.legal[mine[inside] + size - 1]
            if not inside.all():
                what = "writes" if writes else "reads"
                raise Wrong(
                    f"{self._where()} {what} {int((~inside).sum())} elements outside of {operand.name}, the first "
                    f"{int(mine[~inside][0])} bytes after its beginning; {operand.legal.size} are there"
                )
            moved[number == one] = (operand.address + mine).astype(np.uint64)
        self.accesses += used.size
        if writes is not None:
            self._noted.keys.append(used)
            counted = int(self._program in self._joined)
            self._noted.rows.append(
                _Row(self._program, int(writes), counted, self._barriers, len(self._noted.rows))
            )
        real[mask] = moved
        return real

    def _where(self) -> str:
        return f"{self._kernel}, program {self._program}"

    def begin(self, kernel: str) -> None:
        """A launch begins."""
        self._kernel, self._operands, self._noted, self._joined = kernel, [], _Noted(), {}
        self._program = -1
        self.launches += 1
        self.kernels.add(kernel)

    def next_program(self) -> None:
        """The next program begins."""
        self._program += 1
        self._barriers = 0
        self.programs += 1

    def barrier(self) -> None:
        """All threads of the program have met."""
        self._barriers += 1

    def pointer(self, tensor: torch.Tensor, name: str) -> int:
        """A made-up address for an operand: in the middle of its window, so that it can miss both ways."""
        size = tensor.element_size()
        extent = (
            1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            if tensor.numel()
            else 0
        )
        legal = torch.zeros(extent, dtype=torch.bool)
        legal.as_strided(tensor.shape, tensor.stride()).fill_(True)
        self._operands.append(_Operand(name, tensor.data_ptr(), np.repeat(legal.numpy(), size)))
        return (len(self._operands) << _WINDOW) + (1 << (_WINDOW - 1))

    def end(self) -> None:
        """A launch ended: no two programs may have met without order, nor two threads of one without a barrier.

        Raises:
            Wrong: Two have.
        """
        if not self._noted.keys:
            return
        sizes = [k.size for k in self._noted.keys]
        # Operands that share memory are one: by the real address.
        keys = np.concatenate([self._real(k) for k in self._noted.keys])
        rows = np.repeat(np.array(self._noted.rows, np.int64), sizes, axis=0)
        order = np.argsort(keys, kind="stable")
        keys, rows = keys[order], rows[order]
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        ends = np.r_[starts[1:], keys.size]
        least, most = np.minimum.reduceat(rows, starts), np.maximum.reduceat(rows, starts)
        met = (least[:, 0] != most[:, 0]) | (least[:, 4] != most[:, 4])
        seen = set[bytes]()
        for group in np.flatnonzero(met & (most[:, 1] > 0)):
            members = np.unique(rows[starts[group] : ends[group]], axis=0)
            if members.tobytes() not in seen:
                seen.add(members.tobytes())
                self._ordered([_Row(*row) for row in members.tolist()])

    def _real(self, keys: _Array) -> _Array:
        number = (keys >> np.uint64(_WINDOW)).astype(np.int64) - 1
        bases = np.array([o.address for o in self._operands], np.int64)
        at = (keys & np.uint64((1 << _WINDOW) - 1)).astype(np.int64) - (1 << (_WINDOW - 1))
        result: _Array = bases[number] + at
        return result

    def _ordered(self, rows: list[_Row]) -> None:
        for one in rows:
            for other in rows:
                if other.number <= one.number or not (one.writes or other.writes):
                    continue
                if one.program == other.program:
                    if one.barriers == other.barriers and (one.writes or self._kernel not in OVERWRITES):
                        raise Wrong(
                            f"{self._kernel}: program {one.program} writes an element that "
                            "it uses again, with no barrier between"
                        )
                    continue
                shared = set(self._joined.get(one.program, ())) & set(self._joined.get(other.program, ()))
                if one.counted or not other.counted or not shared:
                    raise Wrong(
                        f"{self._kernel}: programs {one.program} and {other.program} "
                        "use one element, and nothing orders them"
                    )


class _Asm:
    """What inline assembly of the kernels does, for the interpreter: it prefetches, and has no result."""

    def get_result(self, index: int) -> Any:
        interpreter: Any = importlib.import_module("triton.runtime.interpreter")
        return interpreter.TensorHandle(
            np.zeros(1, np.int32), importlib.import_module("triton.language").int32
        )


@contextlib.contextmanager
def checking() -> Iterator[Checker]:
    """Kernels launched inside are checked; Triton must have been imported with TRITON_INTERPRET=1.

    Raises:
        Wrong: From a launch that does what it must not.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("set TRITON_INTERPRET=1 before Triton is imported")
    launch = importlib.import_module(f"{_PACKAGE}._launch")
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    launch._mend_interpreter()
    checker = Checker(_memory=interpreter._interpreter)
    convert, builder, executor = (
        interpreter._implicit_cvt,
        interpreter.InterpreterBuilder,
        interpreter.GridExecutor,
    )
    set_grid_idx, call = builder.set_grid_idx, executor.__call__

    def converted(argument: Any) -> Any:
        made = convert(argument)
        if isinstance(argument, torch.Tensor):
            made.handle.data[:] = checker.pointer(argument, f"operand {len(checker._operands)}")
        return made

    def numbered(self: Any, x: int, y: int, z: int) -> None:
        checker.next_program()
        set_grid_idx(self, x, y, z)

    def launched(self: Any, *given: Any, **named: Any) -> None:
        place = self.fn.__module__.rpartition(".")[2].removeprefix("_").removesuffix("_kernels")
        checker.begin(f"{place}.{self.fn.__name__}")
        try:
            call(self, *given, **named)
        except interpreter.InterpreterError as problem:
            cause: BaseException | None = problem
            while isinstance(cause, interpreter.InterpreterError):  # one for each function that was called
                cause = cause.__cause__
            if isinstance(cause, Wrong):
                raise cause from None
            raise
        checker.end()

    def assembly(self: Any, text: str, *rest: Any) -> _Asm:
        if "prefetch" not in text:
            raise NotImplementedError(f"inline assembly that is not known here: {text!r}")
        return _Asm()

    with contextlib.ExitStack() as stack:

        def replace(owner: object, name: str, value: object) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        replace(interpreter, "_interpreter", checker)
        replace(interpreter, "_implicit_cvt", converted)
        replace(builder, "set_grid_idx", numbered)
        replace(builder, "create_inline_asm", assembly)
        replace(builder, "create_barrier", lambda self: checker.barrier())
        replace(executor, "__call__", launched)
        for name in ("gdc_wait", "gdc_launch_dependents"):
            replace(launch.tl.extra.cuda, name, lambda: None)
        for module in modules():
            for name, stand_in in DEVICE.items():
                if hasattr(module, name):
                    replace(module, name, stand_in)
            if hasattr(module, "settled"):
                replace(module, "settled", lambda *tensors: True)
        yield checker


class Random(Make):
    """Tensors of random numbers: which elements are chosen, masked or equal varies."""

    def __init__(self, seed: int) -> None:
        super().__init__("cpu")
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        """Normally distributed, or all values of integers."""
        if dtype.is_floating_point:
            return torch.randn(shape, generator=self._random).to(dtype)
        return torch.randint(0, 2 if dtype == torch.bool else 256, shape, generator=self._random).to(dtype)


def run(chosen: Sequence[Call], checker: Checker) -> list[str]:
    """Runs calls; what was wrong, each with the name of its call."""
    wrong = []
    for number, call in enumerate(chosen):
        try:
            call.run(Random(number))
        except Wrong as problem:
            wrong.append(f"{call.name}: {problem}")
    return wrong
