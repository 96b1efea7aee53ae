"""Rewrites scanned Metal source into C++ that clang compiles, line by line in place.

* address spaces go: ``constant`` becomes ``const``, the others vanish (or, typed, become clang's attributes)
* ``[[...]]`` goes
* floating-point literals become float, ``h`` and ``bf`` suffixes conversions
* a threadgroup variable becomes a reference to group memory
* after each kernel, and each instantiation of one, comes its entry function
"""

from __future__ import annotations

import re
from typing import Final

from ._found import Function, Kernel, Scan, Variable
from ._parameters import attributes
from ._tokens import Code, error, is_float_literal

#: ``constant`` behind the parameters of a constructor.
_OF_CONSTRUCTOR: Final = "constant "
_ERASED: Final = {"device": "", "threadgroup": "", "thread": "", "constant": "const", _OF_CONSTRUCTOR: ""}
#: For lints: clang checks these as Metal's compiler checks address spaces, and still compiles for the CPU.
_TYPED: Final = {
    "device": "__attribute__((opencl_global))",
    "threadgroup": "__attribute__((opencl_local))",
    "thread": "",
    "constant": "__attribute__((opencl_constant)) const",
}
_SUFFIX: Final = re.compile(r"^(.*?)(bf|BF|[hHfF])?$")
#: The constant, in a kernel, that holds its max_total_threads_per_threadgroup.
LIMIT: Final = "ms_limit"
_QUALIFIERS: Final = frozenset({"static", "const", "volatile", "constexpr"})
#: A statement that begins with one of these declares no variable.
_NO_DECLARATION: Final = frozenset(
    {"return", "case", "else", "using", "typedef", "goto", "delete", "do", "template"}
)


def emit(code: Code, scan: Scan, *, typed: bool = False) -> str:
    """The C++ source; fills ``variables`` of the kernels' definitions.

    Args:
        code: The tokens; their text is changed.
        scan: What was found in them.
        typed: Keep address spaces as types, for lints; the result is not meant to run.

    Raises:
        MetalSyntaxError: for a threadgroup variable of a form outside the subset.
    """
    for start, end in attributes(code, 0, len(code)):
        for index in range(start, end):
            code[index].blank()
    _literals(code)
    _casts(code)
    if not typed:
        _constructors(code, scan)
        _merge(code, scan.functions, "function")
        _merge(code, scan.classes, "class")
        _group_variables(code, scan)
    _spaces(code, _TYPED if typed else _ERASED)
    _kernel_words(code, scan)
    if not typed:
        _limits(code, scan)
        entries: dict[int, list[str]] = {}
        for number, kernel in enumerate(scan.kernels):
            entries.setdefault(kernel.after - 1, []).append(entry(number, kernel))
        for index, texts in entries.items():
            code[index].text += "".join(texts)
    return code.render()


def _limits(code: Code, scan: Scan) -> None:
    """A limit may depend on template parameters: each instance gets a constant that can be looked up."""
    for definition in scan.definitions:
        if definition.limit:
            constant = f"static const unsigned {LIMIT} [[gnu::used]] = ({definition.limit});"
            code[definition.body[0]].text += f" {constant}"


def entry_symbol(number: int) -> str:
    """The name of the entry function of the kernel with this number."""
    return f"ms_entry_{number}"


def entry(number: int, kernel: Kernel) -> str:
    """The entry function of a kernel, and what the launcher wants to know of it, in one line."""
    roles = []
    for parameter in kernel.definition.parameters:
        roles.append(
            f"int({parameter.index_text})" if parameter.role == "buffer" else f"::ms::role_{parameter.role}"
        )
    listed = ", ".join(roles)
    return (
        f' extern "C" {{ void {entry_symbol(number)}(void* const* ms_b, const ms_thread* ms_t) {{ '
        f"::ms::launch(::ms::roles<{listed}>{{}}, &{kernel.function}, ms_b, ms_t); }} "
        f"extern const int ms_roles_{number}[]; "
        f"const int ms_roles_{number}[] = {{{listed + ', ' if listed else ''}-1}}; "
        f"const void* ms_function_{number}() "
        f"{{ return reinterpret_cast<const void*>(&{kernel.function}); }} }}"
    )


def _literals(code: Code) -> None:
    for token in code.tokens:
        if token.kind != "number" or not is_float_literal(token.value):
            continue
        split = _SUFFIX.match(token.value)
        body, suffix = (split[1], split[2]) if split is not None else (token.value, None)
        if body[:2] in ("0x", "0X") and "p" not in body.lower():
            continue
        if body[-1:] in ("l", "L"):
            raise error(token, f"'{token.value}': Metal has no long double")
        if suffix is None:
            token.text = token.value + "f"
        elif suffix in "hH":
            token.text = f"half({body}f)"
        elif suffix in ("bf", "BF"):
            token.text = f"bfloat({body}f)"


def _casts(code: Code) -> None:
    """Casts between half and bfloat, which clang refuses, go through float; a template may have any."""
    for index, token in enumerate(code.tokens):
        if token.kind != "name":
            continue
        if token.value == "static_cast" and code.value(index + 1) == "<":
            after = code.skip_angles(index + 1)
            if all(code.is_name(i) or code.value(i) == "::" for i in range(index + 2, after - 1)):
                token.text = "::ms::cast"
        elif token.value in ("half", "bfloat") and code.value(index + 1) == "(":
            close = code.match[index + 1]
            declarator = code.value(index + 2) in ("*", "&") and code.value(close + 1) in ("(", "[")
            if close > index + 2 and not declarator and code.value(index - 1) != "operator":
                token.text = f"::ms::cast<{token.value}>"


def _spaces(code: Code, words: dict[str, str]) -> None:
    for token in code.tokens:
        if token.kind == "name" and token.text == token.value and token.value in words:
            token.text = words[token.value].ljust(len(token.value))


def _kernel_words(code: Code, scan: Scan) -> None:
    """``kernel`` becomes ``inline`` in a definition, so that its statics are visible; elsewhere it goes."""
    bodies = {d.body[0] for d in scan.definitions}
    for token in code.tokens:
        if token.kind == "name" and token.value == "kernel":
            token.blank()
    for brace in bodies:
        start = brace
        while start > 0 and code.value(start - 1) not in (";", "{", "}"):
            start -= 1
            if start in code.match and code.value(start) in (")", "]", "}"):
                start = code.match[start]
        while start < brace and code.value(start) == "template":
            start = code.skip_angles(start + 1)
        for index in range(start, brace):
            if code.value(index) == "(":
                break
            if code.value(index) in ("static", "inline"):
                code[index].blank()
        code[start].text = "inline " + code[start].text


def _constructors(code: Code, scan: Scan) -> None:
    """A constructor can't be const in C++, so that there even ``constant`` vanishes."""
    for function in scan.functions:
        name = function.scope[-1].partition("@")[0] if function.scope and "@" in function.scope[-1] else ""
        for index in range(function.start, function.opening if name else function.start):
            if code.value(index) == "(" and code.value(index - 1) == name:
                after = code.match[index] + 1
                if code.value(after) == "constant":
                    code[after].value = code[after].text = _OF_CONSTRUCTOR
                break


def _merge(code: Code, definitions: list[Function], kind: str) -> None:
    """Of overloads or specialisations that differ in address spaces only, the first stands for all."""
    seen: dict[tuple[tuple[str, ...], str], Function] = {}
    for function in definitions:
        head = _without_spaces(code, function.start, function.opening)
        first = seen.setdefault((function.scope, head), function)
        if first is function or _written(code, first.start, first.opening) == _written(
            code, function.start, function.opening
        ):
            continue
        body = _without_spaces(code, function.opening, function.closing + 1)
        if body != _without_spaces(code, first.opening, first.closing + 1):
            other = code[first.opening]
            raise error(
                code[function.start],
                f"this {kind} differs from the one at {other.file}:{other.line} in address spaces only, "
                "but has another body; that is outside the subset",
            )
        end = function.closing + (2 if code.value(function.closing + 1) == ";" else 1)
        for index in range(function.start, end):
            code[index].text = ""


def _written(code: Code, start: int, end: int) -> list[str]:
    return [t.value for t in code.tokens[start:end]]


def _without_spaces(code: Code, start: int, end: int) -> str:
    words: list[str] = []
    for token in code.tokens[start:end]:
        word = _ERASED.get(token.value, token.value) if token.kind == "name" else token.value
        if word and not (word == "const" and words[-1:] == ["const"]) and token.text.strip():
            words.append(word)
    return " ".join(words)


def _group_variables(code: Code, scan: Scan) -> None:
    in_function = [False] * (len(code) + 1)
    for function in scan.functions:
        for index in range(function.opening, function.closing):
            in_function[index] = True
    count = 0
    for index, token in enumerate(code.tokens):
        if token.value != "threadgroup" or token.kind != "name":
            continue
        alias = code.value(index - 1) == "typedef" or (
            code.value(index - 1) == "=" and code.value(index - 3) == "using"
        )
        if alias and not {"*", "&"} & {code.value(i) for i in range(index, _statement_end(code, index))}:
            raise error(
                token,
                "a type that is itself in threadgroup memory is outside the subset: name it at each use",
            )
        start = _statement_start(code, index) if in_function[index] else None
        if start is None or code.value(start) in _NO_DECLARATION:
            continue
        variables = _declaration(code, start, index, count)
        count += len(variables)
        for definition in scan.definitions:
            if definition.body[0] < index < definition.body[1]:
                definition.variables.extend(variables)


def _statement_start(code: Code, index: int) -> int | None:
    """Where the statement begins in which ``index`` is a declaration specifier; None if it is none."""
    at = index - 1
    while at >= 0:
        value = code.value(at)
        if value in (";", "{", "}", ":", "else", "do"):
            return at + 1
        if value == ")":
            before = code.value(code.match[at] - 1)
            if before != "alignas":
                return at + 1 if before in ("if", "for", "while", "switch", "constexpr") else None
            at = code.match[at] - 2
        elif value == "]":
            if code[at].text.strip():
                return None
            at = code.match[at] - 1  # an attribute, blanked already
        elif value == ">":
            depth = 1
            while depth and at > 0:
                at -= 1
                depth += {">": 1, "<": -1}.get(code.value(at), 0)
            at -= 1
        elif code.is_name(at) or value == "::":
            at -= 1
        else:
            return None
    return 0


def _statement_end(code: Code, index: int) -> int:
    while index < len(code) and code.value(index) not in (";", "}"):
        index = code.match[index] + 1 if code.value(index) in ("(", "[", "{") else index + 1
    return index


def _declaration(code: Code, start: int, at: int, count: int) -> list[Variable]:
    """Rewrites the declaration from ``start`` with ``threadgroup`` at ``at``, if it declares variables."""
    end = _statement_end(code, at)
    if code.value(end) != ";":
        raise error(code[at], "a threadgroup declaration that does not end in ';'")
    specifiers: list[str] = []
    alignment = ""
    index = start
    while index < end:
        value = code.value(index)
        if value == "alignas":
            close = code.match[index + 1]
            alignment = code.text(index + 2, close)
            index = close + 1
            continue
        if value in ("threadgroup", "static") or not code[index].text.strip():
            index += 1
            continue
        if value in ("*", "&", "&&", "("):
            return []  # a pointer or reference: only the qualifier goes
        if value in ("struct", "union", "class", "enum"):
            specifiers.append(value)
            index += 1
            while (
                code.is_name(index)
                and code.value(index + 1) not in ("[", ";", ",", "=")
                and code.value(index) != "{"
            ):
                specifiers.append(code.value(index))
                index += 1
            if code.value(index) == "{":
                specifiers.append(_render(code, index, code.match[index] + 1))
                index = code.match[index] + 1
            continue
        if value == "decltype":
            close = code.match[index + 1]
            specifiers.append(_render(code, index, close + 1))
            index = close + 1
            continue
        if code.is_name(index) and code.value(index + 1) in ("[", ";", ",", "=", "{") and specifiers:
            break
        if code.is_name(index) and code.value(index + 1) == "<":
            after = code.skip_angles(index + 1)
            specifiers.append(_render(code, index, after))
            index = after
            continue
        if code.is_name(index) or value == "::":
            specifiers.append(value)
            index += 1
            continue
        raise error(code[index], "a threadgroup declaration of a form outside the subset")
    if index >= end or not [s for s in specifiers if s not in _QUALIFIERS]:
        raise error(code[at], "a threadgroup declaration of a form outside the subset")
    kind = " ".join(_SPACE_NAMES.get(s, s) for s in specifiers)
    variables: list[Variable] = []
    parts: list[str] = []
    declared: list[str] = []
    while index < end:
        if not code.is_name(index):
            raise error(code[index], "declare threadgroup pointers and variables in separate declarations")
        name = code.value(index)
        dimensions = index + 1
        while code.value(dimensions) == "[":
            dimensions = code.match[dimensions] + 1
        if [code.value(dimensions + i) for i in range(4)] in (["=", "{", "0", "}"], ["=", "{", "}", ";"]):
            # Metal's compiler accepts this and gives no value: nor do we.
            for i in range(dimensions, code.match[dimensions + 1] + 1):
                code[i].text = ""
            after = code.match[dimensions + 1] + 1
        else:
            after = dimensions
        if code.value(after) not in (",", ";"):
            raise error(code[index], f"threadgroup variable '{name}' can't have an initializer")
        tag = f"{count + len(variables)}_{name}"
        variables.append(Variable(name, tag))
        declared.append(f"ms_type_{tag}{_render(code, index + 1, dimensions)}")
        aligned = f"({alignment})" if alignment else f"::ms::alignment<ms_type_{tag}>::value"
        parts.append(
            f"static const unsigned ms_size_{tag} [[gnu::used]] = sizeof(ms_type_{tag}); "
            f"ms_type_{tag}& {name} = "
            f'::ms::group_variable<ms_type_{tag}>(ms_size_{tag}, "{name}", {aligned});'
        )
        index = after + 1
    for i in range(start, end + 1):
        code[i].text = ""
    code[start].text = f"typedef {kind} {', '.join(declared)}; " + " ".join(parts)
    return variables


_SPACE_NAMES: Final = {"device": "", "thread": "", "constant": "const"}


def _render(code: Code, start: int, end: int) -> str:
    return " ".join(
        _SPACE_NAMES.get(t.value, t.text) if t.kind == "name" else t.text for t in code.tokens[start:end]
    )
