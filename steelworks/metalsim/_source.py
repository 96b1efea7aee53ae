"""What a Metal source contains: kernels with their parameters, instantiations, threadgroup variables.

Works on preprocessed source, by tokens: declarations are recognised by their shape, types are left to the
compiler (the entry functions deduce them). ``_emit`` turns the result into C++.
"""

from __future__ import annotations

from typing import Final

from ._found import Definition, Function, Kernel, Scan
from ._parameters import Attribute, attributes, parameters_of, parse_attributes, string_of
from ._tokens import Code, error

_REFUSED_NAMES: Final = {
    "double": "Metal has no double: use float",
    "virtual": "Metal has no virtual functions",
    "dynamic_cast": "Metal has no dynamic_cast",
    "typeid": "Metal has no typeid",
    "try": "Metal has no exceptions",
    "throw": "Metal has no exceptions",
    "new": "Metal has no dynamic memory",
    "goto": "Metal has no goto",
    "thread_local": "Metal has no thread_local",
    "asm": "Metal has no asm",
    "__asm__": "Metal has no asm",
}
_ADDRESS_SPACES: Final = frozenset({"device", "threadgroup", "thread", "constant"})
_QUALIFIERS: Final = frozenset({"const", "volatile", *_ADDRESS_SPACES})
#: What may stand before ``*`` and ``&`` of a declarator, besides a name and a closing bracket.
_AFTER_TYPE: Final = frozenset({">", "*", "&", "&&", ")", "]"})
#: Behind the parameters of a member function: a body, the end, a result type, ``= default``, initialisers.
_AFTER_MEMBER: Final = frozenset({"{", ";", "->", "=", ":", "&", "&&"})
_TEXTURES: Final = (
    "texture1d",
    "texture2d",
    "texture3d",
    "texturecube",
    "texture_buffer",
    "depth2d",
    "depthcube",
)


def scan(code: Code) -> Scan:
    """Finds kernels, instantiations and function bodies.

    Raises:
        MetalSyntaxError: for what is outside the subset, with file and line.
    """
    _refuse_names(code)
    _refuse_address_spaces_as_names(code)
    found = Scan()
    _scan_scope(code, 0, len(code), (), found, in_class=False)
    seen: dict[str, Kernel] = {}
    for kernel in found.kernels:
        if kernel.host_name in seen:
            first = seen[kernel.host_name]
            raise error(
                code[kernel.after - 1],
                f"two kernels are named '{kernel.host_name}': the other is at {first.file}:{first.line}",
            )
        seen[kernel.host_name] = kernel
    return found


def _refuse_names(code: Code) -> None:
    for index, token in enumerate(code.tokens):
        if token.kind != "name":
            continue
        reason = _REFUSED_NAMES.get(token.value)
        if reason is None and token.value == "long" and code.value(index + 1) == "long":
            reason = "Metal has no long long: long has 64 bits"
        if reason is None and token.value.startswith(_TEXTURES) and code.value(index + 1) == "<":
            reason = "textures are outside the supported subset: use a buffer"
        if reason is not None:
            raise error(token, reason)


def _refuse_address_spaces_as_names(code: Code) -> None:
    """They are keywords in Metal; here they are erased later, so that a variable would vanish silently."""
    skipped = {i for start, end in attributes(code, 0, len(code)) for i in range(start, end)}
    for index, token in enumerate(code.tokens):
        if token.kind != "name" or index in skipped:
            continue
        if token.value in _ADDRESS_SPACES and not _qualifies(code, index):
            raise error(token, f"'{token.value}' is an address space: it can't be used as a name")
        if token.value == "kernel" and not code.is_name(index + 1) and code.value(index + 1) != "[":
            raise error(token, "'kernel' begins a kernel function: it can't be used as a name")


def _qualifies(code: Code, index: int) -> bool:
    """Whether the address-space word at ``index`` stands where a type or a member function is qualified."""
    previous, following = code.value(index - 1), code.value(index + 1)
    if previous in (".", "->", "struct", "class", "enum", "union", "typename"):
        return False
    if code.is_name(index + 1) or following in (">", "::", "..."):
        return True
    if following == "[" and code.value(index + 2) == "[":
        return True
    before = index - 1
    while code.value(before) in _QUALIFIERS or code.value(before) in ("noexcept", "&", "&&"):
        before -= 1
    if code.value(before) == ")" and following in _AFTER_MEMBER:
        return True
    after_type = previous in _AFTER_TYPE or (code.is_name(index - 1) and previous not in ("return", "case"))
    if following == "(":
        return after_type and code.value(index + 2) in ("*", "&")
    return following in ("*", "&", "&&") and after_type


def _scan_scope(
    code: Code, start: int, end: int, scope: tuple[str, ...], found: Scan, in_class: bool
) -> None:
    """Goes through the declarations of a namespace or class."""
    index = start
    begin = start
    while index < end:
        value = code.value(index)
        if value in ("(", "["):
            index = code.match[index] + 1
        elif value == ";":
            if not in_class:
                _declaration(code, begin, index, scope, found)
            index += 1
            begin = index
        elif value == "{":
            close = code.match[index]
            kind, name = _kind_of_block(code, begin, index)
            if kind == "namespace":
                inner = scope + tuple(n for n in name.split("::") if n)
                _scan_scope(code, index + 1, close, inner, found, in_class=False)
                begin = close + 1
            elif kind == "class":
                found.classes.append(Function(begin, index, close, scope))
                _scan_scope(code, index + 1, close, (*scope, f"{name}@{index}"), found, in_class=True)
            elif kind == "function":
                found.functions.append(Function(begin, index, close, scope))
                if not in_class:
                    _function(code, begin, index, scope, found)
                begin = close + 1
            index = close + 1
        elif in_class and value in ("public", "private", "protected") and code.value(index + 1) == ":":
            index += 2
            begin = index
        else:
            index += 1
    if begin < end and not in_class and any(code[i].kind == "name" for i in range(begin, end)):
        _declaration(code, begin, end, scope, found)


def _kind_of_block(code: Code, begin: int, brace: int) -> tuple[str, str]:
    """What the ``{`` after the tokens of [begin, brace) opens: namespace, class, function or initializer."""
    index = begin
    if code.value(index) == "template" and code.value(index + 1) == "<":
        index = code.skip_angles(index + 1)
    if code.value(index) == "inline" and code.value(index + 1) == "namespace":
        return "namespace", ""
    if code.value(index) == "namespace":
        return "namespace", "".join(code.value(i) for i in range(index + 1, brace) if code.value(i) != "[")
    if code.value(index) == "extern" and code[index + 1].kind == "string":
        return "namespace", ""
    keyword, parameters, assigned = -1, False, False
    while index < brace:
        value = code.value(index)
        if value in ("struct", "class", "union", "enum"):
            keyword = keyword if keyword >= 0 else index
        elif value == "operator":
            parameters = True
            break
        elif value == "(":
            previous = code.value(index - 1)
            if previous not in ("alignas", "__attribute__", "decltype", "__declspec", "noexcept"):
                parameters = True
                break
            index = code.match[index]
        elif value == "[":
            index = code.match[index]
        elif value == "=":
            assigned = True
            break
        elif value == "<" and code.is_name(index - 1):
            index = code.skip_angles(index) - 1
        index += 1
    if parameters:
        return "function", ""
    if keyword >= 0 and not assigned:
        names = [i for i in range(keyword + 1, brace) if code.is_name(i)]
        name = code.value(names[0]) if names else ""
        return ("class" if code.value(keyword) != "enum" else "initializer"), name
    return "initializer", ""


def _is_kernel(code: Code, start: int, end: int, parsed: list[Attribute]) -> bool:
    if any(a.name == "kernel" for a in parsed):
        return True
    index = start
    while index < end:
        if code.value(index) in ("(", "{"):
            index = code.match[index]
        elif code.value(index) == "kernel":
            return True
        index += 1
    return False


def _prefix(code: Code, start: int) -> tuple[int, bool]:
    """Skips ``template <...>``; says whether it has parameters."""
    index, template = start, False
    while code.value(index) == "template" and code.value(index + 1) == "<":
        after = code.skip_angles(index + 1)
        template = template or after > index + 3
        index = after
    return index, template


def _parameter_list(code: Code, start: int, end: int) -> int:
    """The index of the ``(`` that opens the parameters of the function in [start, end); -1 if none."""
    index = start
    while index < end:
        value = code.value(index)
        if value == "(":
            if code.value(index - 1) in ("decltype", "alignas", "__attribute__", "noexcept"):
                index = code.match[index] + 1
                continue
            return index
        if value == "[":
            index = code.match[index] + 1
        elif value == "<" and code.is_name(index - 1) and code.value(index - 1) != "operator":
            index = code.skip_angles(index)
        elif value == "=":
            return -1
        else:
            index += 1
    return -1


def _name_before(code: Code, start: int, end: int) -> int:
    """Where the (qualified, maybe templated) name that ends before ``end`` begins."""
    index = start
    best = end
    while index < end:
        if code.value(index) == "void":
            index += 1
        elif code.is_name(index) or code.value(index) == "::":
            at = index
            index += 1
            if code.value(at) == "::":
                index += 1
            while index < end:
                if code.value(index) == "<":
                    index = code.skip_angles(index)
                elif code.value(index) == "::":
                    index += 1
                    if code.value(index) == "template":
                        index += 1
                    if code.is_name(index):
                        index += 1
                elif code.is_name(index) and code.value(index - 1) == "::":
                    index += 1
                elif code.value(index) == "(" and code.value(index - 1) in (
                    "decltype",
                    "alignas",
                    "__attribute__",
                ):
                    index = code.match[index] + 1
                else:
                    break
            best = at
            if index >= end:
                return best
        elif code.value(index) in ("[", "("):
            index = code.match[index] + 1
        else:
            index += 1
    return best


def _function(code: Code, begin: int, brace: int, scope: tuple[str, ...], found: Scan) -> None:
    """A function definition at namespace scope: remembers it if it is a kernel."""
    start, template = _prefix(code, begin)
    opening = _parameter_list(code, start, brace)
    if opening < 0:
        return
    heads = parse_attributes(code, attributes(code, start, opening))
    if not _is_kernel(code, start, opening, heads):
        return
    heads += parse_attributes(code, attributes(code, code.match[opening], brace))
    at = _name_before(code, start, opening)
    name = code.value(at)
    if code.value(at + 1) == "<":
        name = code.text(at, opening)
        template = False
    parameters = parameters_of(code, opening)
    limits = [a for a in heads if a.name == "max_total_threads_per_threadgroup"]
    limit = code.text(*limits[-1].argument) if limits else ""
    if limit.isdigit() and not 1 <= int(limit) <= 1024:
        raise error(code[limits[-1].at], f"max_total_threads_per_threadgroup must be 1 to 1024, not {limit}")
    body = (brace, code.match[brace])
    token = code[at]
    definition = Definition(name, scope, template, parameters, limit, body, token.file, token.line)
    found.definitions.append(definition)
    if not template:
        names = [a for a in heads if a.name == "host_name"]
        host_name = string_of(code, names[0]) if names else "::".join((*scope, name))
        found.kernels.append(
            Kernel(host_name, _qualified(scope, name), definition, body[1] + 1, token.file, token.line)
        )


def _declaration(code: Code, begin: int, semicolon: int, scope: tuple[str, ...], found: Scan) -> None:
    """A declaration at namespace scope: an explicit instantiation of a kernel is remembered."""
    ranges = attributes(code, begin, semicolon, outside=True)
    parsed = parse_attributes(code, ranges)
    if code.value(begin) != "template" or code.value(begin + 1) == "<":
        if not _is_kernel(code, begin, semicolon, parsed):
            _refuse_program_scope(code, begin, semicolon)
        return
    names = [a for a in parsed if a.name == "host_name"]
    if not _is_kernel(code, begin, semicolon, parsed) and not names:
        return
    opening = _parameter_list(code, begin + 1, semicolon)
    last = opening if opening >= 0 else semicolon
    for start, end in ranges:
        if end == last:
            last = start
    at = _name_before(code, begin + 1, last)
    name, arguments = _last_name(code, at, last)
    definition = _lookup(code, name, [code.value(i) for i in range(at, last)], scope, found)
    if definition is None:
        raise error(
            code[at],
            f"'{name}' is instantiated as a kernel, but no kernel template of this name is defined above",
        )
    host_name = string_of(code, names[0]) if names else (name + arguments).replace(" ", "")
    token = code[at]
    function = _qualified(definition.scope, name + arguments)
    found.kernels.append(Kernel(host_name, function, definition, semicolon + 1, token.file, token.line))


def _qualified(scope: tuple[str, ...], name: str) -> str:
    """Found from everywhere, also when a using directive brings in another of that name."""
    return "".join(f"::{part}" for part in (*scope, name))


def _last_name(code: Code, start: int, end: int) -> tuple[str, str]:
    """The unqualified name and its template arguments."""
    name, arguments, index = "", "", start
    while index < end:
        if code.value(index) == "<":
            after = code.skip_angles(index)
            arguments = code.text(index, after)
            index = after
            continue
        if code.is_name(index):
            name, arguments = code.value(index), ""
        index += 1
    return name, arguments


def _lookup(
    code: Code, name: str, given: list[str], scope: tuple[str, ...], found: Scan
) -> Definition | None:
    """The kernel template that an instantiation means: the one whose scope agrees best."""
    qualifiers = []
    for i, value in enumerate(given):
        if value == name:
            break
        if value != "::" and i + 1 < len(given) and given[i + 1] == "::":
            qualifiers.append(value)
    named = [d for d in found.definitions if d.name == name and d.template]
    for definition in named:
        if tuple(qualifiers) and definition.scope[-len(qualifiers) :] == tuple(qualifiers):
            return definition
        if not qualifiers and definition.scope == scope:
            return definition
    return named[0] if named else None


def _refuse_program_scope(code: Code, begin: int, semicolon: int) -> None:
    for index in range(begin, semicolon):
        if code.value(index) in ("(", "{", "using", "typedef"):
            return
        if code.value(index) == "threadgroup" and "*" not in [code.value(i) for i in range(index, semicolon)]:
            raise error(code[index], "a threadgroup variable must be declared inside a kernel")
