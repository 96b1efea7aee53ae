"""Attributes ``[[...]]`` and the parameters of kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ._found import BUILTINS, MAX_BUFFERS, Parameter
from ._tokens import Code, error

#: Older names of the same.
_ALIASES: Final = {"thread_execution_width": "threads_per_simdgroup"}
_REFUSED_ATTRIBUTES: Final = {
    "function_constant": (
        "function constants can't be set through compile_shader: use a template with host_name"
    ),
    "threadgroup": (
        "threadgroup memory can't be passed through compile_shader: declare an array in the kernel"
    ),
    "texture": "textures are outside the supported subset: use a buffer",
    "sampler": "samplers are outside the supported subset: use a buffer",
    "stage_in": "compute kernels only: [[stage_in]] is outside the supported subset",
    "imageblock_data": "imageblocks are outside the supported subset",
    "visible": "visible functions are outside the supported subset",
    "stitchable": "stitchable functions are outside the supported subset",
    "intersection": "intersection functions are outside the supported subset",
    "vertex": "compute kernels only: vertex functions are outside the supported subset",
    "fragment": "compute kernels only: fragment functions are outside the supported subset",
    "mesh": "compute kernels only: mesh functions are outside the supported subset",
    "object": "compute kernels only: object functions are outside the supported subset",
}


@dataclass(frozen=True)
class Attribute:
    """One attribute; ``argument`` is the token range in its parentheses."""

    name: str
    argument: tuple[int, int]
    at: int


def attributes(code: Code, start: int, end: int, *, outside: bool = False) -> list[tuple[int, int]]:
    """The ``[[...]]`` in [start, end), brackets included; with ``outside`` only those not in ( ) or { }."""
    found = []
    index = start
    while index < end - 1:
        if outside and code.value(index) in ("(", "{"):
            index = code.match[index] + 1
            continue
        if code.value(index) == "[" and code.value(index + 1) == "[" and index + 1 in code.match:
            inner, outer = code.match[index + 1], code.match[index]
            if outer == inner + 1:
                found.append((index, outer + 1))
                index = outer + 1
                continue
        index += 1
    return found


def parse_attributes(code: Code, ranges: list[tuple[int, int]]) -> list[Attribute]:
    """What these brackets say; refuses what is outside the subset."""
    parsed = []
    for start, end in ranges:
        index = start + 2
        while index < end - 2:
            at = index
            name = code.value(index)
            index += 1
            while code.value(index) == "::":
                name = code.value(index + 1)
                index += 2
            argument = (index, index)
            if code.value(index) == "(":
                argument = (index + 1, code.match[index])
                index = code.match[index] + 1
            if name in _REFUSED_ATTRIBUTES:
                raise error(code[at], _REFUSED_ATTRIBUTES[name])
            parsed.append(Attribute(_ALIASES.get(name, name), argument, at))
            if code.value(index) == ",":
                index += 1
    return parsed


def string_of(code: Code, attribute: Attribute) -> str:
    """The value of a host_name: string literals, put together."""
    parts = []
    for index in range(*attribute.argument):
        if code[index].kind != "string":
            raise error(code[index], f"host_name needs string literals, not '{code.value(index)}'")
        parts.append(code.value(index)[1:-1])
    if not parts:
        raise error(code[attribute.at], "host_name needs a string literal")
    return "".join(parts)


def parameters_of(code: Code, opening: int) -> tuple[Parameter, ...]:
    """The parameters of the kernel whose list opens at ``opening``, buffers numbered."""
    closing = code.match[opening]
    parameters: list[Parameter] = []
    start = opening + 1
    index = start
    if start == closing or (closing == start + 1 and code.value(start) == "void"):
        return ()
    while index <= closing:
        value = code.value(index)
        if index == closing or value == ",":
            parameters.append(_parameter(code, start, index))
            start = index + 1
            index += 1
        elif value in ("(", "[", "{"):
            index = code.match[index] + 1
        elif value == "<" and code.is_name(index - 1):
            index = code.skip_angles(index)
        else:
            index += 1
    return _number(code, opening, parameters)


def _parameter(code: Code, start: int, end: int) -> Parameter:
    ranges = attributes(code, start, end)
    parsed = parse_attributes(code, ranges)
    inside = {i for a, b in ranges for i in range(a, b)}
    plain = [i for i in range(start, end) if i not in inside]
    values = [code.value(i) for i in plain]
    if not plain:
        raise error(code[start], "a kernel parameter is missing")
    name, depth = "", 0
    for i in plain:
        depth += {"<": 1, ">": -1}.get(code.value(i), 0)
        if depth == 0 and code.is_name(i):
            name = code.value(i)
        if code.value(i) in ("[", "="):
            break
    pointer = bool({"*", "&", "["} & set(values))
    at = code[plain[0]]
    if "threadgroup" in values and pointer:
        raise error(at, _REFUSED_ATTRIBUTES["threadgroup"])
    constant = "constant" in values or "const" in values
    role, argument = "", (0, 0)
    for attribute in parsed:
        if attribute.name in BUILTINS:
            role = attribute.name
        elif attribute.name in ("buffer", "id"):
            role, argument = "buffer", attribute.argument
        elif attribute.name not in ("maybe_unused", "raster_order_group", "function_constant"):
            raise error(code[attribute.at], f"[[{attribute.name}]] is not supported on a kernel parameter")
    if not role:
        if not pointer:
            raise error(
                at, f"parameter '{name}' is neither a pointer or reference to a buffer nor has an attribute"
            )
        role = "buffer"
    if role == "buffer" and not ("constant" in values or "device" in values):
        raise error(at, f"parameter '{name}' is a buffer: it needs the address space device or constant")
    text = code.text(*argument)
    index = int(text) if text.isdigit() else -1
    if index >= MAX_BUFFERS:
        raise error(at, f"buffer index {index} is out of range: 0 to {MAX_BUFFERS - 1} are allowed")
    return Parameter(name, role, index, text, constant)


def _number(code: Code, opening: int, parameters: list[Parameter]) -> tuple[Parameter, ...]:
    """Buffers without an index get the lowest that is free, in order."""
    buffers = [p for p in parameters if p.role == "buffer"]
    taken = {p.index for p in buffers if p.index >= 0}
    if len(taken) != sum(p.index >= 0 for p in buffers):
        raise error(code[opening], "two parameters have the same buffer index")
    by_compiler = any(p.index < 0 and p.index_text for p in buffers)
    numbered = []
    free = 0
    for p in parameters:
        if p.role == "buffer" and p.index < 0 and not p.index_text:
            if by_compiler:
                raise error(
                    code[opening],
                    f"parameter '{p.name}' needs a buffer index, because others have computed ones",
                )
            while free in taken:
                free += 1
            if free >= MAX_BUFFERS:
                raise error(code[opening], f"a kernel has at most {MAX_BUFFERS} buffers")
            taken.add(free)
            p = Parameter(p.name, p.role, free, str(free), p.constant)
        numbered.append(p)
    return tuple(numbered)
