"""Arguments of a Metal kernel as a user writes them: ``f32[64,100]=randn``, ``i64=7``, ``x.npy``, ``@0``.

DTYPE[SHAPE]=FILL   a tensor; FILL is empty, zeros, ones, arange, randn, rand, full(x), randint(a,b), FILE.npy
DTYPE=VALUE         a value; VALUE,VALUE,... is a list of them, as a kernel takes for a struct of equal fields
FILE.npy            a tensor with the file's shape and dtype
@N                  the same tensor as argument N
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from steelworks.cli._options import CommandError

if TYPE_CHECKING:
    import torch

#: Our name of a dtype, and torch's.
DTYPES: Final = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16",
    "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64", "bool": "bool",
}  # fmt: skip
#: ``arg_casts`` for values; without one an int is int64 and a float float32.
_CASTS: Final = {
    "f16": "fp16",
    "bf16": "bf16",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "bool": "uint8",
}
_FLOATS: Final = ("f32", "f16", "bf16")
_PLAIN_FILLS: Final = ("empty", "zeros", "ones", "arange", "randn", "rand")
_NEEDS_FLOAT: Final = ("randn", "rand")
_TENSOR: Final = re.compile(r"(\w+)\s*\[([\d\s,]*)\]\s*=\s*(.+)")
_VALUE: Final = re.compile(r"(\w+)\s*=\s*(.+)")
_CALL: Final = re.compile(r"(full|randint)\s*\(([^()]*)\)")
_HELP: Final = (
    "allowed are DTYPE[SHAPE]=FILL, DTYPE=VALUE, FILE.npy and @N, such as f32[64,100]=randn, "
    "f16[4096]=empty, i64=7; "
    f"DTYPE is one of {', '.join(DTYPES)}; FILL one of {', '.join(_PLAIN_FILLS)}, full(x), randint(a,b), "
    "FILE.npy"
)


@dataclass(frozen=True)
class ArgSpec:
    """One argument, parsed.

    Attributes:
        text: As written.
        dtype: A key of ``DTYPES``; "" where a file says it.
        shape: Of a tensor; None of a value.
        fill: How a tensor is filled: one of the plain fills, ``full``, ``randint``, ``file``, ``same``.
        numbers: Of the fill, or the values.
        path: Of the file.
        listed: Several values, passed as one list.
    """

    text: str
    dtype: str = ""
    shape: tuple[int, ...] | None = None
    fill: str = ""
    numbers: tuple[float, ...] = ()
    path: str = ""
    listed: bool = False

    @property
    def is_tensor(self) -> bool:
        """Whether it is memory rather than a value."""
        return bool(self.fill)

    @property
    def is_output(self) -> bool:
        """Whether the kernel must write all of it, once."""
        return self.fill == "empty"

    @property
    def cast(self) -> str | None:
        """What ``arg_casts`` needs for it."""
        if self.is_tensor or (
            self.dtype in ("u16", "u32") and max(self.numbers) >= 1 << 15 * (1 + (self.dtype == "u32"))
        ):
            return None
        return {"u16": "int16", "u32": "int32", **_CASTS}.get(self.dtype)


def parse(text: str, index: int) -> ArgSpec:
    """Reads the SPEC of argument ``index``.

    Raises:
        CommandError: it is not one; the message says what is allowed.
    """
    text = text.strip()

    def refuse(why: str) -> CommandError:
        return CommandError(f"--arg {text}: {why}; {_HELP}")

    if same := re.fullmatch(r"@(\d+)", text):
        if int(same[1]) >= index:
            raise refuse(f"@{same[1]} names no earlier argument (this is argument {index})")
        return ArgSpec(text, fill="same", numbers=(int(same[1]),))
    if text.endswith(".npy") and "=" not in text:
        return ArgSpec(text, fill="file", path=_existing(text))
    if tensor := _TENSOR.fullmatch(text):
        dtype, fill = tensor[1], tensor[3].strip()
        shape = tuple(int(n) for n in tensor[2].split(",") if n.strip())
        if dtype not in DTYPES:
            raise refuse(f"'{dtype}' is no dtype")
        return _with_fill(ArgSpec(text, dtype, shape), fill, refuse)
    if value := _VALUE.fullmatch(text):
        dtype, values = value[1], value[2].split(",")
        if dtype not in DTYPES:
            raise refuse(f"'{dtype}' is no dtype")
        try:
            numbers = tuple(float(v) if dtype in _FLOATS else int(v, 0) for v in values)
        except ValueError:
            kind = "a number" if dtype in _FLOATS else "a whole number"
            raise refuse(f"'{value[2]}' is not {kind} (a tensor needs a shape: {dtype}[...]=...)") from None
        return ArgSpec(text, dtype, numbers=numbers, listed=len(numbers) > 1)
    raise refuse("this is no argument")


def _with_fill(spec: ArgSpec, fill: str, refuse: Any) -> ArgSpec:
    if fill in _PLAIN_FILLS:
        if fill in _NEEDS_FLOAT and spec.dtype not in _FLOATS:
            raise refuse(f"{fill} gives fractions, {spec.dtype} has none: use randint(a,b)")
        return replace(spec, fill=fill)
    if fill.endswith(".npy"):
        return replace(spec, fill="file", path=_existing(fill))
    call = _CALL.fullmatch(fill)
    if call is None:
        raise refuse(f"'{fill}' is no fill")
    try:
        numbers = tuple(
            float(n) if spec.dtype in _FLOATS and call[1] == "full" else int(n, 0) for n in call[2].split(",")
        )
    except ValueError:
        raise refuse(f"'{call[2]}' does not suit {call[1]} of {spec.dtype}") from None
    if len(numbers) != (1 if call[1] == "full" else 2):
        raise refuse(f"{call[1]} takes {'one number' if call[1] == 'full' else 'two whole numbers'}")
    if call[1] == "randint" and numbers[0] >= numbers[1]:
        raise refuse("randint(a,b) gives a <= x < b, so a must be below b")
    return replace(spec, fill=call[1], numbers=numbers)


def _existing(name: str) -> str:
    path = Path(name).expanduser()
    if not path.is_file():
        raise CommandError(f"--arg {name}: there is no file {path}")
    return str(path.resolve())


def build(specs: tuple[ArgSpec, ...], seed: int) -> list[Any]:
    """The arguments, made anew: tensors on the CPU, numbers, lists of numbers.

    An ``empty`` tensor is filled with 0xFF bytes (NaN), so that what a kernel leaves out is seen.

    Raises:
        CommandError: a file does not fit.
    """
    made: list[Any] = []
    for index, spec in enumerate(specs):
        if spec.fill == "same":
            made.append(made[int(spec.numbers[0])])
        elif spec.is_tensor:
            made.append(_tensor(spec, seed + 7919 * index))
        elif spec.listed:
            made.append(list(spec.numbers))
        else:
            made.append(spec.numbers[0])
    return made


def _tensor(spec: ArgSpec, seed: int) -> torch.Tensor:
    import torch

    if spec.fill == "file":
        return _loaded(spec)
    assert spec.shape is not None
    dtype: torch.dtype = getattr(torch, DTYPES[spec.dtype])
    shape = spec.shape
    generator = torch.Generator().manual_seed(seed)
    if spec.fill == "empty":
        size = torch.Size(shape).numel() * torch.empty((), dtype=dtype).element_size()
        return torch.full((size,), 255, dtype=torch.uint8).view(dtype).reshape(shape)
    if spec.fill in ("zeros", "ones"):
        return torch.full(shape, int(spec.fill == "ones"), dtype=torch.int64).to(dtype)
    if spec.fill == "arange":
        return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    if spec.fill == "randn":
        return torch.randn(shape, generator=generator).to(dtype)
    if spec.fill == "rand":
        return torch.rand(shape, generator=generator).to(dtype)
    if spec.fill == "full":
        wide = torch.float32 if spec.dtype in _FLOATS else torch.int64
        return torch.full(shape, spec.numbers[0], dtype=wide).to(dtype)
    low, high = (int(n) for n in spec.numbers)
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def _loaded(spec: ArgSpec) -> torch.Tensor:
    import numpy
    import torch

    try:
        array = numpy.load(spec.path, allow_pickle=False)
        tensor = torch.from_numpy(numpy.ascontiguousarray(array))
    except (OSError, ValueError, TypeError) as problem:
        raise CommandError(f"--arg {spec.text}: {spec.path} can't be read as an array: {problem}") from None
    if spec.shape is not None and tuple(tensor.shape) != spec.shape:
        raise CommandError(
            f"--arg {spec.text}: {spec.path} has shape {list(tensor.shape)}, not {list(spec.shape)}"
        )
    if not spec.dtype and tensor.dtype == torch.float64:
        raise CommandError(
            f"--arg {spec.text}: the file holds float64, which no Metal device has: write "
            f"f32[...]={Path(spec.path).name}"
        )
    return tensor.to(getattr(torch, DTYPES[spec.dtype])) if spec.dtype else tensor


def name_of(dtype: torch.dtype) -> str:
    """Our name of a dtype."""
    text = str(dtype).removeprefix("torch.")
    return next((ours for ours, theirs in DTYPES.items() if theirs == text), text)
