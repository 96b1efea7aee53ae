"""Fork and interpreter exit: which queues are told, and that each is told whatever the others do."""

from __future__ import annotations

import gc
import logging
import time

import pytest

from steelworks.batching import _lifecycle


class Told:
    """A live queue that notes what it is told."""

    def __init__(self, fails: bool = False, takes: float = 0.0) -> None:
        self._fails = fails
        self._takes = takes
        self.forks = 0
        self.seconds: list[float] = []

    def forked(self) -> None:
        self.forks += 1

    def at_exit(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if self._fails:
            raise RuntimeError("can't close")


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues of other tests are not told."""
    monkeypatch.setattr(_lifecycle, "_live", {})


def test_every_queue_is_closed_at_exit_though_one_of_them_fails(caplog: pytest.LogCaptureFixture) -> None:
    queues = [Told(), Told(fails=True), Told()]
    for queue in queues:
        _lifecycle.register(queue)
    with caplog.at_level(logging.ERROR, "steelworks.batching"):
        _lifecycle._at_exit()
    assert [len(queue.seconds) for queue in queues] == [1, 1, 1]
    assert "closing a queue at exit failed" in caplog.text


def test_the_seconds_at_exit_are_what_is_left_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    queues = [Told(), Told()]
    for queue in queues:
        _lifecycle.register(queue)
    now = time.monotonic()
    monkeypatch.setattr(_lifecycle, "EXIT_SECONDS", 10.0)
    clock = iter([now, now + 4.0, now + 11.0])
    monkeypatch.setattr(_lifecycle.time, "monotonic", lambda: next(clock))
    _lifecycle._at_exit()
    assert [queue.seconds for queue in queues] == [[6.0], [0.0]]


def test_every_queue_is_told_of_a_fork_and_the_child_forgets_them() -> None:
    queues = [Told(), Told(), Told()]
    for queue in queues:
        _lifecycle.register(queue)
    _lifecycle._after_fork_in_child()
    assert [queue.forks for queue in queues] == [1, 1, 1]
    _lifecycle._at_exit()
    assert not any(queue.seconds for queue in queues), "their workers are in the parent"


def test_a_queue_that_was_closed_is_not_told() -> None:
    closed, other = Told(), Told()
    for queue in (closed, other):
        _lifecycle.register(queue)
    _lifecycle.unregister(closed)
    _lifecycle.unregister(closed)
    _lifecycle._at_exit()
    assert (len(closed.seconds), len(other.seconds)) == (0, 1)


def test_being_registered_keeps_no_queue_alive() -> None:
    queue = Told()
    _lifecycle.register(queue)
    del queue
    gc.collect()
    assert _lifecycle._all() == []
    assert _lifecycle._live == {}
