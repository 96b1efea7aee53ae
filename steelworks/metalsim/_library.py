"""The objects that ``compile_shader`` returns: a library of kernels, and kernels to launch.

The interface is that of ``torch.mps.compile_shader``. Read for it: MetalShaderLibrary.h, OperationUtils.h and
torch/mps/__init__.py as installed with torch 2.13, and published copies of torch/csrc/mps/Module.cpp and
aten/src/ATen/native/mps/OperationUtils.mm from its time. Nothing was run on a Mac. What they do:

* ``getattr`` makes the pipeline and raises RuntimeError "Failed to create function state object for: NAME"
  for an unknown kernel, RuntimeError when the pipeline can't be made (too much threadgroup memory); ``dir``
  lists the kernels.
* ``threads`` is None, an int, or one to three of them; by default the number of elements of the first tensor.
  It is the exact grid (dispatchThreads). ``group_size`` must have as many dimensions; by default min(threads,
  limit) for one dimension and (limit, 1, 1) for more. Too many threads in a group: ValueError "Threadgroup
  size exceeds N limit".
* Argument i goes to ``[[buffer(i)]]``. A tensor gives its storage offset only; an int is int64 (bool is an
  int), a float float32; a list or tuple is packed int64 or float32 by the type of its first element, or, of
  tensors, an array of their addresses; empty is refused. ``arg_casts`` is one of fp16, bf16, int32, int16,
  int8, uint8 for all values, or a dict by argument number. Anything else: RuntimeError.
* ``error_buf_idx`` binds the buffer of ``c10/metal/error.h``.
* Source errors: SyntaxError, raised by ``compile_shader`` at once.

Stricter than torch, because the result there is undefined: a buffer that the kernel declares must be bound, a
list may not exceed 4096 bytes, float64 tensors are refused, and a grid with a zero does nothing (Metal's
validation refuses it).
"""

from __future__ import annotations

import ctypes
import threading
import warnings
from typing import Any, Final

import torch

from . import _runtime
from ._arguments import Binding, Bound, bind, triple
from ._compile import DEFAULT_NAME, Compiled, KernelInfo, compile_source
from ._emit import LIMIT
from ._options import Options, Session, current
from ._symbols import constants, convert
from .errors import (
    ArgumentError,
    DispatchError,
    GroupSizeError,
    KernelReportedError,
    MetalsimWarning,
    UnknownKernelError,
)
from .reports import Counters, Launch

_ERROR_RECORD: Final = 512
_ERROR_RECORDS: Final = 30


class _Loaded:
    """A kernel library in this process."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self.runtime = _runtime.runtime()
        self.code = ctypes.CDLL(str(compiled.path))
        self.kernels = {info.name: info for info in compiled.kernels}
        self.entries = {
            i.name: ctypes.cast(getattr(self.code, i.entry), ctypes.c_void_p).value for i in compiled.kernels
        }

    def buffers_of(self, info: KernelInfo) -> dict[int, tuple[str, bool]]:
        """Name and constness of the kernel's buffers by index."""
        roles = (ctypes.c_int * (len(info.parameters) + 1)).in_dll(self.code, f"ms_roles_{info.number}")
        found: dict[int, tuple[str, bool]] = {}
        for parameter, role in zip(info.parameters, roles, strict=False):
            if parameter.role == "buffer":
                found[int(role)] = (parameter.name, parameter.constant)
        return found


class ShaderLibrary:
    """Kernels of one Metal source. A kernel is an attribute: ``library.kernel_name(...)``."""

    def __init__(self, source: str, name: str = DEFAULT_NAME) -> None:
        self._source = source
        self._name = name
        self._guard = threading.Lock()
        self._loaded: dict[bool, _Loaded] = {}
        self._made: dict[str, MetalKernel] = {}
        session = current()
        self._load(session.options.check if session is not None else False)

    def _load(self, check: bool) -> _Loaded:
        loaded = self._loaded.get(check)
        if loaded is None:
            # Not under the lock: two threads may load the same file, which is harmless.
            fresh = _Loaded(compile_source(self._source, name=self._name, check=check))
            with self._guard:
                loaded = self._loaded.setdefault(check, fresh)
        return loaded

    def _any(self) -> _Loaded:
        return next(iter(self._loaded.values()))

    def __dir__(self) -> list[str]:
        return list(self._any().kernels)

    def __getattr__(self, name: str) -> MetalKernel:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        made = self._made.get(name)
        if made is not None:
            return made
        loaded = self._any()
        if name not in loaded.kernels:
            known = ", ".join(loaded.kernels) or "none"
            raise UnknownKernelError(
                f"Failed to create function state object for: {name}. The library has: {known}."
            )
        kernel = MetalKernel(self, loaded.kernels[name], loaded)
        with self._guard:
            return self._made.setdefault(name, kernel)


class MetalKernel:
    """A kernel that can be launched."""

    def __init__(self, library: ShaderLibrary, info: KernelInfo, loaded: _Loaded) -> None:
        self._library = library
        self._info = info
        self._buffers = loaded.buffers_of(info)
        sizes = constants(loaded.code, info.number, [f"ms_size_{tag}" for tag in info.variables])
        self._static = sum(sizes)
        limit = constants(loaded.code, info.number, [LIMIT] if info.limited else [])
        self._limit = limit[0] if limit else _runtime.MAX_THREADS
        if not 1 <= self._limit <= _runtime.MAX_THREADS:
            raise UnknownKernelError(
                f"Failed to created pipeline state object, error: max_total_threads_per_threadgroup of "
                f"'{info.name}' is {self._limit}; 1 to {_runtime.MAX_THREADS} are allowed"
            )
        if self._static > _runtime.GROUP_MEMORY_LIMIT:
            raise UnknownKernelError(
                f"Failed to created pipeline state object, error: threadgroup memory size "
                f"({self._static}) of '{info.name}' exceeds the maximum threadgroup memory allowed "
                f"({_runtime.GROUP_MEMORY_LIMIT})"
            )

    @property
    def max_threads_per_threadgroup(self) -> int:
        """The most threads a threadgroup of this kernel may have."""
        return self._limit

    @property
    def thread_execution_width(self) -> int:
        """Threads of a simdgroup: 32."""
        return _runtime.SIMD_WIDTH

    @property
    def static_thread_group_memory_length(self) -> int:
        """Bytes of the threadgroup variables that the kernel declares."""
        return self._static

    def __repr__(self) -> str:
        return f"<metalsim kernel '{self._info.name}'>"

    def __call__(
        self,
        *args: Any,
        threads: Any = None,
        group_size: Any = None,
        arg_casts: Any = None,
        error_buf_idx: int | None = None,
    ) -> None:
        """Launches the kernel and waits for its end.

        Args:
            args: Argument i is bound to ``[[buffer(i)]]``: CPU tensors, ints, floats, lists of one of these.
            threads: The grid, in threads; by default the number of elements of the first tensor.
            group_size: Threads of a threadgroup, with as many dimensions.
            arg_casts: Types for values: a cast for all or a dict by argument number.
            error_buf_idx: Where the kernel expects the buffer of ``c10/metal/error.h``.

        Raises:
            ArgumentError: an argument that can't be bound, or a grid that is not allowed.
            GroupSizeError: more threads in a threadgroup than allowed.
            DispatchError: the runtime could not run it.
            KernelReportedError: the kernel reported an error through ``c10/metal/error.h``.
        """
        binding = bind(args, arg_casts)
        grid = triple(threads, "threads")
        group = triple(group_size, "group_size")
        if grid is None:
            if binding.first_numel is None:
                raise ArgumentError(
                    "Number of threads is undefined or has wrong dimension: "
                    "give threads=, as no argument is a tensor"
                )
            grid = (binding.first_numel,)
        group = self._group(grid, group)
        errors = None
        if error_buf_idx is not None:
            errors = torch.zeros(4 + _ERROR_RECORD * _ERROR_RECORDS, dtype=torch.uint8)
            binding.buffers[error_buf_idx] = Bound(errors.data_ptr(), errors.numel(), False, errors)
        missing = [
            f"{i} '{name}'" for i, (name, _) in sorted(self._buffers.items()) if i not in binding.buffers
        ]
        if missing:
            raise ArgumentError(
                f"kernel '{self._info.name}' declares buffers that no argument binds: {', '.join(missing)}; "
                f"{len(args)} arguments were given"
            )
        if 0 in grid:
            return
        self._run(binding, _three(grid), _three(group))
        if errors is not None:
            _raise_reported(errors)

    def _group(self, grid: tuple[int, ...], group: tuple[int, ...] | None) -> tuple[int, ...]:
        limit = self._limit
        if group is None:
            return (min(grid[0], limit),) if len(grid) == 1 else (limit, 1, 1)[: len(grid)]
        if len(group) != len(grid):
            raise ArgumentError(
                f"threads has {len(grid)} dimensions and group_size {len(group)}: "
                "they must have the same number"
            )
        total = 1
        for size in group:
            total *= size
        if total > limit:
            raise GroupSizeError(
                f"Threadgroup size exceeds {limit} limit: group_size is {group}, {total} threads"
            )
        if total == 0:
            raise ArgumentError(f"group_size is {group}: a threadgroup needs at least one thread")
        return group

    def _run(self, binding: Binding, grid: tuple[int, int, int], group: tuple[int, int, int]) -> None:
        session = current()
        chosen = session.options if session is not None else Options()
        loaded = self._library._load(chosen.check)
        count = max(binding.buffers, default=-1) + 1
        buffers = (_runtime.Buffer * (count + len(binding.pointed)))()
        for index in range(count):
            buffers[index].name = b"unbound"
        for index, bound in binding.buffers.items():
            name, constant = self._buffers.get(index, (f"buffer {index}", True))
            flags = _flags(bound, constant, session)
            buffers[index] = _runtime.Buffer(bound.address, bound.size, flags, name.encode())
        for offset, bound in enumerate(binding.pointed):
            flags = _flags(bound, False, session)
            buffers[count + offset] = _runtime.Buffer(bound.address, bound.size, flags, b"tensor in a list")
        dispatch = _runtime.Dispatch(
            loaded.entries[self._info.name],
            self._info.name.encode(),
            buffers,
            len(buffers),
            _runtime.UInt3(*grid),
            _runtime.UInt3(*group),
            _runtime.SCHEDULES[chosen.schedule],
            _runtime.ORDERS[chosen.order],
            chosen.seed & 0xFFFFFFFFFFFFFFFF,
            chosen.workers,
            int(chosen.check),
            chosen.stack_bytes,
            chosen.max_findings,
        )
        launch = _run_dispatch(loaded, dispatch, self._info.name, chosen.max_findings, grid, group)
        del binding  # held until here: the runtime reads its memory
        if session is not None:
            session.add(launch)
        elif launch.findings:
            warnings.warn("\n".join(f.text() for f in launch.findings), MetalsimWarning, stacklevel=3)


def _three(size: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*size, 1, 1)[:3]
    return x, y, z


def _flags(bound: Bound, constant: bool, session: Session | None) -> int:
    if bound.constant:
        return _runtime.BUFFER_CONSTANT
    if constant or session is None:
        return 0
    once = session.take_output(bound.address, bound.size)
    if once is None:
        return 0
    return _runtime.BUFFER_OUTPUT | (0 if once else _runtime.BUFFER_WRITE_MANY)


def _run_dispatch(
    loaded: _Loaded,
    dispatch: _runtime.Dispatch,
    name: str,
    most: int,
    grid: tuple[int, int, int],
    group: tuple[int, int, int],
) -> Launch:
    counters = _runtime.Counters()
    capacity = max(1, most)
    findings = (_runtime.Finding * capacity)()
    found = ctypes.c_uint32(0)
    error = ctypes.create_string_buffer(2048)
    status = loaded.runtime.ms_run(
        ctypes.byref(dispatch),
        ctypes.byref(counters),
        findings,
        capacity,
        ctypes.byref(found),
        error,
        len(error),
    )
    if status != 0:
        raise DispatchError(f"kernel '{name}' could not be run: {error.value.decode(errors='replace')}")
    return Launch(
        name,
        grid,
        group,
        convert(list(findings[: min(found.value, capacity)]), name),
        Counters(**{n: int(getattr(counters, n)) for n in _runtime.COUNTER_NAMES}),
    )


def _raise_reported(errors: torch.Tensor) -> None:
    """Raises what the kernel left in the error buffer (struct ErrorMessages of c10/metal/error.h)."""
    data = errors.numpy().tobytes()
    count = int.from_bytes(data[:4], "little")
    if count == 0:
        return

    def text(at: int, size: int) -> str:
        return data[at : at + size].split(b"\0")[0].decode(errors="replace")

    record = 4
    line = int.from_bytes(data[record + 508 : record + 512], "little")
    where = f"{text(record, 128)}:{line} in {text(record + 128, 128)}"
    raise KernelReportedError(
        f"the kernel reported {count} errors; the first, at {where}: {text(record + 256, 250)}"
    )


def compile_shader(source: str, *, name: str = DEFAULT_NAME) -> ShaderLibrary:
    """Compiles Metal source for the CPU; the same call as ``torch.mps.compile_shader``.

    Args:
        source: Metal source with kernels; ``#include <c10/metal/...>`` takes the headers of the installed
            torch.
        name: The file name used in messages (torch has no such argument).

    Returns:
        A library with the kernels as attributes.

    Raises:
        MetalSyntaxError: a SyntaxError: the source does not compile, or leaves the supported subset.
        ToolchainError: there is no clang; the message says how to get it.

    Example::

        lib = compile_shader('''
            kernel void add(device float* x, constant float& a, uint i [[thread_position_in_grid]]) { x[i] +=
            a; }
        ''')
        x = torch.zeros(100)
        lib.add(x, 2.5)
    """
    if not isinstance(source, str):
        raise TypeError(f"source is {type(source).__name__}; Metal source text is needed")
    return ShaderLibrary(source, name)
