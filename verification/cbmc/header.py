"""Reads the index headers for z3: functions of a C subset become terms over unbounded integers.

The subset is that of the headers: functions of int and long that declare locals and return one expression. Every
operation leaves an obligation behind: its result fits its type, a divisor is positive. What holds then for integers
without bounds holds for C. What the subset lacks (loops, structs, bit operations) is left to CBMC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import z3  # type: ignore[import-untyped]

ROOT: Final = Path(__file__).resolve().parents[2] / "steelworks" / "kernels" / "metal"
_TOKEN: Final = re.compile(
    r"\s*(0[xX][0-9a-fA-F]+|\d+|\w+|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%<>?:!()=;,{}\[\].&|^~])"
)
_COMMENT: Final = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DEFINE: Final = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+(.+?)[ \t]*$", re.MULTILINE)
_FUNCTION: Final = re.compile(r"static\s+inline\s+(int|long)\s+(\w+)\s*\(([^)]*)\)\s*\{")
_LEVELS: Final = (
    ("||",),
    ("&&",),
    ("==", "!="),
    ("<", ">", "<=", ">="),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "%"),
)
_BITS: Final = {"int": 31, "long": 63}


class Unreadable(ValueError):
    """The text is outside the subset; the message says where."""


@dataclass(frozen=True)
class Function:
    """A function of a header.

    Attributes:
        name: Its name.
        result: ``"int"`` or ``"long"``.
        parameters: Names and types, in order.
        body: Its tokens, braces excluded.
    """

    name: str
    result: str
    parameters: tuple[tuple[str, str], ...]
    body: tuple[str, ...]


@dataclass(frozen=True)
class Header:
    """The functions and the number macros of some headers, by name."""

    functions: Mapping[str, Function]
    macros: Mapping[str, str]


def read(paths: Sequence[Path]) -> Header:
    """Reads headers; a function's body is read only when it is called."""
    functions: dict[str, Function] = {}
    macros: dict[str, str] = {}
    for path in paths:
        text = path.read_text(encoding="utf-8")
        text = _COMMENT.sub(" ", text)
        macros.update({m[1]: m[2] for m in _DEFINE.finditer(text)})
        text = re.sub(r"^[ \t]*#[^\n]*$", "", text, flags=re.MULTILINE)
        for found in _FUNCTION.finditer(text):
            end = _closing(text, found.end())
            parameters = tuple(_parameter(p) for p in found[3].split(",")) if found[3].strip() else ()
            functions[found[2]] = Function(
                found[2], found[1], parameters, tuple(_tokens(text[found.end() : end]))
            )
    return Header(functions, macros)


def _closing(text: str, begin: int) -> int:
    depth = 1
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
    raise Unreadable("a function without an end")


def _parameter(text: str) -> tuple[str, str]:
    words = text.split()
    return words[-1], " ".join(words[:-1])


def _tokens(text: str) -> Iterator[str]:
    at, text = 0, text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise Unreadable(f"unknown text {text[at : at + 20]!r}")
        yield found[1]
        at = found.end()


@dataclass(frozen=True)
class Value:
    """A C value: an integer term, and the type it has."""

    term: Any
    kind: str


@dataclass(frozen=True)
class Obligation:
    """What must hold for the reading to be that of C: ``holds``, wherever ``when`` is reached."""

    text: str
    when: Any
    holds: Any


@dataclass
class Reader:
    """Evaluates functions of a header on terms.

    Attributes:
        header: What was read.
        never_negative: Says whether a term is known not to be negative, where the path condition holds.
        obligations: What the evaluations so far rely on.
    """

    header: Header
    never_negative: Callable[[Any, Any], bool]
    obligations: list[Obligation] = field(default_factory=list)

    def call(self, name: str, arguments: Sequence[Any], when: Any | None = None) -> Any:
        """The term that a function returns."""
        return self._call(
            name, [self._given(a) for a in arguments], z3.BoolVal(True) if when is None else when
        ).term

    def _given(self, argument: Any) -> Value:
        return (
            argument
            if isinstance(argument, Value)
            else Value(z3.IntVal(argument) if isinstance(argument, int) else argument, "int")
        )

    def _call(self, name: str, arguments: Sequence[Value], when: Any) -> Value:
        function = self.header.functions.get(name)
        if function is None:
            raise Unreadable(f"no header has a function {name}")
        if len(arguments) != len(function.parameters):
            raise Unreadable(f"{name} takes {len(function.parameters)} arguments, {len(arguments)} are given")
        scope = {n: Value(a.term, kind) for (n, kind), a in zip(function.parameters, arguments, strict=True)}
        for (parameter, kind), given in zip(function.parameters, arguments, strict=True):
            if kind != given.kind and kind == "int":
                self._fits(f"{name}: {parameter}", Value(given.term, "int"), when)
        return _Body(self, function, scope).run(when)

    def _fits(self, text: str, value: Value, when: Any) -> Value:
        most = 2 ** _BITS[value.kind]
        self.obligations.append(
            Obligation(f"{text} fits {value.kind}", when, z3.And(value.term >= -most, value.term < most))
        )
        return value


class _Body:
    """One evaluation of one function."""

    def __init__(self, reader: Reader, function: Function, scope: dict[str, Value]) -> None:
        self.reader, self.function, self.scope = reader, function, scope
        self.tokens, self.at = function.body, 0

    def run(self, when: Any) -> Value:
        while self._peek() in ("int", "long", "const"):
            if self._peek() == "const":
                self._next()
            kind = self._next()
            while True:
                name = self._next()
                self._expect("=")
                self.scope[name] = self._convert(self._ternary(when), kind, when)
                if self._peek() != ",":
                    break
                self._next()
            self._expect(";")
        self._expect("return")
        value = self._convert(self._ternary(when), self.function.result, when)
        self._expect(";")
        if self.at != len(self.tokens):
            raise Unreadable(f"{self.function.name}: {self._peek()!r} after the result")
        return value

    def _peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1] if self.at <= len(self.tokens) else ""

    def _expect(self, token: str) -> None:
        got = self._next()
        if got != token:
            raise Unreadable(f"{self.function.name}: {got!r} where {token!r} is expected")

    def _convert(self, value: Value, kind: str, when: Any) -> Value:
        if value.kind == "long" and kind == "int":
            return self.reader._fits(f"{self.function.name}: a long as int", Value(value.term, "int"), when)
        return Value(value.term, kind)

    def _ternary(self, when: Any) -> Value:
        condition = self._binary(0, when)
        if self._peek() != "?":
            return condition
        self._next()
        holds = _truth(condition)
        first = self._ternary(z3.And(when, holds))
        self._expect(":")
        second = self._ternary(z3.And(when, z3.Not(holds)))
        kind = "long" if "long" in (first.kind, second.kind) else "int"
        return Value(z3.If(holds, first.term, second.term), kind)

    def _binary(self, level: int, when: Any) -> Value:
        if level == len(_LEVELS):
            return self._unary(when)
        left = self._binary(level + 1, when)
        while self._peek() in _LEVELS[level]:
            operator = self._next()
            # The right side of && and || is reached only if the left one leaves it open.
            reached = {
                "&&": lambda w, v: z3.And(w, _truth(v)),
                "||": lambda w, v: z3.And(w, z3.Not(_truth(v))),
            }
            right = self._binary(level + 1, reached.get(operator, lambda w, v: w)(when, left))
            left = self._operate(operator, left, right, when)
        return left

    def _operate(self, operator: str, left: Value, right: Value, when: Any) -> Value:
        a, b = left.term, right.term
        logical = {
            "&&": lambda: z3.And(_truth(left), _truth(right)),
            "||": lambda: z3.Or(_truth(left), _truth(right)),
            "==": lambda: a == b,
            "!=": lambda: a != b,
            "<": lambda: a < b,
            ">": lambda: a > b,
            "<=": lambda: a <= b,
            ">=": lambda: a >= b,
        }
        if operator in logical:
            return Value(z3.If(logical[operator](), z3.IntVal(1), z3.IntVal(0)), "int")
        kind = "long" if "long" in (left.kind, right.kind) else "int"
        place = f"{self.function.name}: {operator}"
        if operator in ("/", "%"):
            self.reader.obligations.append(Obligation(f"{place} by a positive number", when, b > 0))
            quotient = a / b
            if not self.reader.never_negative(a, when):  # C rounds towards 0
                quotient = z3.If(a >= 0, a / b, -((-a) / b))
            return Value(quotient if operator == "/" else a - quotient * b, kind)
        if operator in ("<<", ">>"):
            raise Unreadable(f"{place} is a bit operation")
        term = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b}[operator]()
        return self.reader._fits(place, Value(term, kind), when)

    def _unary(self, when: Any) -> Value:
        token = self._next()
        if token == "-":
            value = self._unary(when)
            return self.reader._fits(f"{self.function.name}: -", Value(-value.term, value.kind), when)
        if token == "!":
            return Value(z3.If(_truth(self._unary(when)), z3.IntVal(0), z3.IntVal(1)), "int")
        if token == "(":
            if self._peek() in ("int", "long"):
                kind = self._next()
                self._expect(")")
                return self._convert(self._unary(when), kind, when)
            value = self._ternary(when)
            self._expect(")")
            return value
        if token[:1].isdigit():
            return Value(z3.IntVal(int(token, 0)), "int")
        if self._peek() == "(":
            return self._called(token, when)
        if token in self.scope:
            return self.scope[token]
        macro = self.reader.header.macros.get(token)
        if macro is not None:
            return Value(z3.IntVal(int(macro.strip("()"), 0)), "int")
        raise Unreadable(f"{self.function.name}: {token!r} is no name of the subset")

    def _called(self, name: str, when: Any) -> Value:
        self._expect("(")
        arguments: list[Value] = []
        while self._peek() != ")":
            arguments.append(self._ternary(when))
            if self._peek() == ",":
                self._next()
        self._expect(")")
        return self.reader._call(name, arguments, when)


def _truth(value: Value) -> Any:
    return value.term != 0
