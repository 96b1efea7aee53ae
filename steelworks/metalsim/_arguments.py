"""Binds the arguments of a launch to buffer indices, by the rules of ``torch.mps.compile_shader``."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from ._found import MAX_BUFFERS
from .errors import ArgumentError, DtypeError

#: The values of ``arg_casts``; without one, int is int64 and float is float32.
CASTS: Final = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
}
#: Metal's setBytes takes no more.
_MOST_VALUE_BYTES: Final = 4096
_REFUSED_DTYPES: Final = (torch.float64, torch.complex128)


@dataclass
class Bound:
    """Memory bound to one index. ``keep`` holds what owns it."""

    address: int
    size: int
    constant: bool
    keep: object


@dataclass
class Binding:
    """All memory of a launch: by index, and what lists of tensors point to."""

    buffers: dict[int, Bound] = field(default_factory=dict)
    pointed: list[Bound] = field(default_factory=list)
    first_numel: int | None = None


def bind(arguments: Sequence[Any], arg_casts: object) -> Binding:
    """Binds argument i to ``[[buffer(i)]]``.

    Raises:
        ArgumentError: an argument of a kind that torch refuses too.
        DtypeError: a tensor of a dtype that no Metal device has.
    """
    default, casts = _casts(arg_casts)
    binding = Binding()
    if len(arguments) > MAX_BUFFERS:
        raise ArgumentError(f"{len(arguments)} arguments; a Metal kernel has at most {MAX_BUFFERS} buffers")
    for index, argument in enumerate(arguments):
        cast = casts.get(index, default)
        if isinstance(argument, torch.Tensor):
            binding.buffers[index] = _tensor(argument, index)
            if binding.first_numel is None:
                binding.first_numel = argument.numel()
        elif isinstance(argument, (list, tuple)):
            binding.buffers[index] = _list(argument, index, cast, binding)
        elif isinstance(argument, float):
            binding.buffers[index] = _value(_pack([argument], torch.float32, cast, index))
        elif isinstance(argument, int):
            binding.buffers[index] = _value(_pack([argument], torch.int64, cast, index))
        else:
            raise ArgumentError(
                f"Unsupported argument type: argument {index} is {type(argument).__name__}; "
                "a tensor, an int, a float, or a list of one of these is allowed"
            )
    return binding


def _casts(arg_casts: object) -> tuple[str, dict[int, str]]:
    if arg_casts is None:
        return "", {}
    if isinstance(arg_casts, str):
        default, casts = arg_casts, {}
    elif isinstance(arg_casts, Mapping):
        default, casts = "", dict(arg_casts)
        for index, cast in casts.items():
            if not isinstance(index, int) or not isinstance(cast, str):
                raise ArgumentError(f"arg_casts maps argument numbers to casts, not {index!r} to {cast!r}")
    else:
        raise ArgumentError(
            f"Unexpected caster arg type {type(arg_casts).__name__}: arg_casts is None, "
            "a cast, or a dict of casts by argument number"
        )
    return default, casts


def _tensor(tensor: torch.Tensor, index: int) -> Bound:
    if tensor.device.type != "cpu":
        raise ArgumentError(
            f"argument {index} is on device '{tensor.device}'; metalsim runs on the CPU: pass tensor.cpu()"
        )
    if tensor.layout != torch.strided:
        raise ArgumentError(f"argument {index} has layout {tensor.layout}; only strided tensors can be bound")
    if tensor.dtype in _REFUSED_DTYPES:
        raise DtypeError(
            f"argument {index} is {tensor.dtype}, which no Metal device has: convert it to float32"
        )
    if tensor.numel() == 0:
        return Bound(tensor.data_ptr(), 0, False, tensor)
    # From the first element to the end of the last: what a kernel that is told the strides may touch.
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return Bound(tensor.data_ptr(), (last + 1) * tensor.element_size(), False, tensor)


def _list(values: Sequence[Any], index: int, cast: str, binding: Binding) -> Bound:
    if not values:
        raise ArgumentError(f"Empty list/tuple can not be an argument to metal kernel: argument {index}")
    first = values[0]
    if isinstance(first, torch.Tensor):
        bounds = []
        for tensor in values:
            if not isinstance(tensor, torch.Tensor):
                raise ArgumentError(
                    f"argument {index} begins with a tensor and contains a {type(tensor).__name__}"
                )
            bounds.append(_tensor(tensor, index))
        binding.pointed += bounds
        return _value(struct.pack(f"={len(bounds)}Q", *(b.address for b in bounds)))
    if isinstance(first, int):
        if not all(isinstance(v, int) for v in values):
            raise ArgumentError(f"argument {index} begins with an int, so that all its values must be int")
        return _value(_pack(values, torch.int64, cast, index))
    if isinstance(first, float):
        if not all(isinstance(v, (int, float)) for v in values):
            raise ArgumentError(
                f"argument {index} begins with a float, so that all its values must be numbers"
            )
        return _value(_pack(values, torch.float32, cast, index))
    raise ArgumentError(
        f"Unexpected argument types: argument {index} is a list of {type(first).__name__}; "
        "int, float or tensors are allowed"
    )


def _pack(values: Sequence[Any], dtype: torch.dtype, cast: str, index: int) -> bytes:
    if cast and cast not in CASTS:
        raise ArgumentError(
            f"Unsupported cast instruction {cast!r} for argument {index}; allowed are {', '.join(CASTS)}"
        )
    try:
        packed = torch.tensor([float(v) if dtype.is_floating_point else int(v) for v in values], dtype=dtype)
    except (OverflowError, RuntimeError, ValueError) as problem:
        raise ArgumentError(f"argument {index} does not fit {dtype}: {problem}") from problem
    if cast:
        packed = packed.to(CASTS[cast])
    data: bytes = packed.view(torch.uint8).numpy().tobytes()
    if len(data) > _MOST_VALUE_BYTES:
        raise ArgumentError(
            f"argument {index} is a list of {len(data)} bytes; "
            f"Metal takes at most {_MOST_VALUE_BYTES} as a value: pass a tensor"
        )
    return data


def _value(data: bytes) -> Bound:
    # 16 bytes alignment and rounded up, as a Metal buffer has; the size is exact all the same.
    storage = torch.zeros(max(64, len(data)), dtype=torch.uint8)
    storage[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return Bound(storage.data_ptr(), len(data), True, storage)


def triple(value: object, name: str) -> tuple[int, ...] | None:
    """``threads`` or ``group_size``: None, an int, or one to three of them.

    Raises:
        ArgumentError: anything else.
    """
    if value is None:
        return None
    given = (value,) if isinstance(value, int) else value
    if not isinstance(given, (list, tuple)) or not all(isinstance(v, int) for v in given):
        raise ArgumentError(f"{name} is {value!r}; an int or one to three of them are allowed")
    if not 1 <= len(given) <= 3:
        raise ArgumentError(f"{name} has {len(given)} dimensions; one to three are allowed")
    if any(v < 0 or v >= 1 << 32 for v in given):
        raise ArgumentError(f"{name} is {value!r}; each must be from 0 to 4294967295")
    return tuple(given)
