"""No kernel computes an address in device memory but by functions of the index headers, which are proven.

The kernels' sources are read as text, function by function: every ``pointer[...]``, ``pointer + ...`` and
``pointer += ...`` on a name that the function declares as a device pointer must be a sum of calls of index functions,
or of names that were assigned such a sum, or of parameters that are given such a sum wherever the function is called.
What is otherwise stands in ``addresses.toml``, each with the reason why it is in bounds.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import header

LIST: Final = Path(__file__).with_name("addresses.toml")
_COMMENT: Final = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DEVICE: Final = re.compile(r"\bdevice\b[^;(){}=,&*]*\*\s*(?:const\s+)?(\w+)")
_LOCAL: Final = re.compile(
    r"\bthreadgroup\b[^;(){}=,]*?\b(\w+)\s*(?:\[|[,)])|\bthreadgroup\b[^;(){}=,*]*\*\s*(\w+)"
)
#: A name that gets a value: in a declaration or later; += and the like count as a value that is not covered.
_ASSIGNED: Final = re.compile(r"(?<![\w.>\]])(\w+)\s*([-+*/%|&^]|<<|>>)?=(?!=)(?=([^;]+);)")
_COUNTED: Final = re.compile(r"(?:\+\+|--)\s*(\w+)|(?<![\w.>\]])(\w+)\s*(?:\+\+|--)")
_INDEX: Final = ("index.h", "lines.h", "params.h")


@dataclass(frozen=True)
class Address:
    """An address that a kernel computes.

    Attributes:
        file: Below ``steelworks/kernels/metal``.
        pointer: The device pointer.
        offset: What is added to it.
    """

    file: str
    pointer: str
    offset: str

    @property
    def shown(self) -> str:
        """As it is named in the list of exceptions."""
        return f"{self.pointer}[{self.offset}]"


@dataclass(frozen=True)
class Exempt:
    """An address outside of the index headers, and why it is in bounds."""

    file: str
    address: str
    reason: str


def exceptions() -> tuple[Exempt, ...]:
    """The list."""
    with LIST.open("rb") as text:
        return tuple(Exempt(**entry) for entry in tomllib.load(text).get("exception", ()))


@dataclass(frozen=True)
class _Function:
    """A function of the kernels' sources.

    Attributes:
        file: Below the root.
        name: Without its class.
        parameters: Their names; of one without a name, the last word of its type.
        required: How many of them have no default.
        text: Parameters and body.
        body: What is between its braces.
        assigned: What each name gets.
    """

    file: str
    name: str
    parameters: tuple[str, ...]
    required: int
    text: str
    body: str
    assigned: dict[str, list[str]]


@dataclass(frozen=True)
class _Sources:
    """All of them: the index functions, the others, and the names of structs."""

    index: frozenset[str]
    functions: tuple[_Function, ...]
    structs: frozenset[str]


@dataclass(frozen=True)
class Compared:
    """What the sources compute, next to the list of exceptions.

    Attributes:
        count: Addresses in device memory.
        listed: Those outside of the index headers, with a reason.
        faults: What is not listed, and what is listed and not there any more; empty if all is well.
    """

    count: int
    listed: int
    faults: tuple[str, ...]


def compare() -> Compared:
    """Looks for addresses that are neither index functions' nor listed."""
    found, count = outside()
    listed = {(e.file, e.address) for e in exceptions()}
    seen = {(a.file, a.shown) for a in found}
    faults = [
        f"{file}: {address} is computed outside of the index headers, and not listed in {LIST.name}"
        for file, address in sorted(seen - listed)
    ]
    faults += [
        f"{LIST.name} lists {address} of {file}, which is not there any more"
        for file, address in sorted(listed - seen)
    ]
    return Compared(count, len(seen), tuple(faults))


def index_functions(root: Path = header.ROOT) -> frozenset[str]:
    """The functions of all index headers."""
    return frozenset(header.read([p for p in root.rglob("*.h") if p.name in _INDEX]).functions)


def kernels(root: Path = header.ROOT) -> list[Path]:
    """The sources that are read."""
    return sorted(p for p in root.rglob("*.h") if p.name not in _INDEX)


def outside(root: Path = header.ROOT) -> tuple[list[Address], int]:
    """The addresses that are no sum of index functions, each once, and how many there are in all."""
    texts = {path: _COMMENT.sub(" ", path.read_text(encoding="utf-8")) for path in kernels(root)}
    by_file = {
        path: [_function(path.relative_to(root).as_posix(), c) for c in _chunks(texts[path], "")]
        for path in texts
    }
    sources = _Sources(
        index_functions(root),
        tuple(function for functions in by_file.values() for function in functions),
        frozenset(name for text in texts.values() for name in re.findall(r"\bstruct\s+(\w+)", text)),
    )
    found: dict[Address, None] = {}
    count = 0
    for path, text in texts.items():
        members = {name for body in _chunks(text, "struct") for name in _DEVICE.findall(_shallow(body))}
        for function in by_file[path]:
            own = set(_DEVICE.findall(function.text))
            local = {a or b for a, b in _LOCAL.findall(function.text)}
            names = own | (members - local if path.name != "order.h" else set())
            if not names:
                continue
            for pointer, offset in _uses(function.text, names - (local - own)):
                if offset.startswith("["):  # an attribute: [[buffer(0)]]
                    continue
                count += 1
                if not _covered(offset, function, sources, 0):
                    found[Address(function.file, pointer, " ".join(offset.split()))] = None
    return list(found), count


def _function(file: str, text: str) -> _Function:
    begin = text.index("(") + 1
    end = _closing(text, begin, "(", ")")
    parameters = [x for x in _split(text[begin:end], ",", "([{<", ")]}>") if x]
    plain = [re.sub(r"\[\[.*?\]\]|=.*|\[[^\]]*\]", "", x, flags=re.DOTALL) for x in parameters]
    assigned: dict[str, list[str]] = {}
    for name, operator, value in _ASSIGNED.findall(text):
        assigned.setdefault(name, []).append(f"{name} {operator} {value}" if operator else value)
    for before, behind in _COUNTED.findall(text):
        assigned.setdefault(before or behind, []).append("counted")
    return _Function(
        file,
        text[: begin - 1].strip(),
        tuple((re.findall(r"\w+", x) or [""])[-1] for x in plain),
        sum("=" not in x for x in parameters),
        text,
        text[end:],
        assigned,
    )


def _chunks(text: str, kind: str) -> Iterator[str]:
    """Structs with their members, or functions with their parameters: as they stand at any depth, outermost first."""
    opening = (
        r"\bstruct\s+\w+[^;{}()]*\{"
        if kind
        else r"\b\w+\s*\(([^;{}]*)\)\s*(?:const\s*)?(?:thread\s*)?(?::[^{};]*)?\{"
    )
    at = 0
    while True:
        found = re.compile(opening).search(text, at)
        if found is None:
            return
        if re.match(r"(if|for|while|switch)\b", found[0]):
            at = found.end()
            continue
        end = _closing(text, found.end(), "{", "}")
        yield text[found.start() : end]
        at = found.end() if kind else end


def _closing(text: str, begin: int, opening: str, closing: str) -> int:
    depth = 1
    for at in range(begin, len(text)):
        depth += (text[at] == opening) - (text[at] == closing)
        if depth == 0:
            return at
    raise ValueError(f"no {closing!r} for an {opening!r}")


def _shallow(body: str) -> str:
    """A struct without the bodies of its functions."""
    begin = body.index("{") + 1
    shown, depth = "", 0
    for letter in body[begin:]:
        depth += (letter in "({") - (letter in ")}")
        if depth == 0:
            shown += letter
    return shown


def _uses(body: str, names: set[str]) -> Iterator[tuple[str, str]]:
    any_name = "|".join(sorted(names))
    for found in re.finditer(rf"(?<![\w.>])({any_name})\s*(\[|\+=|\+(?!\+))", body):
        if found[2] == "[":
            yield found[1], body[found.end() : _closing(body, found.end(), "[", "]")]
            continue
        yield found[1], _until_end(body[found.end() :])


def _until_end(text: str) -> str:
    depth = 0
    for at, letter in enumerate(text):
        if depth == 0 and letter in ";,)}":
            return text[:at].strip()
        depth += (letter in "([{") - (letter in ")]}")
    return text.strip()


def _covered(offset: str, where: _Function, sources: _Sources, depth: int) -> bool:
    offset = offset.strip()
    if depth > 8:
        return False
    while offset.startswith("(") and _closing(offset, 1, "(", ")") == len(offset) - 1:
        offset = offset[1:-1].strip()
    if offset in ("0", "-1"):
        return True
    parts = _split(offset, "?")
    if len(parts) == 2:
        return all(_covered(p, where, sources, depth + 1) for p in _split(parts[1], ":"))
    terms = _split(offset, "+")
    if len(terms) > 1:
        return all(_covered(t, where, sources, depth + 1) for t in terms)
    call = re.match(r"(\w+)\s*\(", offset)
    if call and call[1] in sources.index:
        return _closing(offset, call.end(), "(", ")") == len(offset) - 1
    values = where.assigned.get(offset)
    if values:
        return offset not in where.parameters and all(_covered(v, where, sources, depth + 1) for v in values)
    return offset in where.parameters and _given(offset, where, sources, depth)


def _given(parameter: str, where: _Function, sources: _Sources, depth: int) -> bool:
    """Whether every call of a function gives a parameter a value that is covered. A kernel is never called."""
    at = where.parameters.index(parameter)
    if where.name in sources.structs or where.name == "operator":  # called by other names
        return False
    known = [f for f in sources.functions if f.name == where.name]
    called = False
    for caller in sources.functions:
        for found in re.finditer(rf"\b{where.name}\s*(?:<[^;(){{}}]*>\s*)?\(", caller.body):
            arguments = _split(caller.body[found.end() : _closing(caller.body, found.end(), "(", ")")], ",")
            if not any(f.required <= len(arguments) <= len(f.parameters) for f in known):
                return False  # it can't be read
            if not where.required <= len(arguments) <= len(where.parameters):
                continue  # another function of this name
            called = True
            if at >= len(arguments) or not _covered(arguments[at], caller, sources, depth + 1):
                return False
    return called


def _split(text: str, at: str, opening: str = "([{", closing: str = ")]}") -> list[str]:
    parts, depth, begin = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in opening) - (letter in closing)
        if (
            depth == 0
            and letter == at
            and text[place : place + 2] != "::"
            and text[place - 1 : place + 1] != "::"
        ):
            parts.append(text[begin:place].strip())
            begin = place + 1
    return [*parts, text[begin:].strip()]
