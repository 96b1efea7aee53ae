"""From a kernel variant to a launch: builds the source, compiles it once, binds the arguments.

The launcher is the same for both devices: tensors on ``mps`` go through ``torch.mps.compile_shader``, tensors on
``cpu`` through ``steelworks.metalsim.compile_shader``. A variant is compiled when it is first launched (or by
``prepare``), by the thread that came first; others that need the same variant wait for that compile, and for no
other (I4).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import torch

from steelworks.errors import InvalidInputError

ROOT: Final = Path(__file__).resolve().parent
INCLUDE: Final = ROOT / "include"
SIMD_WIDTH: Final = 32
#: dtypes by their names in Metal.
METAL_TYPES: Final = {
    torch.float32: "float",
    torch.float16: "half",
    torch.bfloat16: "bfloat",
    torch.int64: "long",
    torch.int32: "int",
    torch.int16: "short",
    torch.int8: "char",
    torch.uint8: "uchar",
    torch.bool: "bool",
}
_INT32: Final = range(-(2**31), 2**31)
_INCLUDE_LINE: Final = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"[ \t]*(?://.*)?$')
_PRAGMA_ONCE: Final = re.compile(r"^[ \t]*#[ \t]*pragma[ \t]+once\b")

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Variant:
    """One instance of a kernel template.

    Attributes:
        family: The folder that holds its header.
        kernel: The template's name.
        arguments: Template arguments: type names, integers, booleans.
        header: The header in that folder, without ``.h``; by default it is named like the family.
    """

    family: str
    kernel: str
    arguments: tuple[str | int | bool, ...] = ()
    header: str = ""

    @property
    def name(self) -> str:
        """The kernel's name on the host, for example ``gemm_float_64_64_16_2_2``."""
        return "_".join([self.kernel, *(re.sub(r"\W", "", _argument(a)) for a in self.arguments)])

    @property
    def header_path(self) -> str:
        """The header, relative to this directory."""
        return f"{self.family}/{self.header or self.family}.h"


def metal_type(dtype: torch.dtype) -> str:
    """The name of a dtype in Metal.

    Raises:
        InvalidInputError: Metal has no such type.
    """
    name = METAL_TYPES.get(dtype)
    if name is None:
        allowed = ", ".join(str(d) for d in METAL_TYPES)
        raise InvalidInputError(f"dtype is {dtype}, which Steel kernels do not have; allowed are {allowed}")
    return name


def _argument(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def source_of(*variants: Variant) -> str:
    """The Metal source of variants of one header: that with its includes pasted in, and their instantiations."""
    header = variants[0].header_path
    path = ROOT / header
    if not path.is_file():
        raise InvalidInputError(
            f"variant {variants[0].name!r} names the header {header!r}, which is not there"
        )
    lines: list[str] = []
    _paste(path, lines, set())
    lines.append('#line 1 "instantiations"')
    for variant in variants:
        function = f"{variant.kernel}<{', '.join(_argument(a) for a in variant.arguments)}>"
        lines.append(f'template [[host_name("{variant.name}")]] [[kernel]] decltype({function}) {function};')
    return "\n".join(lines) + "\n"


def _paste(path: Path, lines: list[str], pasted: set[Path]) -> None:
    """Appends a header, with what it includes in place; each file once."""
    pasted.add(path)
    shown = path.relative_to(ROOT).as_posix().removeprefix("include/")
    lines.append(f'#line 1 "{shown}"')
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if _PRAGMA_ONCE.match(line):
            lines.append("")
            continue
        found = _INCLUDE_LINE.match(line)
        if found is None:
            lines.append(line)
            continue
        included = _resolve(found[1], path, f"{shown}:{number}")
        if included not in pasted:
            _paste(included, lines, pasted)
        lines.append(f'#line {number + 1} "{shown}"')


def _resolve(name: str, includer: Path, where: str) -> Path:
    for directory in (includer.parent, INCLUDE, ROOT):
        path = (directory / name).resolve()
        if path.is_file() and path.is_relative_to(ROOT):
            return path
    raise InvalidInputError(
        f"{where} includes {name!r}, which is neither beside it nor in kernels/metal/include nor in kernels/metal"
    )


class WriteOnce(Generic[Key, Value]):
    """Values by key, each made once, by the first thread that asks; others that ask for the same key wait for it.

    The lock covers the look-up only, never the making: making one value waits for no other (I4). A failure is raised
    to all that waited for it, and not kept: the next call tries again.

    Args:
        make: Makes the values of several keys in one go.
    """

    def __init__(self, make: Callable[[Sequence[Key]], Sequence[Value]]) -> None:
        self._make = make
        self._guard = threading.Lock()
        self._made: dict[Key, Future[Value]] = {}

    def get(self, key: Key) -> Value:
        """The value for ``key``.

        Raises:
            Whatever making it raises.
        """
        future = self._made.get(key)
        return self.get_all([key])[0] if future is None else future.result()

    def get_all(self, keys: Sequence[Key]) -> list[Value]:
        """The values for all keys; those that are not there yet, and that no other thread makes, are made in one go.

        Raises:
            Whatever making one of them raises.
        """
        mine: dict[Key, Future[Value]] = {}
        with self._guard:
            for key in keys:
                if key not in self._made:
                    self._made[key] = mine[key] = Future()
            wanted = [self._made[key] for key in keys]
        if mine:
            try:
                for future, value in zip(mine.values(), self._make(list(mine)), strict=True):
                    future.set_result(value)
            except BaseException as problem:
                with self._guard:
                    for key in mine:
                        del self._made[key]
                for future in mine.values():
                    future.set_exception(problem)
        return [future.result() for future in wanted]


def _compile(keys: Sequence[tuple[str, Variant]]) -> list[Any]:
    """The kernels of variants that share a device and a header, from one source."""
    device, first = keys[0]
    source = source_of(*(variant for _, variant in keys))
    if device == "mps":
        library = torch.mps.compile_shader(source)
    else:
        from steelworks import metalsim  # only where it is used: it needs a compiler of its own

        library = metalsim.compile_shader(source, name=first.name)
    return [getattr(library, variant.name) for _, variant in keys]


_KERNELS: Final[WriteOnce[tuple[str, Variant], Any]] = WriteOnce(_compile)


def prepare(*variants: Variant, device: str | torch.device = "cpu") -> None:
    """Compiles variants now, so that their first launch does not; those of one header in one go, which is faster.

    Raises:
        InvalidInputError: Steel kernels do not run on this device.
    """
    kind = _device_type(torch.device(device))
    by_header: dict[str, list[tuple[str, Variant]]] = {}
    for variant in variants:
        by_header.setdefault(variant.header_path, []).append((kind, variant))
    for keys in by_header.values():
        _KERNELS.get_all(keys)


def _device_type(device: torch.device) -> str:
    if device.type not in ("cpu", "mps"):
        raise InvalidInputError(
            f"a tensor is on device '{device}'; Steel's Metal kernels run on 'mps', and on 'cpu' through metalsim"
        )
    return device.type


def launch(variant: Variant, *args: Any, threads: Sequence[int], group: Sequence[int]) -> None:
    """Launches a variant; compiles it first if this is its first use.

    Args:
        variant: The kernel.
        args: Argument i is ``[[buffer(i)]]``. Tensors, all on one device; ``None`` for a pointer that the kernel
            will not follow; floats become float32; ints and lists of ints become int32 (a parameter struct of int32
            fields is one list).
        threads: The grid in threads, one to three dimensions; the edge groups are full if these are multiples
            of ``group``. A grid with a zero launches nothing.
        group: Threads of a threadgroup, with as many dimensions; at most 1024 in all.

    Raises:
        InvalidInputError: no tensor, tensors on several devices, or an int that does not fit int32.
    """
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    if not tensors:
        raise InvalidInputError(
            f"kernel '{variant.name}' is launched without a tensor; it needs one to write to"
        )
    device = tensors[0].device
    for tensor in tensors:
        if tensor.device != device:
            raise InvalidInputError(
                f"kernel '{variant.name}' is given tensors on '{device}' and '{tensor.device}'; move them to one device"
            )
    kind = _device_type(device)
    if 0 in threads:
        return
    casts = {i: "int32" for i, a in enumerate(args) if _fits_int32(a, i, variant)}
    given = [tensors[0] if a is None else a for a in args]
    kernel = _KERNELS.get((kind, variant))
    kernel(*given, threads=tuple(threads), group_size=tuple(group), arg_casts=casts or None)


def _fits_int32(argument: Any, index: int, variant: Variant) -> bool:
    """Whether the argument is an int or a list of them, checked for their range."""
    values = argument if isinstance(argument, (list, tuple)) else (argument,)
    if not all(isinstance(v, int) for v in values):
        return False
    for place, value in enumerate(values):
        if value not in _INT32:
            raise InvalidInputError(
                f"kernel '{variant.name}': value {place} of argument {index} is {value}, which does not fit int32; "
                "cut the tensor into smaller pieces"
            )
    return True


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The output of a kernel: dense, not initialised. All families allocate so, which lets tests poison it."""
    return _allocate(tuple(shape), dtype, device)


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=device)
