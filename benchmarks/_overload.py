"""Overload: ten times the capacity offered, open loop, under one overflow policy.

The model sleeps for a fixed time a batch, as a device would work by itself. So the cores are free for
the generators, and the offered rate is reached however fast the machine is.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
import time
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._common import short_error
from benchmarks._watch import Watch

POLICIES = ("block", "reject", "drop_oldest")
BATCH_S = 0.010
MAX_BATCH = 4
WORKERS = 2
GENERATORS = 8
INPUTS = 256


class SlowModel(nn.Module):
    """Doubles its input [B, 1], in 10 ms whatever B is."""

    def forward(self, x: Tensor) -> Tensor:
        """Sleep, then answer."""
        time.sleep(BATCH_S)
        return x * 2


class Ledger:
    """How each request ended; counted where the end happens."""

    def __init__(self, requests: int) -> None:
        self.ends = bytearray(requests)
        self.outcomes: Counter[str] = Counter()
        self.first_error: str | None = None
        self.lock = threading.Lock()

    def end(self, number: int, outcome: str) -> None:
        with self.lock:
            self.ends[number] += 1
            self.outcomes[outcome] += 1

    def settle(self, number: int, expected: float, future: concurrent.futures.Future[Tensor]) -> None:
        """Called once by the future."""
        from steelworks.errors import QueueFullError

        error = future.exception()
        if error is None:
            outcome = "ok" if float(future.result()) == expected else "wrong"
        elif isinstance(error, QueueFullError):
            outcome = "dropped"
        else:
            outcome = "unexpected_error"
            self.first_error = self.first_error or short_error(error)
        self.end(number, outcome)


def overload(policy: str, seconds: float, *, factor: float, max_pending: int) -> dict[str, Any]:
    """Offer ``factor`` times the capacity for ``seconds``; the record, with ``problems`` as a list."""
    import steelworks
    from steelworks.errors import QueueFullError

    queue = steelworks.BatchQueue(
        SlowModel(),
        max_batch_size=MAX_BATCH,
        num_workers=WORKERS,
        max_pending=max_pending,
        overflow=policy,  # type: ignore[arg-type]
        device="cpu",
    )
    inputs = [torch.full((1, 1), float(i)) for i in range(INPUTS)]
    capacity = measure_capacity(queue, inputs)
    before = queue.statistics()
    rate = factor * capacity
    share = int(rate * seconds / GENERATORS)
    ledger = Ledger(share * GENERATORS)
    sent = [0] * GENERATORS
    began = time.perf_counter()

    def generate(index: int) -> None:
        first = index * share
        while (elapsed := time.perf_counter() - began) < seconds:
            due = min(int(elapsed * rate / GENERATORS), share)
            while sent[index] < due and time.perf_counter() - began < seconds:
                number = first + sent[index]
                sent[index] += 1
                value = number % INPUTS
                try:
                    future = queue.submit(inputs[value])
                except QueueFullError:
                    ledger.end(number, "rejected")
                else:
                    future.add_done_callback(lambda f, n=number, v=value: ledger.settle(n, 2.0 * v, f))
            time.sleep(0.001)

    def progress() -> tuple[int, dict[str, Any]]:
        return sum(ledger.outcomes.values()), {"pending": queue.statistics().pending}

    with Watch(progress, title=f"overload {policy:12}", interval_s=min(1.0, seconds / 20)) as watch:
        threads = [threading.Thread(target=generate, args=(i,), name="generator") for i in range(GENERATORS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        offered_s = time.perf_counter() - began
        in_time = ledger.outcomes["ok"]
        drained = queue.drain(timeout=120)
        found = queue.statistics()
        closed = queue.close(timeout=60)
    record = {
        "policy": policy,
        "capacity_rps": round(capacity, 1),
        "offered_rps": round(rate, 1),
        "scheduled": ledger_size(ledger),
        "attempted": sum(sent),
        "attempted_rps": round(sum(sent) / offered_s, 1),
        "outcomes": dict(ledger.outcomes),
        "goodput_of_capacity": round(in_time / offered_s / capacity, 3),
        "first_error": ledger.first_error,
        "most_pending": max((s["pending"] for s in watch.samples), default=0),
        "statistics": dataclasses.asdict(found),
        "memory": watch.samples,
    }
    record["problems"] = problems_of(record, ledger, before, found, drained and closed, max_pending)
    if (problem := watch.memory_problem()) is not None:
        record["problems"].append(problem)
    return record


def ledger_size(ledger: Ledger) -> int:
    """Requests the open loop's clock asked for."""
    return len(ledger.ends)


def measure_capacity(queue: Any, inputs: list[Tensor]) -> float:
    """Requests a second that the queue completes when enough of them wait, over about 2 s."""
    enough = int(2.0 * WORKERS * MAX_BATCH / BATCH_S)
    list(queue.map([inputs[0]] * 64))
    began = time.perf_counter()
    for y, number in zip(queue.map(inputs[i % INPUTS] for i in range(enough)), range(enough), strict=True):
        if float(y) != 2.0 * (number % INPUTS):
            raise AssertionError("a wrong result while the capacity was measured")
    return enough / (time.perf_counter() - began)


def problems_of(
    record: dict[str, Any], ledger: Ledger, before: Any, found: Any, ended: bool, max_pending: int
) -> list[str]:
    """Everything that is not as it must be."""
    outcomes, attempted = ledger.outcomes, record["attempted"]
    problems = []
    if not ended:
        problems.append("the queue did not drain and close")
    ends = Counter(ledger.ends)
    if ends[1] != attempted or set(ends) - {0, 1}:
        problems.append(f"{attempted} requests, but ends by request are {dict(ends)}")
    if outcomes["wrong"] or outcomes["unexpected_error"]:
        problems.append(
            f"{outcomes['wrong']} wrong, {outcomes['unexpected_error']} failed: {ledger.first_error}"
        )
    accepted, rejected = found.accepted - before.accepted, found.rejected - before.rejected
    if accepted + rejected != attempted or found.ended != found.accepted or found.pending or found.running:
        problems.append(f"the queue's counters do not add up: {found}")
    counted = {"ok": found.completed - before.completed, "dropped": found.dropped, "rejected": rejected}
    if any(outcomes[name] != number for name, number in counted.items()):
        problems.append(f"the queue counts {counted}, callers saw {dict(outcomes)}")
    if record["most_pending"] > max_pending + GENERATORS:
        problems.append(f"{record['most_pending']} requests were pending at once")
    if record["policy"] != "block" and record["attempted_rps"] < 0.9 * record["offered_rps"]:
        problems.append(
            f"only {record['attempted_rps']} of {record['offered_rps']} requests a second were offered"
        )
    return problems
