"""Walks over every edge of a model's state graph and takes each step on the running code.

After every step what can be seen of the code is compared with the model's state. So a bug need not lead to a crash or
a wrong result to be found: the first step after which the code is not where the model is fails, and is shown with the
steps before it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from .control import Stuck
from .graph import Edge, Graph, State

SHOWN = 12  # steps before a failing one that a report shows


class Disagreement(AssertionError):
    """The code did something that the model does not."""


class Subject(Protocol):
    """What the replay needs of the code under test."""

    def start(self, state: State) -> None:
        """Bring a fresh one to the model's initial ``state``."""

    def take(self, action: str, before: State, after: State) -> None:
        """Take one step. Raises Disagreement if it can't be taken, or does not do what it should."""

    def observed(self) -> dict[str, Any]:
        """What can be seen of it now."""

    def expected(self, state: State) -> dict[str, Any]:
        """What should be seen of it in the model's ``state``."""

    def beside(self, action: str, before: State, after: State) -> bool:
        """Take a step that leaves the subject where it is (a fork's child goes on elsewhere); False if it is none."""

    def end(self) -> None:
        """Let go of it, wherever it is."""


@dataclass(frozen=True)
class Replayed:
    """What a replay covered.

    Attributes:
        states: of the graph; all of them were reached.
        edges: of the graph; each step was taken at least once.
        beside: steps among them of which a sample was taken (forks).
        steps: steps taken, those again included that lead to others.
        starts: how many times it began anew.
        seconds: wall clock.
    """

    states: int
    edges: int
    beside: int
    steps: int
    starts: int
    seconds: float


def replay(graph: Graph, subject: Subject) -> Replayed:
    """Take every step of ``graph`` on ``subject``.

    Raises:
        Disagreement: the code is not where the model is; the message shows the steps and the difference.
    """
    return _Walk(graph, subject).run()


class _Walk:
    def __init__(self, graph: Graph, subject: Subject) -> None:
        self.graph = graph
        self.subject = subject
        self.todo = [True] * len(graph.edges)
        self.left = len(graph.edges)
        self.open = [len(out) for out in graph.out]  # steps not yet taken, by state
        self.steps = self.starts = self.side = 0
        self.path: deque[Edge] = deque(maxlen=SHOWN)
        self.now = graph.initial[0]

    def run(self) -> Replayed:
        began = time.monotonic()
        (initial,) = self.graph.initial
        try:
            while self.left:
                self._start(initial)
                if not self.open[self.now] and not self._way():
                    raise AssertionError("a step can't be reached from the initial state")
                while self.left:
                    edge = self._untaken(self.now)
                    if edge is not None:
                        self._step(edge)
                        continue
                    way = self._way()
                    if not way:
                        break
                    for edge in way:
                        self._step(edge)
        finally:
            self.subject.end()
        return Replayed(
            states=len(self.graph.states),
            edges=len(self.graph.edges),
            beside=self.side,
            steps=self.steps,
            starts=self.starts,
            seconds=time.monotonic() - began,
        )

    def _start(self, state: int) -> None:
        if self.starts:
            self.subject.end()
        self.starts += 1
        self.path.clear()
        self.now = state
        self.subject.start(self.graph.states[state])
        self._compare(None)

    def _untaken(self, state: int) -> Edge | None:
        if not self.open[state]:
            return None
        return next(edge for edge in self.graph.out[state] if self.todo[edge.number])

    def _way(self) -> list[Edge]:
        """The shortest way to a state with a step not yet taken; empty if there is none."""
        came: dict[int, Edge | None] = {self.now: None}
        queue = deque([self.now])
        while queue:
            state = queue.popleft()
            if self.open[state]:
                way = []
                back = came[state]
                while back is not None:
                    way.append(back)
                    back = came[back.source]
                return way[::-1]
            for edge in self.graph.out[state]:
                if edge.target not in came and edge.action not in SIDE:
                    came[edge.target] = edge
                    queue.append(edge.target)
        return []

    def _step(self, edge: Edge) -> None:
        if self.todo[edge.number]:
            self.todo[edge.number] = False
            self.left -= 1
            self.open[edge.source] -= 1
        before, after = self.graph.states[edge.source], self.graph.states[edge.target]
        self.path.append(edge)
        try:
            if edge.action in SIDE:
                self.subject.beside(edge.action, before, after)
                self.side += 1
                self._forget(edge.target)
                self.path.pop()
                return
            self.steps += 1
            self.subject.take(edge.action, before, after)
        except (Disagreement, Stuck) as error:
            raise Disagreement(f"{error}\n{self._story()}") from error
        self.now = edge.target
        self._compare(edge)

    def _forget(self, state: int) -> None:
        """What follows a step beside happens elsewhere; it need not be walked."""
        queue = [state]
        while queue:
            for edge in self.graph.out[queue.pop()]:
                if self.todo[edge.number]:
                    self.todo[edge.number] = False
                    self.left -= 1
                    self.open[edge.source] -= 1
                    self.side += 1
                    queue.append(edge.target)

    def _compare(self, edge: Edge | None) -> None:
        expected = self.subject.expected(self.graph.states[self.now])
        observed = self.subject.observed()
        if expected == observed:
            return
        differences = [
            f"  {name}: the model has {expected.get(name)!r}, the code {observed.get(name)!r}"
            for name in [*expected, *(name for name in observed if name not in expected)]
            if expected.get(name) != observed.get(name)
        ]
        raise Disagreement(
            f"after {edge.action if edge else 'the start'} the code is not where the model is\n"
            + "\n".join(differences)
            + f"\n{self._story()}"
        )

    def _story(self) -> str:
        steps = [f"  {edge.action}: {_change(self.graph, edge)}" for edge in self.path]
        return "the last steps:\n" + "\n".join(steps)


#: Actions whose consequences are elsewhere (in a child process).
SIDE = frozenset({"Fork"})


def _change(graph: Graph, edge: Edge) -> str:
    before, after = graph.states[edge.source], graph.states[edge.target]
    return ", ".join(f"{name}={after[name]!r}" for name in after if after[name] != before[name])
