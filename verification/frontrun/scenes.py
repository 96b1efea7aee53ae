"""The scenes: what is made, what each thread does, and what must hold when all are through.

Threads run the real ``Ledger`` (the stream pool's books) and the real ``Scheduler`` (the batch queue's). What they
stand on is left out: streams, models, and the queue's own worker threads, whose part a thread of the scene plays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from steelworks.batching import _request, _scheduler
from steelworks.batching.options import QueueOptions
from steelworks.errors import QueueClosedError, StreamPoolClosedError, StreamPoolExhaustedError
from steelworks.plans.inputs import Lane, Reading
from steelworks.streams import _ledger

REQUESTS: Final = 2


@dataclass
class Pool:
    """A pool's books, and who is using a slot now."""

    ledger: _ledger.Ledger
    users: list[int] = field(default_factory=list)
    clashes: int = 0

    def use(self, lease: _ledger.Lease) -> None:
        """Use the lease's slot for a while."""
        slot = lease.slot
        assert slot is not None
        self.users.append(slot.index)
        self.clashes += self.users.count(slot.index) > 1
        self.users.remove(slot.index)


def _returns(pool: Pool) -> None:
    lease = _ledger.Lease(pool.ledger)
    try:
        pool.ledger.acquire(lease, None)
    except (StreamPoolExhaustedError, StreamPoolClosedError):
        return
    pool.use(lease)
    lease.give_back("Release")


def _ends(pool: Pool) -> None:
    """As a thread that ends: its lease is dropped."""
    lease = _ledger.Lease(pool.ledger)
    try:
        pool.ledger.acquire(lease, None)
    except (StreamPoolExhaustedError, StreamPoolClosedError):
        return
    pool.use(lease)
    del lease


def _closes(pool: Pool) -> None:
    pool.ledger.close()


def _pool_is_whole(pool: Pool) -> bool:
    ledger = pool.ledger
    return (
        sorted(slot.index for slot in ledger._free) == list(range(len(ledger.slots)))
        and all(slot.holders == 0 for slot in ledger.slots)
        and ledger.in_use == 0
        and not ledger._returned
        and not ledger._waiting
        and pool.clashes == 0
    )


class _Sink(_request.Sink):
    """Notes what is delivered: each token is a list of outcomes."""

    def deliver(self, ended: Sequence[_request.Request]) -> None:
        for request in ended:
            request.token.append(request.outcome)


class _Group:
    """Stands for the inputs that may share a batch."""

    names = ("x",)


class _Plan:
    """Puts what waits into one batch."""

    def first_run(self, group: object, rows: int, length: int) -> int:
        del group, length
        return rows


@dataclass
class Queue:
    """A scheduler, requests to submit, and what a worker sleeps on.

    The sleeper is made ahead of the threads: frontrun takes a lock that a thread has taken and waits for as a deadlock,
    and does not see that another thread may release it.
    """

    scheduler: _scheduler.Scheduler
    requests: list[_request.Request]
    submitted: list[int]
    sleeper: _scheduler.Sleeper = field(default_factory=_scheduler.Sleeper)
    refused: list[int] = field(default_factory=list)


def _queue(pending: int) -> Queue:
    options = QueueOptions(max_batch_size=2, max_pending=8, num_workers=1)
    scheduler = _scheduler.Scheduler(_Plan(), options, 1)  # type: ignore[arg-type]
    lane = Lane(_Group(), 0)  # type: ignore[arg-type]
    sink = _Sink()
    requests = [
        _request.Request(Reading((torch.zeros(1, 1),), 1, lane, 0), sink, [], 0.0, float(number))
        for number in range(REQUESTS)
    ]
    for request in requests[:pending]:
        scheduler.submit(request)
    return Queue(scheduler, requests, list(range(pending)))


def _submits(number: int) -> Callable[[Queue], None]:
    def submits(queue: Queue) -> None:
        try:
            queue.scheduler.submit(queue.requests[number])
        except QueueClosedError:
            queue.refused.append(number)
        else:
            queue.submitted.append(number)

    return submits


def _cancels(number: int) -> Callable[[Queue], None]:
    def cancels(queue: Queue) -> None:
        queue.scheduler.cancel(queue.requests[number])

    return cancels


def _withdraws(queue: Queue) -> None:
    queue.scheduler.withdraw(queue.requests[0])


def _closes_queue(queue: Queue) -> None:
    queue.scheduler.close(cancel_pending=False)


def _works(queue: Queue) -> None:
    """A worker, until the queue is closed and nothing waits."""
    while (batch := queue.scheduler.take(queue.sleeper, wait=True)) is not None:
        queue.scheduler.complete(batch, [request.sink for request in batch], 0.0)


def _works_until_one(queue: Queue) -> None:
    """A worker that waits for one batch."""
    batch = queue.scheduler.take(queue.sleeper, wait=True)
    assert batch is not None
    queue.scheduler.complete(batch, [request.sink for request in batch], 0.0)


def _works_once(queue: Queue) -> None:
    """A worker that takes what is there, once."""
    batch = queue.scheduler.take(queue.sleeper, wait=False)
    if batch:
        queue.scheduler.complete(batch, [request.sink for request in batch], 0.0)


def _each_once(queue: Queue, withdrawn: Sequence[int] = ()) -> bool:
    """Every accepted request that has ended did so once, and was told once; the counts say so too."""
    scheduler = queue.scheduler
    accepted = [queue.requests[number] for number in queue.submitted]
    ended = [r for r in accepted if r.state == _request.ENDED]
    waiting = sum(r.state == _request.PENDING for r in accepted)
    return (
        all(len(r.token) == (r in ended) or n in withdrawn for n, r in enumerate(queue.requests))
        and all(len(queue.requests[n].token) <= 1 for n in withdrawn)
        and sum(scheduler._ended.values()) == len(ended)
        and scheduler._running == 0
        and not scheduler._delivering
        and scheduler._pending.count == waiting
        and len(queue.submitted) + len(queue.refused) <= len(queue.requests)
    )


def _all_ended(queue: Queue) -> bool:
    """Nothing that was accepted is left, now that the queue is closed and its worker has gone."""
    return _each_once(queue) and all(queue.requests[n].state == _request.ENDED for n in queue.submitted)


@dataclass(frozen=True)
class Scene:
    """What is explored.

    Attributes:
        says: in words.
        setup: makes what the threads share.
        threads: what each does.
        holds: whether all is as it must be at the end.
        preemptions: the most switches away from a thread that could go on; None: any number. Schedules that differ in
            nothing that is shared count as one.
    """

    says: str
    setup: Callable[[], Any]
    threads: tuple[Callable[[Any], None], ...]
    holds: Callable[[Any], bool]
    preemptions: int | None = None


def _pool_of(size: int, mode: Any) -> Callable[[], Pool]:
    return lambda: Pool(_ledger.Ledger(size, mode, "pool"))


SCENES: Final[dict[str, Scene]] = {
    "pool-error": Scene(
        "two threads and one stream, none waits", _pool_of(1, "error"), (_returns, _ends), _pool_is_whole
    ),
    "pool-wait": Scene(
        "two threads wait for one stream", _pool_of(1, "wait"), (_returns, _ends), _pool_is_whole, 2
    ),
    "pool-three": Scene(
        "three threads and two streams", _pool_of(2, "wait"), (_returns, _ends, _returns), _pool_is_whole, 1
    ),
    "pool-close": Scene(
        "closing beside a thread that waits",
        _pool_of(1, "wait"),
        (_returns, _ends, _closes),
        _pool_is_whole,
        1,
    ),
    "queue-cancel": Scene(
        "a worker takes a request that is being cancelled",
        lambda: _queue(1),
        (_works_once, _cancels(0)),
        lambda queue: _each_once(queue),
    ),
    "queue-withdraw": Scene(
        "a caller gives up while its request runs",
        lambda: _queue(1),
        (_works_once, _withdraws),
        lambda queue: _each_once(queue, withdrawn=(0,)),
    ),
    "queue-submit": Scene(
        "submitting beside cancelling", lambda: _queue(1), (_submits(1), _cancels(0)), lambda q: _each_once(q)
    ),
    "queue-wake": Scene(
        "submitting beside a worker that goes to sleep",
        lambda: _queue(0),
        (_works_until_one, _submits(0)),
        _all_ended,
    ),
    "queue-close": Scene(
        "closing beside a worker that goes to sleep", lambda: _queue(1), (_works, _closes_queue), _all_ended
    ),
}
