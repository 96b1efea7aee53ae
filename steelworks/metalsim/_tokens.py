"""Preprocessed Metal source as tokens that remember where they came from.

The source has been through the preprocessor: no comments, no macros, only line markers and pragmas. Rewriting
replaces the text of tokens and keeps every line break, so that positions stay those of the user's file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import MetalSyntaxError

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\f\v\r]+|\\\n)
  | (?P<newline>\n)
  | (?P<raw>(?:u8|[uUL])?R"(?P<delimiter>[^()\\\s]{0,16})\(.*?\)(?P=delimiter)")
  | (?P<string>(?:u8|[uUL])?"(?:\\.|[^"\\\n])*")
  | (?P<char>(?:u8|[uUL])?'(?:\\.|[^'\\\n])*')
  | (?P<number>\.?[0-9](?:[eEpP][+-]|'[0-9a-zA-Z_]|[0-9a-zA-Z_.])*)
  | (?P<name>[A-Za-z_$][A-Za-z_0-9$]*)
  | (?P<punctuation><<=|>>=|\.\.\.|->\*|::|->|\+\+|--|<<|&&|\|\||[-+*/%&|^=!<>]=|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_MARKER = re.compile(r'#(?:line)?\s+(\d+)(?:\s+"((?:\\.|[^"\\])*)")?')
_FLOAT = re.compile(r"(?:\.[0-9]|[0-9][0-9']*\.|[0-9][0-9']*[eE]|0[xX][0-9a-fA-F']*\.?[0-9a-fA-F']*[pP])")


@dataclass(slots=True)
class Token:
    """One token; ``text`` is what will be written, ``kind`` and ``value`` what was read."""

    kind: str  # name, number, string, char, punctuation, space, newline, directive
    value: str
    file: str
    line: int
    text: str

    def blank(self) -> None:
        """Leaves spaces in its place, so that columns stay."""
        self.text = " " * len(self.text)


def tokenize(source: str, file: str) -> list[Token]:
    """Cuts preprocessed source into tokens; line markers set ``file`` and ``line``."""
    tokens: list[Token] = []
    line, at_start, position = 1, True, 0
    while position < len(source):
        if at_start:
            directive = re.compile(r"[ \t]*#[^\n]*").match(source, position)
            if directive is not None:
                text = directive[0]
                tokens.append(Token("directive", text, file, line, text))
                marker = _MARKER.match(text.strip())
                if marker is not None:
                    line = int(marker[1]) - 1
                    file = marker[2].replace("\\\\", "\\") if marker[2] is not None else file
                position = directive.end()
                at_start = False
                continue
        found = _TOKEN.match(source, position)
        if found is None:  # pragma: no cover - the last alternative takes any character
            raise MetalSyntaxError(f"{file}:{line}: error: unreadable character", file, line)
        kind = str(found.lastgroup)
        if kind == "delimiter" or kind == "raw":
            kind = "string"
        text = found[0]
        tokens.append(Token(kind, text, file, line, text))
        position = found.end()
        if kind == "newline":
            line += 1
            at_start = True
        else:
            line += text.count("\n")
            at_start = at_start and kind == "space"
    return tokens


def is_float_literal(text: str) -> bool:
    """Whether a number token is a floating-point literal."""
    return _FLOAT.match(text) is not None


class Code:
    """The tokens that mean something, by number, with the matching brackets."""

    def __init__(self, tokens: list[Token]) -> None:
        self.all = tokens
        self.tokens = [t for t in tokens if t.kind not in ("space", "newline", "directive")]
        self.match: dict[int, int] = {}
        opened: list[int] = []
        closing = {")": "(", "]": "[", "}": "{"}
        for index, token in enumerate(self.tokens):
            if token.kind != "punctuation":
                continue
            if token.value in "([{":
                opened.append(index)
            elif token.value in closing:
                if not opened or self.tokens[opened[-1]].value != closing[token.value]:
                    raise error(token, f"'{token.value}' without '{closing[token.value]}'")
                start = opened.pop()
                self.match[start] = index
                self.match[index] = start
        if opened:
            token = self.tokens[opened[-1]]
            raise error(token, f"'{token.value}' is never closed")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Token:
        return self.tokens[index]

    def value(self, index: int) -> str:
        """The text of the token, or "" past either end."""
        return self.tokens[index].value if 0 <= index < len(self.tokens) else ""

    def is_name(self, index: int) -> bool:
        return 0 <= index < len(self.tokens) and self.tokens[index].kind == "name"

    def text(self, start: int, end: int) -> str:
        """The tokens of [start, end) as written, one space apart."""
        return " ".join(t.text.strip() for t in self.tokens[start:end] if t.text.strip())

    def skip_angles(self, index: int) -> int:
        """The index after the ``>`` that closes the ``<`` at ``index``."""
        depth = 0
        while index < len(self.tokens):
            value = self.tokens[index].value
            if value == "<":
                depth += 1
            elif value == "<<" and depth == 0:
                depth += 2
            elif value == ">":
                depth -= 1
            elif value in ("(", "[", "{"):
                index = self.match[index]
            elif value in (";", ")", "]", "}"):
                break
            if depth == 0:
                return index + 1
            index += 1
        raise error(self.tokens[min(index, len(self.tokens) - 1)], "'<' is never closed")

    def render(self) -> str:
        """The whole source, rewritten."""
        return "".join(t.text for t in self.all)


def error(token: Token, message: str) -> MetalSyntaxError:
    """A source error at a token, in the compiler's form."""
    return MetalSyntaxError(f"{token.file}:{token.line}: error: {message}", token.file, token.line)
