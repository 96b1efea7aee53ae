"""The lints that ask the compiler: its warnings, its address-space checks, its syntax tree."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from . import _toolchain
from .lint import LintFinding

_DIAGNOSTIC: Final = re.compile(
    r"^(?P<file>.*?):(?P<line>\d+):(?P<column>\d+): (?P<kind>fatal error|error|warning|note): (?P<text>.*)$"
)
_NEWER: Final = ("-Wc++17-extensions", "-Wc++20-extensions", "-Wc++23-extensions", "-Wc++14-binary-literal")
#: The compiler's words for a mismatch of address spaces between pointers or references.
_MISMATCH: Final = re.compile(
    r"address space|changes address space|mismatching address spaces|"
    r"_cast from .*__(?:global|local|constant)|"
    r"no known conversion from .*__(?:global|local|constant).*[*&\]]|"
    r"cannot initialize (?:a|an|return) .*__(?:global|local|constant).*[*&]|"
    r"assigning to .*[*].*__(?:global|local|constant)"
)
#: What clang says of class types in address spaces, right or wrong; and of our own threadgroup variables.
_CLASSES: Final = re.compile(
    r"automatic variable qualified with an address space|no matching constructor|no viable|invalid operands|"
    r"to type 'const|non-const lvalue reference|'this' argument|no matching member function|"
    r"may not be declared with an address space|field may not be qualified"
)
_SPACE_WORDS: Final = {
    "__global": "device",
    "__local": "threadgroup",
    "__constant": "constant",
    "generic address space": "thread memory",
}
_LOCAL: Final = "__attribute__((opencl_local))"
_NAMESPACE: Final = "ms_linted"
_VECTOR: Final = re.compile(r"^(?:const )?(?:ms::|metal::)?(packed_)?vec<([a-zA-Z_ 0-9]+), (\d)>$")
_SHORT: Final = re.compile(
    r"^(?:const )?(packed_)?(bool|u?(?:char|short|int|long)|half|bfloat|float)([234])$"
)
_SIZES: Final = {
    "bool": 1, "char": 1, "signed char": 1, "unsigned char": 1, "short": 2, "unsigned short": 2, "int": 4,
    "unsigned int": 4, "long": 8, "unsigned long": 8, "float": 4, "_Float16": 2, "__bf16": 2,
    "uchar": 1, "ushort": 2, "uint": 4, "ulong": 8, "half": 2, "bfloat": 2,
}  # fmt: skip


def _syntax_only(text: str, *flags: str) -> tuple[int, str, str]:
    compiler = _toolchain.find_compiler()
    done = compiler.run(
        *_toolchain.compile_flags(False),
        "-include-pch",
        str(_toolchain.header(False)),
        "-fno-caret-diagnostics",
        "-ferror-limit=200",
        *flags,
        "-fsyntax-only",
        "-x",
        "c++",
        "-",
        text=text,
    )
    return done.returncode, done.stdout, done.stderr


def check_language(text: str, file: str) -> tuple[list[LintFinding], bool]:
    """Errors and the use of newer C++; whether the source compiles."""
    status, _, output = _syntax_only(text, *_NEWER)
    found = []
    for match in filter(None, map(_DIAGNOSTIC.match, output.splitlines())):
        place, line, kind, told = match["file"], int(match["line"]), match["kind"], match["text"]
        if kind == "warning" and place == file:
            told = re.sub(r" \[-W[^\]]*\]$", "", told)
            mend = (
                "write it in C++14: Metal's language is C++14, and what newer forms it takes differs "
                "by version"
            )
            found.append(LintFinding(file, line, "cpp14", "warning", told, mend))
        elif "error" in kind:
            mend = "mend this first; rules that need a compile were not applied"
            found.append(LintFinding(place, line, "syntax", "error", told, mend))
    return found, status == 0


def check_spaces(text: str, file: str) -> list[LintFinding]:
    """Mismatches of address spaces in typed text.

    clang allows no automatic variable in an address space, and judges nothing that uses one: the errors of a
    first compile say where threadgroup variables are declared, and those become static for the second.
    """
    _, _, output = _syntax_only(text)
    if "automatic variable" in output:
        text = _with_statics(text, output)
        _, _, output = _syntax_only(text)
    mend = "declare both with the same address space, or copy the value"
    found = []
    for group in _grouped(output):
        head, notes = group[0], group[1:]
        if head["file"] != file or _CLASSES.search(head["text"]):
            continue
        told = head["text"]
        if not _MISMATCH.search(told):
            # A call: the notes say why each candidate does not fit, and only the source's own count.
            why = [n["text"] for n in notes if n["file"] == file and _MISMATCH.search(n["text"])]
            if not told.startswith("no matching function") or not why:
                continue
            told = f"{told}: {why[0]}"
        found.append(LintFinding(file, int(head["line"]), "address-space", "error", _in_metal(told), mend))
    for node, place, line in _casts_of(text):
        told = _space_cast(node) if place == file else ""
        if told:
            found.append(LintFinding(file, line, "address-space", "error", told, mend))
    return found


def _in_metal(told: str) -> str:
    for word, metal in _SPACE_WORDS.items():
        told = told.replace(word, metal)
    return told


def _space_cast(node: dict[str, Any]) -> str:
    """What is wrong with a cast from one address space to another; "" for any other cast."""
    source = next((i for i in node.get("inner", ()) if isinstance(i, dict) and "type" in i), None)
    if source is None:
        return ""
    to, given = _type(node), _given(source)
    spaces = [re.findall(r"__(?:global|local|constant)", t) for t in (to, given)]
    pointers = "*" in to and ("*" in given or "[" in given)
    if not pointers or spaces[0] == spaces[1] or not spaces[1]:
        return ""
    return _in_metal(f"a cast from '{given}' to '{to}' changes the address space")


def _with_statics(text: str, output: str) -> str:
    """The text with ``static`` before each declaration that clang takes for an automatic variable."""
    lines = text.split("\n")
    places = _Lines(text).places
    numbers: dict[tuple[str, int], list[int]] = {}
    for number, place in enumerate(places):
        numbers.setdefault(place, []).append(number)
    at: set[tuple[int, int]] = set()
    for group in _grouped(output):
        head = group[0]
        if not head["text"].startswith("automatic variable"):
            continue
        for number in numbers.get((head["file"], int(head["line"])), ()):
            # The declaration may have begun on a line before.
            end = int(head["column"])
            while number >= 0 and (start := lines[number].rfind(_LOCAL, 0, end)) < 0:
                number, end = number - 1, 1 << 30
            at.add((number, start))
    for number, start in sorted(at, reverse=True):
        lines[number] = f"{lines[number][:start]}static {lines[number][start:]}"
    return "\n".join(lines)


def _grouped(output: str) -> list[list[re.Match[str]]]:
    """Each error with its notes."""
    groups: list[list[re.Match[str]]] = []
    for match in filter(None, map(_DIAGNOSTIC.match, output.splitlines())):
        if match["kind"] == "note":
            if groups:
                groups[-1].append(match)
        elif "error" in match["kind"]:
            groups.append([match])
    return groups


def check_vector_casts(text: str, file: str) -> list[LintFinding]:
    """Casts between vectors of one size with different elements, from the syntax tree of the source alone."""
    found = (_cast(node, place, line, file) for node, place, line in _casts_of(text))
    return [finding for finding in found if finding is not None]


def _casts_of(text: str) -> Iterator[tuple[dict[str, Any], str, int]]:
    """The casts in the source, with file and line.

    The source is put into a namespace, by whose name the tree is cut out: the stand-in headers stay outside.
    """
    wrapped = f"namespace {_NAMESPACE} {{ using namespace ::metal;\n{text}\n}}\n"
    _, tree, _ = _syntax_only(
        wrapped, "-Xclang", "-ast-dump=json", "-Xclang", f"-ast-dump-filter={_NAMESPACE}"
    )
    lines = _Lines(wrapped)
    for document in _documents(tree):
        for node, offset in _casts(document, ["<stdin>"]):
            yield node, *lines.place(offset)


def _documents(text: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), text.find("{")
    while 0 <= at < len(text):
        try:
            document, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            return
        yield document
        at = text.find("{", at)


def _casts(node: Any, current: list[str]) -> Iterator[tuple[dict[str, Any], int]]:
    """Cast expressions with the offset where they begin; ``current`` is the file of the last position.

    clang prints a position's file only when it differs from that of the position before, in text order.
    """
    stack: list[Any] = [node]
    while stack:
        item = stack.pop()
        if not isinstance(item, dict):
            continue
        begin = -1
        for key in ("loc", "range"):
            part = item.get(key)
            if not isinstance(part, dict):
                continue
            ends = (part.get("begin"), part.get("end")) if key == "range" else (part,)
            for number, place in enumerate(ends):
                if isinstance(place, dict) and "offset" in place:
                    current[0] = place.get("file", current[0])
                    if key == "range" and number == 0 and current[0] == "<stdin>":
                        begin = place["offset"]
        kind = item.get("kind", "")
        if begin >= 0 and kind in ("CStyleCastExpr", "CXXReinterpretCastExpr"):
            yield item, begin
        inner = item.get("inner")
        if isinstance(inner, list):
            stack.extend(reversed(inner))


def _cast(node: dict[str, Any], file: str, line: int, wanted: str) -> LintFinding | None:
    if file != wanted:
        return None
    source = next((i for i in node.get("inner", ()) if isinstance(i, dict) and "type" in i), None)
    if source is None:
        return None
    to, given = _type(node), _given(source)
    pointer = to.endswith("*") or node.get("valueCategory") == "lvalue"
    to, given = to.rstrip("*& "), given.rstrip("*& ")
    a, b = (_VECTOR.match(t) or _SHORT.match(t) for t in (to, given))
    if a is None or b is None or _plain(a[2]) == _plain(b[2]) or _bytes(a) != _bytes(b):
        return None
    short = [f"{_plain(m[2])}{m[3]}" for m in (b, a)]
    if pointer:
        return LintFinding(
            wanted, line, "vector-bit-cast", "warning",
            f"a {short[0]} is read or written as {short[1]} through a pointer: its bits stay, its values "
            "do not",
            f"for the bits write as_type<{short[1]}>(value), for the values {short[1]}(value)",
        )  # fmt: skip
    return LintFinding(
        wanted, line, "vector-cast", "warning",
        f"a C cast from {short[0]} to {short[1]} does not say whether bits or values are meant",
        f"for the values write {short[1]}(value), for the bits as_type<{short[1]}>(value)",
    )  # fmt: skip


def _plain(scalar: str) -> str:
    """The name Metal has for it."""
    return scalar.replace("_Float16", "half").replace("__bf16", "bfloat").replace("unsigned ", "u")


def _type(node: dict[str, Any]) -> str:
    described = node.get("type", {})
    return str(described.get("desugaredQualType") or described.get("qualType", ""))


def _given(node: dict[str, Any]) -> str:
    """The type of a cast's operand before implicit conversions and the constructor call made of the cast."""
    while True:
        inner = [i for i in node.get("inner", ()) if isinstance(i, dict) and "type" in i]
        implicit = node.get("kind") in (
            "ImplicitCastExpr",
            "CXXConstructExpr",
            "MaterializeTemporaryExpr",
            "ParenExpr",
        )
        if not implicit or len(inner) != 1:
            return _type(node)
        node = inner[0]


def _bytes(match: re.Match[str]) -> int:
    count = int(match[3])
    return _SIZES.get(match[2], 0) * (4 if count == 3 and not match[1] else count)


class _Lines:
    """From an offset in text with line markers to file and line."""

    def __init__(self, text: str) -> None:
        self._starts: list[int] = []
        self.places: list[tuple[str, int]] = []
        file, line, at = "", 1, 0
        for content in text.encode("utf-8").split(b"\n"):
            self._starts.append(at)
            self.places.append((file, line))
            at += len(content) + 1
            line += 1
            marker = re.match(rb'#(?:line)?\s+(\d+)(?:\s+"((?:\\.|[^"\\])*)")?', content.strip())
            if marker is not None:
                line = int(marker[1])
                if marker[2] is not None:
                    file = marker[2].decode("utf-8", "replace").replace("\\\\", "\\")

    def place(self, offset: int) -> tuple[str, int]:
        """File and line of the byte at ``offset``."""
        return self.places[bisect.bisect_right(self._starts, offset) - 1]
