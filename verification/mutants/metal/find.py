"""Finds what can be broken in a Metal header: every barrier and every bounds guard, by rules over tokens.

The rules, in full:

* ``barrier-removed``, ``barrier-weakened``: each ``threadgroup_barrier(...)`` and ``simdgroup_barrier(...)`` goes,
  or its memory flags become ``mem_none``.
* A *guard* is the condition of an ``if``, ``?:``, ``for`` or ``while``, the value of a bool, or what a predicate of
  an index header returns. Its *atoms* are the comparisons in it, and calls of functions of an index header. Atoms
  whose words are all compile-time constants (``BM``, ``kSteps``, literals) choose a variant and are left alone; so
  are bare flags.
* A guard counts if it stands in an index header, or in a function that touches memory (has a
  subscript, a ``*reinterpret_cast``, or a pointer to device or threadgroup memory). A ``?:`` outside of index
  headers counts only if a branch has a subscript, calls an index function or is -1, or if it makes an integer.
* ``guard-removed``: one atom is replaced by what lets the access through. That is ``true``, unless the guard is of
  the leaving kind, which jumps away or takes a constant (``if (row >= ROWS) break;``, ``first >= size ? 0 : ...``);
  then it is ``false``. A loop's only atom is not removed: the loop would never end.
* ``guard-widened``: one atom lets one more through (``<`` becomes ``<=``, of the leaving kind ``>=`` becomes ``>``;
  otherwise the bound moves by one). A comparison with 0 from below is not widened; its removal says more.
* ``clamp-first``, ``clamp-second``: a ``?:``, ``min`` or ``max`` that makes an integer out of two others is
  replaced by one of them.

Relational operators have blanks on both sides and angle brackets of templates have not: the headers are formatted
so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_TOKEN: Final = re.compile(
    r"(?P<space>\s+|//[^\n]*|/\*.*?\*/)"
    r"|(?P<line>^[ \t]*\#(?:[^\n]*\\\n)*[^\n]*)"
    r"|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<number>\.?\d(?:[\w.]|(?<=[eE])[+-])*)"
    r"|(?P<text>\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*')"
    r"|(?P<mark><<=|>>=|\.\.\.|->|::|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|\S)",
    re.MULTILINE | re.DOTALL,
)
_BARRIERS: Final = ("threadgroup_barrier", "simdgroup_barrier")
_RELATIONS: Final = ("<", "<=", ">", ">=", "==", "!=")
_JUMPS: Final = ("return", "break", "continue")
_NOT_FUNCTIONS: Final = ("if", "for", "while", "switch", "return", "sizeof", "static_assert", "alignof")
_TYPES: Final = (
    "int", "long", "short", "char", "bool", "float", "half", "uint", "ulong", "ushort", "uchar", "true", "false",
)  # fmt: skip
_OPEN: Final = {"(": ")", "[": "]", "{": "}"}
_CLOSE: Final = {v: k for k, v in _OPEN.items()}
_ASSIGNMENTS: Final = ("=", "+=", "-=", "*=", "/=", "%=")
#: How a relation lets one more through by its strictness alone, where the guard lets in or (leaving) keeps out.
_LOOSER: Final = {False: {"<": "<=", ">": ">="}, True: {"<=": "<", ">=": ">"}}
#: Otherwise by how much the right side moves.
_MOVED: Final = {False: {"<=": "+ 1", ">=": "- 1"}, True: {"<": "- 1", ">": "+ 1"}}
_MIRRORED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True)
class Mutant:
    """One change of one header.

    Attributes:
        file: The header, relative to the directory of the kernels.
        function: The function that contains the place, with its class.
        kind: What was done; see the module.
        ordinal: Among the mutants of this kind in this function, from 1.
        line: Of the place.
        start: Where the change begins, in characters.
        end: Where it ends.
        text: What stands there, blanks evened out.
        replacement: What is put there instead.
        guard: The whole condition.
    """

    file: str
    function: str
    kind: str
    ordinal: int
    line: int
    start: int
    end: int
    text: str
    replacement: str
    guard: str = ""

    @property
    def id(self) -> str:
        """Stays the same while the function's other guards do."""
        return f"{self.file}:{self.function}:{self.kind}:{self.ordinal}"

    def applied(self, source: str) -> str:
        """The header with the change."""
        return source[: self.start] + self.replacement + source[self.end :]


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Function:
    """A function: where it is, and the words in it (those it calls are among them).

    Attributes:
        name: With its class, as ``TileLoader.edge``.
        is_kernel: It can be launched.
        words: All identifiers of its body.
        first: Its first token after ``{``.
        last: Its ``}``.
        signature: Where its parameters begin.
    """

    name: str
    is_kernel: bool
    words: frozenset[str]
    first: int
    last: int
    signature: int


@dataclass
class Header:
    """A header in tokens.

    Attributes:
        file: Relative to the directory of the kernels.
        source: Its text.
        functions: In order.
    """

    file: str
    source: str
    functions: list[Function] = field(default_factory=list)
    _tokens: list[_Token] = field(default_factory=list, repr=False)
    _match: dict[int, int] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, root: Path, file: str) -> Header:
        """Reads ``root/file``."""
        return cls.parse(file, (root / file).read_text(encoding="utf-8"))

    @classmethod
    def parse(cls, file: str, source: str) -> Header:
        """Takes a text apart."""
        header = cls(file, source)
        for found in _TOKEN.finditer(source):
            kind = found.lastgroup or ""
            if kind not in ("space", "line"):
                header._tokens.append(_Token(kind, found.group(), found.start(), found.end()))
        open_at: list[int] = []
        for i, token in enumerate(header._tokens):
            if token.kind != "mark":
                continue
            if token.text in _OPEN:
                open_at.append(i)
            elif token.text in _CLOSE:
                begin = open_at.pop()
                header._match[begin], header._match[i] = i, begin
        header.functions = list(header._find_functions())
        return header

    @property
    def is_index(self) -> bool:
        """Holds address computations: C functions, which are ``static inline``, and nothing of Metal."""
        words = {token.text for token in self._tokens}
        return {"static", "inline"} <= words and not words & {"METAL_FUNC", "kernel", "namespace", "template"}

    def _text(self, i: int) -> str:
        return self._tokens[i].text if 0 <= i < len(self._tokens) else ""

    def _find_functions(self) -> Iterator[Function]:
        classes: list[tuple[str, int]] = []
        i = 0
        while i < len(self._tokens):
            text = self._text(i)
            while classes and i > classes[-1][1]:
                classes.pop()
            if text in ("struct", "class") and self._tokens[i + 1].kind == "word":
                body = next(
                    (j for j in range(i, len(self._tokens)) if self._text(j) in ("{", ";", ")", ">")), i
                )
                j = body
                while self._text(j) not in ("{", ";", ")"):
                    j += 1
                if self._text(j) == "{":
                    classes.append((self._text(i + 1), self._match[j]))
                    i = j
            elif text == "(" and i and (found := self._function_at(i, classes[-1][0] if classes else "")):
                yield found
                i = found.last
            i += 1

    def _function_at(self, opening: int, owner: str) -> Function | None:
        """The function whose parameters begin here, if a body follows them."""
        name = self._text(opening - 1)
        if name == ")" and self._text(opening - 2) == "(":
            name = "operator()"
        elif self._tokens[opening - 1].kind != "word" or name in _NOT_FUNCTIONS:
            return None
        body = self._match[opening] + 1
        while self._text(body) in ("const", "thread"):
            body += 1
        if self._text(body) == ":" and name == owner:  # a constructor's initialisers
            while self._text(body) != "{":
                body = self._match[body] + 1 if self._text(body) in _OPEN else body + 1
        if self._text(body) != "{":
            return None
        last = self._match[body]
        start = opening
        while (start and self._text(start) not in (";", "}", "{", ":")) or self._text(start - 1) == ":":
            start -= 1
        is_kernel = any(self._text(j) == "kernel" for j in range(start, opening))
        inside = range(body + 1, last)
        words = frozenset(self._text(j) for j in inside if self._tokens[j].kind == "word")
        qualified = f"{owner}.{name}" if owner else name
        return Function(qualified, is_kernel, words, body + 1, last, opening)


class _Finder:
    """Goes through one header."""

    def __init__(self, header: Header, index_functions: frozenset[str]) -> None:
        self.header = header
        self.tokens = header._tokens
        self.match = header._match
        self.index_functions = index_functions
        self.found: list[Mutant] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        texts = [t.text for t in self.tokens]
        self.bools = {
            texts[i + 1] for i in range(len(texts) - 1) if texts[i] == "bool" and texts[i - 1] not in "<,"
        }
        self.integers = {
            texts[i + 1]
            for i in range(len(texts) - 1)
            if texts[i] in ("int", "long") and texts[i + 1].isidentifier()
        }

    def run(self) -> list[Mutant]:
        for function in self.header.functions:
            self.function = function
            words = self._words(function.signature, function.last)
            pointers = "device" in words or "threadgroup" in words
            self.guards = (
                self.header.is_index or pointers or self._touches_memory(function.first, function.last)
            )
            self._walk(function)
        return self.found

    def _text(self, i: int) -> str:
        return self.tokens[i].text

    def _words(self, first: int, last: int) -> list[str]:
        return [self._text(i) for i in range(first, last)]

    def _touches_memory(self, first: int, last: int) -> bool:
        """A subscript, or a packet read or written through a pointer."""
        return any(
            self._text(i) == "[" or (self._text(i) == "*" and self._text(i + 1) == "reinterpret_cast")
            for i in range(first, last)
        )

    def _calls_index(self, first: int, last: int) -> bool:
        return any(
            self._text(i) in self.index_functions and i + 1 < last and self._text(i + 1) == "("
            for i in range(first, last)
        )

    def _add(self, kind: str, first: int, last: int, replacement: str, guard: tuple[int, int]) -> None:
        """Tokens [first, last) become ``replacement``."""
        start, end = self.tokens[first].start, self.tokens[last - 1].end
        source = self.header.source
        self.counts[self.function.name, kind] += 1
        self.found.append(
            Mutant(
                self.header.file,
                self.function.name,
                kind,
                self.counts[self.function.name, kind],
                source.count("\n", 0, start) + 1,
                start,
                end,
                " ".join(source[start:end].split()),
                replacement,
                " ".join(source[self.tokens[guard[0]].start : self.tokens[guard[1] - 1].end].split()),
            )
        )

    def _walk(self, function: Function) -> None:
        for i in range(function.first, function.last):
            text = self._text(i)
            following = self._text(i + 1)
            if text in _BARRIERS and following == "(":
                end = self.match[i + 1] + 1
                self._add("barrier-removed", i, end, "((void)0)", (i, end))
                self._add("barrier-weakened", i + 2, end - 1, "mem_flags::mem_none", (i, end))
            elif not self.guards:
                continue
            elif text in ("if", "while") and following == "(":
                self._if_or_while(text, i + 1)
            elif text == "for" and following == "(":
                self._for(i + 1)
            elif text == "?":
                self._ternary(i)
            elif text in ("min", "max") and following == "(" and self._text(i - 1) not in (".", "::"):
                self._clamp_call(i)
            elif (text == "=" and self._text(i - 1) in self.bools) or (
                text == "return" and self.header.is_index
            ):
                end = self._end_of_expression(i + 1)
                if "?" not in self._words(i + 1, end):
                    self._atoms("guard", i + 1, end, leaving=False, guard=(i + 1, end))

    # --- the kinds of guard

    def _if_or_while(self, word: str, opening: int) -> None:
        first, last = opening + 1, self.match[opening]
        if word == "while":
            self._atoms("loop", first, last, leaving=False, guard=(first, last))
            return
        body = last + 1
        if self._text(body) == "{":
            body_end = self.match[body]
        else:
            body_end = self._end_of_statement(body)
        leaving = not self._does_something(body, body_end)
        self._atoms("guard", first, last, leaving=leaving, guard=(first, last))

    def _does_something(self, first: int, last: int) -> bool:
        """Whether a branch touches memory or calls a function; jumps and constants do not."""
        if self._touches_memory(first, last):
            return True
        return any(
            self._text(i + 1) == "("
            and (
                (
                    self.tokens[i].kind == "word"
                    and self._text(i) not in (*_NOT_FUNCTIONS, *_TYPES)
                    and not self._constant(i, i + 1)
                )
                or (self._text(i) == ">" and self.tokens[i].end == self.tokens[i + 1].start)  # f<T>(...)
            )
            for i in range(first, last)
        )

    def _for(self, opening: int) -> None:
        closing = self.match[opening]
        first_semicolon = self._find(";", opening + 1, closing)
        second = self._find(";", first_semicolon + 1, closing)
        equals = self._find("=", opening + 1, first_semicolon)
        starts_constant = self._constant(equals + 1, first_semicolon)
        variable = self._text(equals - 1)
        ignored = frozenset((variable,)) if starts_constant else frozenset[str]()
        condition = (first_semicolon + 1, second)
        count = self._words(*condition).count("&&") + 1
        self._atoms(
            "loop" if count == 1 else "guard", *condition, leaving=False, guard=condition, ignored=ignored
        )

    def _find(self, mark: str, first: int, last: int) -> int:
        i = first
        while i < last:
            if self._text(i) == mark:
                return i
            i = self.match[i] + 1 if self._text(i) in _OPEN else i + 1
        return last

    def _ternary(self, question: int) -> None:
        first = self._begin_of_condition(question)
        colon = self._colon(question)
        end = self._end_of_expression(colon + 1)
        yes, no = (question + 1, colon), (colon + 1, end)
        whole = (first, end)
        if not self._has_runtime_atom(first, question):
            return
        reaches = [self._reaches(*branch) for branch in (yes, no)]
        plain = [self._constant(*branch) for branch in (yes, no)]
        inside = self.header.is_index
        if (inside or any(reaches)) and (plain[1] or (reaches[0] and not reaches[1])):
            self._atoms("guard", first, question, leaving=False, guard=whole)
        elif (inside or any(reaches)) and (plain[0] or (reaches[1] and not reaches[0])):
            self._atoms("guard", first, question, leaving=True, guard=whole)
        elif inside or self._makes_integer(first):
            self._add("clamp-first", first, end, self._source(*yes), whole)
            self._add("clamp-second", first, end, self._source(*no), whole)
        elif any(reaches):
            self._atoms("guard", first, question, leaving=False, guard=whole)

    def _reaches(self, first: int, last: int) -> bool:
        """Whether a branch is an address or an access, or says "outside"."""
        if self._words(first, last) == ["-", "1"]:
            return False
        return (
            self._touches_memory(first, last)
            or self._calls_index(first, last)
            or self._against_outside(first, last)
        )

    def _against_outside(self, first: int, last: int) -> bool:
        """Whether the other branch is -1."""
        after = self._text(last) == ":" and self._words(last + 1, last + 3) == ["-", "1"]
        before = self._words(first - 3, first) == ["-", "1", ":"]
        return after or before

    def _clamp_call(self, name: int) -> None:
        opening = name + 1
        comma = self._find(",", opening + 1, self.match[opening])
        if comma == self.match[opening] or not self._makes_integer(name):
            return
        if self._constant(opening + 1, self.match[opening]):
            return
        whole = (name, self.match[opening] + 1)
        self._add("clamp-first", *whole, self._source(opening + 1, comma), whole)
        self._add("clamp-second", *whole, self._source(comma + 1, self.match[opening]), whole)

    def _makes_integer(self, first: int) -> bool:
        """Whether what begins here becomes an int or long variable, or an argument of an index function."""
        before = self._text(first - 1)
        if before in _ASSIGNMENTS:
            return self._text(first - 2) in self.integers
        if before not in ("(", ","):
            return False
        i = first - 1
        while self._text(i) != "(":
            i = self.match[i] - 1 if self._text(i) in _CLOSE else i - 1
        return self._text(i - 1) in self.index_functions

    # --- atoms

    def _atoms(
        self,
        kind: str,
        first: int,
        last: int,
        *,
        leaving: bool,
        guard: tuple[int, int],
        ignored: frozenset[str] = frozenset(),
    ) -> None:
        """Mutates each atom of a condition. ``kind`` "loop": widened only."""
        for begin, end, relation in self._split(first, last):
            if self._constant(begin, end, ignored):
                continue
            if kind == "guard":
                self._add("guard-removed", begin, end, "false" if leaving else "true", guard)
            if relation is None or self._text(relation) in ("==", "!="):
                continue
            self._widen(begin, end, relation, leaving, guard)

    def _widen(self, begin: int, end: int, relation: int, leaving: bool, guard: tuple[int, int]) -> None:
        """One more on the side of the bound. That is the right one, unless it is constant and the left one is not."""
        operator = self._text(relation)
        left, right = self._source(begin, relation), self._source(relation + 1, end)
        lower = right == "0" and operator in (("<", "<=") if leaving else (">", ">="))
        if lower:
            return
        if operator in _LOOSER[leaving]:
            replacement = f"{left} {_LOOSER[leaving][operator]} {right}"
        else:
            replacement = f"{left} {operator} ({right}) {_MOVED[leaving][operator]}"
        self._add("guard-widened", begin, end, replacement, guard)

    def _split(self, first: int, last: int) -> Iterator[tuple[int, int, int | None]]:
        """The atoms of a condition: begin, end, and where the relation is (None: a call)."""
        begin = first
        i = first
        while i <= last:
            if i == last or self._text(i) in ("&&", "||"):
                yield from self._atom(begin, i)
                begin = i + 1
            elif self._text(i) in _OPEN:
                i = self.match[i]
            i += 1

    def _atom(self, begin: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        if begin >= end:
            return
        if self._text(begin) == "(" and self.match[begin] == end - 1:
            yield from self._split(begin + 1, end - 1)
            return
        i = begin
        while i < end:
            if self._text(i) in _RELATIONS and self._is_relation(i):
                yield begin, end, i
                return
            i = self.match[i] + 1 if self._text(i) in _OPEN else i + 1
        if (
            self._text(begin) in self.index_functions
            and self._text(begin + 1) == "("
            and self.match[begin + 1] == end - 1
        ):
            yield begin, end, None

    def _is_relation(self, i: int) -> bool:
        before, after = self.tokens[i].start, self.tokens[i].end
        source = self.header.source
        return (
            source[before - 1].isspace()
            and source[after].isspace()
            and self._text(i - 1) not in ("template", "operator")
        )

    def _has_runtime_atom(self, first: int, last: int) -> bool:
        return any(not self._constant(begin, end) for begin, end, _ in self._split(first, last))

    def _constant(self, first: int, last: int, ignored: frozenset[str] = frozenset()) -> bool:
        """Whether all words are compile-time constants or types."""
        for i in range(first, last):
            token = self.tokens[i]
            if token.kind != "word" or token.text in _TYPES or token.text in ignored:
                continue
            if self._text(i + 1) == "::" or re.fullmatch(r"[A-Z][A-Z0-9_]*|k[A-Z]\w*", token.text):
                continue
            return False
        return True

    # --- extents

    def _source(self, first: int, last: int) -> str:
        return self.header.source[self.tokens[first].start : self.tokens[last - 1].end]

    def _begin_of_condition(self, question: int) -> int:
        i = question - 1
        while True:
            text = self._text(i)
            if text in _CLOSE:
                i = self.match[i]
            elif text in (*_OPEN, ",", ";", "return", "?", ":", *_ASSIGNMENTS):
                return i + 1
            i -= 1

    def _colon(self, question: int) -> int:
        depth, i = 0, question + 1
        while True:
            text = self._text(i)
            if text in _OPEN:
                i = self.match[i]
            elif text == "?":
                depth += 1
            elif text == ":":
                if depth == 0:
                    return i
                depth -= 1
            i += 1

    def _end_of_expression(self, first: int) -> int:
        depth, i = 0, first
        while True:
            text = self._text(i)
            if text in _OPEN:
                i = self.match[i]
            elif text in (*_CLOSE, ",", ";") or (text == ":" and depth == 0):
                return i
            elif text in "?:":
                depth += 1 if text == "?" else -1
            i += 1

    def _end_of_statement(self, first: int) -> int:
        """Of a statement without braces; of a compound one, the end of its head's body."""
        i = first
        while self._text(i) != ";":
            if self._text(i) == "{":
                return self.match[i]
            i = self.match[i] + 1 if self._text(i) in _OPEN else i + 1
        return i


def read_headers(root: Path) -> dict[str, Header]:
    """All headers of the kernels, by their path relative to ``root``."""
    files = sorted(
        p.relative_to(root).as_posix() for pattern in ("*.h", "*.metal") for p in root.rglob(pattern)
    )
    return {file: Header.read(root, file) for file in files}


def find(headers: Mapping[str, Header]) -> list[Mutant]:
    """All mutants of all headers, in order."""
    index = frozenset(f.name for header in headers.values() if header.is_index for f in header.functions)
    return [mutant for header in headers.values() for mutant in _Finder(header, index).run()]


_INCLUDE: Final = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)


def closure(headers: Mapping[str, Header], file: str) -> list[str]:
    """A header and all that it includes, directly or not."""
    seen = [file]
    for name in seen:
        for included in _INCLUDE.findall(headers[name].source):
            beside = name.rpartition("/")[0]
            for path in (f"{beside}/{included}", f"include/{included}", included):
                if path in headers:
                    if path not in seen:
                        seen.append(path)
                    break
    return seen


def reached(headers: Mapping[str, Header], file: str, kernel: str) -> set[tuple[str, str]]:
    """The functions, as (file, name), that a kernel of a header may call, itself included.

    By name: of two functions with the same name both count.
    """
    functions: Sequence[tuple[str, Function]] = [
        (f, g) for f in closure(headers, file) for g in headers[f].functions
    ]
    by_word: dict[str, list[tuple[str, Function]]] = {}
    for at, function in functions:
        owner, _, name = function.name.rpartition(".")
        for word in {name, owner} if name == "operator()" else {name}:
            by_word.setdefault(word, []).append((at, function))
    todo = [(at, f) for at, f in functions if f.is_kernel and f.name == kernel]
    seen = {(at, f.name) for at, f in todo}
    while todo:
        _, function = todo.pop()
        for word in function.words:
            for at, other in by_word.get(word, ()):
                if (at, other.name) not in seen:
                    seen.add((at, other.name))
                    todo.append((at, other))
    return seen
