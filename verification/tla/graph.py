"""Reads the state graph that TLC dumps, with the values of the states as Python values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_NODE = re.compile(r'^(-?\d+) \[label="(.*?)"(?:,style = filled)?\];?$')
_EDGE = re.compile(r'^(-?\d+) -> (-?\d+) \[label="(\w+)"')
_TOKEN = re.compile(r'\s*(<<|>>|\|->|:>|@@|\[|\]|\(|\)|\{|\}|,|"[^"]*"|-?\d+|\w+)')

State = dict[str, Any]


@dataclass(frozen=True)
class Edge:
    """One step: ``action`` takes state number ``source`` to ``target``."""

    number: int
    action: str
    source: int
    target: int


class Graph:
    """All states that a model can reach, numbered from 0, and all steps between them.

    Attributes:
        states: what each variable is in each state.
        edges: all steps; where an action leads to the same state in several ways, it is there once.
        out: the steps from each state.
        initial: the numbers of the initial states.
    """

    def __init__(self, states: list[State], steps: list[tuple[int, str, int]], initial: list[int]) -> None:
        self.states = states
        self.initial = initial
        self.edges = [Edge(n, action, a, b) for n, (a, action, b) in enumerate(steps)]
        self.out: list[list[Edge]] = [[] for _ in states]
        for edge in self.edges:
            self.out[edge.source].append(edge)


def read(path: Path) -> Graph:
    """Read a file that ``tlc.run(..., dump=path)`` wrote."""
    numbers: dict[str, int] = {}
    states: list[State] = []
    initial: list[int] = []
    named: list[tuple[str, str, str]] = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if (edge := _EDGE.match(line)) is not None:
                named.append((edge.group(1), edge.group(3), edge.group(2)))
            elif (node := _NODE.match(line)) is not None:
                if node.group(1) not in numbers:
                    numbers[node.group(1)] = len(states)
                    states.append(_state(node.group(2)))
                if "style = filled" in line:
                    initial.append(numbers[node.group(1)])
    steps = sorted({(numbers[a], action, numbers[b]) for a, action, b in named})
    return Graph(states, steps, initial)


def _state(label: str) -> State:
    text = label.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\")
    state: State = {}
    for part in text.split("/\\ ")[1:]:
        name, _, value = part.partition(" = ")
        state[name.strip()] = parse(value.strip())
    return state


@cache
def parse(text: str) -> Any:
    """A TLA+ value as a Python value.

    Sequences become tuples, sets frozensets, records and functions dicts, model values strings. What is returned
    is shared between states: leave it as it is.
    """
    tokens = _tokens(text)
    value = _value(tokens, next(tokens))
    assert next(tokens, None) is None, f"more than one value: {text}"
    return value


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        assert found is not None, f"no TLA+ value: {text[at:]}"
        yield found.group(1)
        at = found.end()


def _value(tokens: Iterator[str], token: str) -> Any:
    if token == "<<":
        return tuple(_items(tokens, ">>"))
    if token == "{":
        return frozenset(_items(tokens, "}"))
    if token == "[":
        return _record(tokens)
    if token == "(":
        return _function(tokens)
    if token[0] == '"':
        return token[1:-1]
    if token in ("TRUE", "FALSE"):
        return token == "TRUE"
    return int(token) if token.lstrip("-").isdigit() else token


def _items(tokens: Iterator[str], end: str) -> Iterator[Any]:
    for token in tokens:
        if token == end:
            return
        if token != ",":
            yield _value(tokens, token)


def _record(tokens: Iterator[str]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for token in tokens:
        if token == "]":
            break
        if token != ",":
            assert next(tokens) == "|->"
            record[token] = _value(tokens, next(tokens))
    return record


def _function(tokens: Iterator[str]) -> dict[Any, Any]:
    function: dict[Any, Any] = {}
    for token in tokens:
        if token == ")":
            break
        if token != "@@":
            key = _value(tokens, token)
            assert next(tokens) == ":>"
            function[key] = _value(tokens, next(tokens))
    return function
