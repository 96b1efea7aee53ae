"""The lints that look at tokens: ``double``, reserved names, pointers without an address space."""

from __future__ import annotations

import re
from typing import Final

from ._tokens import Code, Token
from .lint import LintFinding

DOUBLE: Final = re.compile(r"\b(?:long\s+)?double\b")
_SPACES: Final = frozenset(
    {"device", "constant", "threadgroup", "thread", "threadgroup_imageblock", "ray_data", "object_data"}
)
#: Keywords of Metal; clang here takes some of them for ordinary names.
_KEYWORDS: Final = _SPACES | {"kernel", "vertex", "fragment", "half", "bfloat"}
_SCALARS: Final = (
    "bool",
    "char",
    "uchar",
    "short",
    "ushort",
    "int",
    "uint",
    "long",
    "ulong",
    "half",
    "float",
    "bfloat",
)
_VECTORS: Final = frozenset(
    f"{packed}{s}{n}" for packed in ("", "packed_") for s in _SCALARS for n in (2, 3, 4)
)
#: Types of Metal's library: a variable of this name hides them from all that follows.
_LIBRARY: Final = _VECTORS | {
    "sampler",
    "texture_buffer",
    "texturecube",
    "simdgroup_matrix",
    "simdgroup_float8x8",
    "simdgroup_half8x8",
    *(f"texture{d}d{a}" for d in (1, 2, 3) for a in ("", "_array")),
    *(f"depth2d{a}" for a in ("", "_array", "_ms")),
    *(f"{s}{c}x{r}" for s in ("float", "half") for c in (2, 3, 4) for r in (2, 3, 4)),
}
_FUNDAMENTAL: Final = (
    frozenset({*_SCALARS, "void", "auto", "unsigned", "signed", "size_t", "double"}) | _VECTORS
)
_QUALIFIERS: Final = frozenset(
    {
        "const",
        "constexpr",
        "volatile",
        "static",
        "inline",
        "extern",
        "mutable",
        "explicit",
        "friend",
        "register",
    }
)
_INTRODUCE: Final = frozenset({"typename", "class", "struct", "union", "enum", "using", "namespace"})
_NOT_TYPES: Final = frozenset(
    {
        "return",
        "else",
        "case",
        "goto",
        "sizeof",
        "operator",
        "delete",
        "throw",
        "do",
        "and",
        "or",
        "not",
        "template",
    }
)
_AFTER_NAME: Final = frozenset({"=", ";", ",", ")", "[", "(", "{", ":", ">"})


def check(code: Code, file: str) -> list[LintFinding]:
    """Findings in the tokens that come from ``file``."""
    found = []
    for index, token in enumerate(code.tokens):
        if token.file != file or token.kind != "name":
            continue
        if token.value == "double":
            mend = "use float (Metal computes nothing in 64-bit floating point)"
            found.append(LintFinding(file, token.line, "double", "error", "Metal has no double", mend))
        elif _declares(code, index):
            finding = _name(code, index, token, file)
            if finding is not None:
                found.append(finding)
    return found + _pointers(code, file)


def _name(code: Code, index: int, token: Token, file: str) -> LintFinding | None:
    name = token.value
    mend = "choose another name"
    if name in _KEYWORDS:
        return LintFinding(
            file, token.line, "reserved-name", "error", f"'{name}' is a keyword of Metal", mend
        )
    if name.startswith("__") or (name.startswith("_") and name[1:2].isupper()):
        what = (
            f"'{name}' is reserved for the compiler, as are all names that begin with __ or _ and a capital"
        )
        return LintFinding(file, token.line, "reserved-name", "error", what, mend)
    if name == "main" and code.value(index + 1) == "(":
        return LintFinding(
            file, token.line, "reserved-name", "error", "no Metal function may be named 'main'", mend
        )
    if name in _LIBRARY and code.value(index + 1) not in ("(", "{", ">"):
        what = f"'{name}' is a type of Metal's library, which a variable of this name hides"
        return LintFinding(file, token.line, "reserved-name", "warning", what, mend)
    return None


def _declares(code: Code, index: int) -> bool:
    """Whether the name at ``index`` stands where a declaration puts the name it declares."""
    if code.value(index + 1) not in _AFTER_NAME or index == 0:
        return False
    before, after = code.value(index - 1), code.value(index + 1)
    if code.is_name(index - 1):
        if before in _INTRODUCE:
            return True
        if before in _NOT_TYPES or before in _QUALIFIERS or before in _SPACES:
            # 'const half (x)' and 'static half f()' name a type; 'constant half = 1' has none.
            return False
        return before in _FUNDAMENTAL or after != "(" or code.value(index) not in _FUNDAMENTAL
    if before == ">" and after not in ("(", "{"):
        return _statement_is_declaration(code, index)
    if before in ("*", "&", "&&"):
        return _statement_is_declaration(code, index)
    if before == "," and after in ("=", ";", ",", "["):
        return _follows_declarator(code, index - 1)
    return False


def _statement_is_declaration(code: Code, index: int) -> bool:
    """Whether the tokens before ``index``, back to the last boundary, can only be a type."""
    at = index - 1
    typed = False
    while at >= 0 and code.value(at) not in (";", "{", "}", "(", ","):
        value = code.value(at)
        if value == ">":
            depth = 1
            while depth and at > 0:
                at -= 1
                depth += {">": 1, "<": -1}.get(code.value(at), 0)
            typed = typed or code.value(at - 1) in ("vec", "array", "atomic", "matrix", "simdgroup_matrix")
        elif code.is_name(at):
            typed = typed or value in _FUNDAMENTAL or value in _SPACES or value in _QUALIFIERS
        elif value not in ("*", "&", "&&", "::", "]", "["):
            return False
        at -= 1
    return typed


def _follows_declarator(code: Code, comma: int) -> bool:
    """Whether the comma separates declarators of one statement: ``float a, half;``."""
    at = comma - 1
    while at >= 0 and code.value(at) not in (";", "{", "}", "("):
        at = code.match[at] - 1 if code.value(at) in (")", "]", "}") and at in code.match else at - 1
    start = at + 1
    return code.value(at) != "(" and code.value(start) in _FUNDAMENTAL and code.is_name(start + 1)


def _pointers(code: Code, file: str) -> list[LintFinding]:
    """Parameters of functions that are pointers or references to nowhere."""
    found = []
    for index, token in enumerate(code.tokens):
        if token.file != file or token.value != "(" or not code.is_name(index - 1):
            continue
        close = code.match[index]
        if not _is_definition(code, index, close):
            continue
        for start, end in _split(code, index + 1, close):
            values = [code.value(i) for i in range(start, end)]
            kind = "pointer" if "*" in values else "reference" if "&" in values else ""
            if not kind or _SPACES & set(values) or "(" in values or "[" in values[:1]:
                continue
            if "=" in values and values.index("=") < values.index("*" if kind == "pointer" else "&"):
                continue
            name = next((code.value(i) for i in range(end - 1, start - 1, -1) if code.is_name(i)), "?")
            found.append(
                LintFinding(
                    file,
                    code[start].line,
                    "pointer-space",
                    "error",
                    f"the {kind} '{name}' of '{code.value(index - 1)}' has no address space",
                    "write device, constant, threadgroup or thread before the type",
                )
            )
    return found


def _is_definition(code: Code, opening: int, close: int) -> bool:
    """Whether ``name(...)`` here is the head of a function with a body: a type before it, ``{`` after it."""
    after = close + 1
    while code.value(after) in ("const", "noexcept"):
        after += 1
    if code.value(after) == "[" and code.value(after + 1) == "[":
        after = code.match[after] + 1
    if code.value(after) != "{":
        return False
    before = code.value(opening - 2)
    return (code.is_name(opening - 2) and before not in _NOT_TYPES) or before in (">", "*", "&", "::")


def _split(code: Code, start: int, end: int) -> list[tuple[int, int]]:
    """The parameters in [start, end)."""
    parts, begin, index = [], start, start
    while index < end:
        value = code.value(index)
        if value == ",":
            parts.append((begin, index))
            begin = index + 1
            index += 1
        elif value in ("(", "[", "{"):
            index = code.match[index] + 1
        elif value == "<" and code.is_name(index - 1):
            index = code.skip_angles(index)
        else:
            index += 1
    return [*parts, (begin, end)] if begin < end else parts
