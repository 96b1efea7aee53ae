"""No kernel computes an address in device memory but by functions of the index headers, which are proven.

The kernels' sources are read as text, function by function: every ``pointer[...]``, ``pointer + ...`` and
``pointer += ...`` on a name that the function declares as a device pointer must be a sum of calls of index functions,
or of names that were assigned such a sum. What is otherwise stands in
``addresses.toml``, each with the reason why it is in bounds.
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
        return tuple(Exempt(**entry) for entry in tomllib.load(text)["exception"])


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
    functions = index_functions(root)
    found: dict[Address, None] = {}
    count = 0
    for path in kernels(root):
        text = _COMMENT.sub(" ", path.read_text(encoding="utf-8"))
        members = {name for body in _chunks(text, "struct") for name in _DEVICE.findall(_shallow(body))}
        for body in _chunks(text, ""):
            own = set(_DEVICE.findall(body))
            local = {a or b for a, b in _LOCAL.findall(body)}
            names = own | (members - local if path.name != "order.h" else set())
            if not names:
                continue
            assigned: dict[str, list[str]] = {}
            for name, operator, value in _ASSIGNED.findall(body):
                assigned.setdefault(name, []).append(f"{name} {operator} {value}" if operator else value)
            for pointer, offset in _uses(body, names - (local - own)):
                if offset.startswith("["):  # an attribute: [[buffer(0)]]
                    continue
                count += 1
                if not _covered(offset, assigned, functions, 0):
                    found[Address(path.relative_to(root).as_posix(), pointer, " ".join(offset.split()))] = (
                        None
                    )
    return list(found), count


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


def _covered(offset: str, assigned: dict[str, list[str]], functions: frozenset[str], depth: int) -> bool:
    offset = offset.strip()
    if depth > 8:
        return False
    while offset.startswith("(") and _closing(offset, 1, "(", ")") == len(offset) - 1:
        offset = offset[1:-1].strip()
    if offset in ("0", "-1"):
        return True
    parts = _split(offset, "?")
    if len(parts) == 2:
        return all(_covered(p, assigned, functions, depth + 1) for p in _split(parts[1], ":"))
    terms = _split(offset, "+")
    if len(terms) > 1:
        return all(_covered(t, assigned, functions, depth + 1) for t in terms)
    call = re.match(r"(\w+)\s*\(", offset)
    if call and call[1] in functions:
        return _closing(offset, call.end(), "(", ")") == len(offset) - 1
    values = assigned.get(offset)
    return bool(values) and all(_covered(v, assigned, functions, depth + 1) for v in values or ())


def _split(text: str, at: str) -> list[str]:
    parts, depth, begin = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if (
            depth == 0
            and letter == at
            and text[place : place + 2] != "::"
            and text[place - 1 : place + 1] != "::"
        ):
            parts.append(text[begin:place].strip())
            begin = place + 1
    return [*parts, text[begin:].strip()]
