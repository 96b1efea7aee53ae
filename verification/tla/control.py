"""Runs real threads one at a time, each from one point to the next.

A :class:`Director` gives the word to one thread and waits until every thread stands at a point again. The points are
those of the seam (:mod:`steelworks.seam`), and the operations of the locks that the code under test uses: a module is
given :class:`Threading` in place of ``threading`` for that, so the code itself is as it is in production.

What a thread may wait for (a lock, a condition) it does not wait for here: it stands at a point that says whether it
could go on, and the walk through the model decides. A wait with a timeout may be ended by it at any time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

PATIENCE = 20.0  # seconds a thread may take from one point to the next; more is a hang


class Stuck(RuntimeError):
    """A thread did not come to a point: it waits for something that only another thread can give."""


class Unwound(BaseException):
    """Raised at a point to end a thread whose replay is over."""


class Point:
    """Where a thread stands.

    Attributes:
        kind: of the point, such as ``"acquire"``.
        name: which lock, step or section it is.
        ready: whether the thread could go on now.
    """

    __slots__ = ("kind", "name", "ready")

    def __init__(self, kind: str, name: str = "", ready: Callable[[], bool] = lambda: True) -> None:
        self.kind = kind
        self.name = name
        self.ready = ready

    def __repr__(self) -> str:
        return f"{self.kind}({self.name})" if self.name else self.kind


class Actor:
    """A thread that the director leads.

    Attributes:
        name: how the replay calls it.
        point: where it stands; None while it runs.
        answer: what the director told it when it was given the word last.
        ended: whether it will come to no further point.
        finalizing: whether its thread is ending, so that nothing may be raised in it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.point: Point | None = None
        self.answer: Any = None
        self.ended = False
        self.finalizing = False
        self._go = threading.Lock()
        self._go.acquire()


class Director:
    """Gives the word to one thread at a time."""

    def __init__(self) -> None:
        self.actors: dict[str, Actor] = {}
        self.unwinding = False
        self._process = os.getpid()
        self._by_ident: dict[int, Actor] = {}
        self._lock = threading.Lock()
        self._running = 0
        self._quiet = threading.Lock()  # released whenever the last thread that ran has come to a point
        self._quiet.acquire()

    # ---------------------------------------------------------------- the director's thread

    def go(self, name: str, answer: Any = None) -> None:
        """Let ``name`` go on to its next point and wait until it, and whoever it started, stands again."""
        self.begin(self.actors[name], answer)
        self.settle()

    def begin(self, actor: Actor, answer: Any) -> None:
        """Give ``actor`` the word; do not wait."""
        assert actor.point is not None, f"{actor.name} stands nowhere"
        actor.answer = answer
        with self._lock:
            self._running += 1
        actor.point = None
        actor._go.release()

    def quiet(self, seconds: float) -> bool:
        """Whether every thread stands, or does so within ``seconds``."""
        end = time.monotonic() + seconds
        while self._running:  # a release may be left of an earlier time
            if not self._quiet.acquire(timeout=max(0.0, end - time.monotonic())):
                return self._running == 0
        return True

    def died(self, actor: Actor) -> None:
        """The thread of ``actor``, which had the word, is no more."""
        actor.ended = True
        self._by_ident = {ident: other for ident, other in self._by_ident.items() if other is not actor}
        self._rest()

    def settle(self) -> None:
        """Wait until every thread stands at a point or has ended."""
        if not self.quiet(PATIENCE):
            where = [actor.name for actor in self.actors.values() if actor.point is None and not actor.ended]
            raise Stuck(f"{', '.join(where)} came to no point")

    def unwind(self) -> None:
        """End every thread, wherever it stands."""
        self.unwinding = True
        for actor in list(self.actors.values()):
            if actor.point is not None:
                actor.point = None
                actor._go.release()

    # ---------------------------------------------------------------- the threads

    def expect(self, name: str) -> Actor:
        """A thread is about to be started: until it stands, others wait for it."""
        with self._lock:
            self._running += 1
        actor = self.actors[name] = Actor(name)
        return actor

    def adopt(self, actor: Actor) -> None:
        """The calling thread is ``actor``."""
        self._by_ident[threading.get_ident()] = actor

    def me(self) -> Actor | None:
        """The calling thread, if the director leads it; in a forked child it leads nobody."""
        return self._by_ident.get(threading.get_ident()) if os.getpid() == self._process else None

    def stand(self, point: Point) -> Any:
        """Stand at ``point`` until given the word; returns the answer that came with it."""
        actor = self.me()
        if actor is None or self.unwinding:
            return None
        actor.point = point
        self._rest()
        actor._go.acquire()
        if self.unwinding:
            if actor.finalizing:
                return None
            raise Unwound
        return actor.answer

    def leave(self) -> None:
        """The calling thread comes to no further point."""
        actor = self._by_ident.pop(threading.get_ident(), None)
        if actor is not None:
            actor.ended = True
            self._rest()

    def _rest(self) -> None:
        with self._lock:
            self._running -= 1
            if self._running == 0 and self._quiet.locked():
                self._quiet.release()


class Thread(threading.Thread):
    """A thread that the director leads from its start to its end."""

    director: Director

    def start(self) -> None:
        self._actor = self.director.expect(self.name)
        super().start()

    def run(self) -> None:
        self.director.adopt(self._actor)
        try:
            super().run()
        except Unwound:
            pass
        finally:
            self.director.leave()


class Lock:
    """A lock whose operations are points, where ``points`` says so; the director's threads never block on it.

    Attributes:
        owner: the name of the actor that holds it; ``"?"`` for a thread that nobody leads, None if it is free.
    """

    def __init__(
        self, director: Director, points: Callable[[str], str | None] = lambda operation: None
    ) -> None:
        self._director = director
        self._points = points
        self.owner: str | None = None
        self.on_acquire: Callable[[], None] | None = None
        self.on_release: Callable[[], None] | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As ``threading.Lock.acquire``; a wait ends by its timeout if the director answers ``"timeout"``."""
        actor = self._director.me()
        operation = "acquire" if blocking else "try"
        name = self._points("timed" if blocking and timeout >= 0 else operation)
        if name is not None and actor is not None:
            answer = self._director.stand(Point(operation, name, lambda: self.owner is None))
            if answer == "timeout":
                return False
            if isinstance(answer, BaseException):
                raise answer
        if self.owner is not None:
            if not blocking or timeout == 0 or self._director.unwinding:
                return False
            raise Stuck(f"{actor.name if actor else 'a thread'} waits for a lock that {self.owner} holds")
        self.owner = actor.name if actor is not None else "?"
        if self.on_acquire is not None:
            self.on_acquire()
        return True

    def release(self) -> None:
        """As ``threading.Lock.release``."""
        name = self._points("release")
        if name is not None:
            self._director.stand(Point("release", name))
        if self.owner is None and not self._director.unwinding:
            raise RuntimeError("release unlocked lock")
        if self.on_release is not None:
            self.on_release()
        self.owner = None

    def locked(self) -> bool:
        """Whether it is held."""
        return self.owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Gate(Lock):
    """A lock that one thread waits on and another releases, as in "taken when made": that first time is no point."""

    def __init__(self, director: Director, name: str) -> None:
        super().__init__(director, self._named)
        self._name = name
        self._made = False

    def _named(self, operation: str) -> str | None:
        if not self._made:
            self._made = True
            return None
        return None if operation == "release" else self._name


class Condition:
    """A condition variable: a wait is a point that is ready when its predicate holds."""

    def __init__(self, director: Director, lock: Any, name: str) -> None:
        self._director = director
        self._lock = lock
        self._name = name

    def __enter__(self) -> bool:
        return bool(self._lock.__enter__())

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)

    def notify_all(self) -> None:
        """Nothing to do: the predicate says who may go on."""

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """As ``threading.Condition.wait_for``; never ends by its timeout."""
        del timeout
        while not predicate():
            owner, self._lock.owner = self._lock.owner, None
            self._director.stand(Point("condition", self._name, predicate))
            self._lock.owner = owner
        return True


class Event:
    """An event: a wait is a point that is ready when it is set."""

    def __init__(self, director: Director, name: str) -> None:
        self._director = director
        self._name = name
        self._set = False

    def set(self) -> None:
        """As ``threading.Event.set``."""
        self._set = True

    def clear(self) -> None:
        """As ``threading.Event.clear``."""
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        """As ``threading.Event.wait``; always a point."""
        del timeout
        self._director.stand(Point("event", self._name, lambda: self._set))
        return True


class SimpleQueue:
    """A queue of things; taking from an empty one is a point."""

    def __init__(self, director: Director, empty: type[Exception], name: str) -> None:
        self._director = director
        self._empty = empty
        self._name = name
        self._things: list[Any] = []

    def put(self, thing: Any) -> None:
        """As ``queue.SimpleQueue.put``."""
        self._things.append(thing)

    def get_nowait(self) -> Any:
        """As ``queue.SimpleQueue.get_nowait``."""
        if not self._things:
            raise self._empty
        return self._things.pop(0)

    def get(self, timeout: float | None = None) -> Any:
        """As ``queue.SimpleQueue.get``; never ends by its timeout."""
        del timeout
        if not self._things:
            self._director.stand(Point("queue", self._name, lambda: bool(self._things)))
        return self.get_nowait()

    def qsize(self) -> int:
        """As ``queue.SimpleQueue.qsize``."""
        return len(self._things)


class Player(Thread):
    """A thread that does what it is told, one order at a time; between orders it stands at the point "top".

    Attributes:
        result: what the last order returned.
        raised: the name of the exception that it raised, "" for none.
    """

    def __init__(self, director: Director, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.director = director
        self.result: Any = None
        self.raised = ""

    def _obey(self) -> None:
        order = self.director.stand(Point("top"))
        self.result, self.raised = None, ""
        try:
            self.result = order()
        except Unwound:
            raise
        except BaseException as error:
            self.raised = type(error).__name__

    def run(self) -> None:
        self.director.adopt(self._actor)
        try:
            while not self.director.unwinding:
                self._obey()
        except Unwound:
            pass
        finally:
            self.director.leave()
