"""Traces of the running queue, followed by TLC through the plain life of a request."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from steelworks import BatchQueue, StreamPool
from verification.tla import planted, tlc, traces


@pytest.fixture(autouse=True)
def java() -> None:
    if missing := tlc.missing():
        pytest.fail(f"evidence missing: no trace was followed. {missing}")


def use(queue: BatchQueue) -> None:
    """Several threads send; some cancel; the queue is closed with requests in it."""

    def send(value: int) -> None:
        futures = [queue.submit(torch.full((1, 1), float(value * 10 + i))) for i in range(4)]
        futures[3].cancel()
        for future in futures[:3]:
            future.exception(20)

    threads = [threading.Thread(target=send, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    queue.submit(torch.zeros(1, 1))
    queue.close(cancel_pending=True)


def recorded(**options: Any) -> list[Any]:
    def model(x: torch.Tensor) -> torch.Tensor:
        if (x == 11).any():
            raise ValueError("this one is refused")
        return x

    with traces.recording() as found:
        use(BatchQueue(model, num_workers=2, max_batch_size=3, max_pending=4, **options))
    return found.finished()


def test_a_trace_of_the_running_queue_is_a_life_that_is_allowed() -> None:
    followed = traces.follow([trace for _ in range(5) for trace in recorded()])
    assert not followed.wrong
    assert followed.traces == 5
    assert followed.events > 100


@pytest.mark.parametrize(
    ("events", "wrong"),
    [
        ([["Accept", [1], []], ["Start", [1], []], ["Start", [1], []]], "event 3"),
        (
            [["Accept", [1, 2], []], ["Start", [1, 2], []], ["Complete", [1], []], ["Complete", [2, 1], []]],
            "event 4",
        ),
        ([["Shut", [], []], ["Accept", [1], []]], "event 2"),
    ],
    ids=["started-twice", "ended-twice", "after-closing"],
)
def test_a_life_that_is_not_allowed_is_shown_with_its_first_bad_step(events: list[Any], wrong: str) -> None:
    fine = [["Accept", [7], []], ["Start", [7], []], ["Complete", [7], []]]
    followed = traces.follow([fine, events])
    assert followed.wrong.startswith(f"{wrong} of trace 2 ")


def test_a_trace_of_a_queue_that_ends_a_request_twice_is_refused() -> None:
    bug = planted.Bug(
        "ends-what-has-ended",
        "steelworks.batching._scheduler:Scheduler.complete",
        "if request.state == RUNNING:",
        "if True:",
        "",
    )
    entered, go_on = threading.Event(), threading.Event()

    def model(x: torch.Tensor) -> torch.Tensor:
        entered.set()
        assert go_on.wait(20)
        return x

    with planted.planted(bug), traces.recording() as found:
        queue = BatchQueue(model, num_workers=1)
        future = queue.submit(torch.zeros(1, 1))
        assert entered.wait(20)
        queue._scheduler.withdraw(future.request)  # type: ignore[arg-type]
        go_on.set()
        queue.close(timeout=0.5)  # its books are wrong now, so it never gets quiet
    followed = traces.follow(found.finished())
    assert "Complete" in followed.wrong


def test_what_was_recorded_of_a_queue_that_is_gone_adds_no_objects() -> None:
    with traces.recording() as found:

        def cycle() -> None:
            with BatchQueue(lambda x: x, max_batch_size=2) as queue:
                queue.submit(torch.zeros(1, 1)).result(20)

        for _ in range(5):
            cycle()
        gc.collect()
        objects = len(gc.get_objects())
        for _ in range(40):
            cycle()
        gc.collect()
        assert len(gc.get_objects()) - objects < 40, "less than one object a queue"
        assert len(found.finished()) == 45
        assert all([event[0] for event in trace][:2] == ["Accept", "Start"] for trace in found.finished())


def use_streams(pool: StreamPool) -> None:
    """Several threads take streams; some give them back, the others end."""

    def work(release: bool) -> None:
        with pool.stream():
            pass
        if release:
            pool.release()

    for _ in range(3):
        threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)


@pytest.mark.parametrize("exhausted", ["wait", "share"])
def test_a_trace_of_a_running_pool_is_allowed(exhausted: Any) -> None:
    with traces.recording_pools() as found:
        use_streams(StreamPool("cpu", size=2, exhausted=exhausted))
    followed = traces.follow_pools(found.finished())
    assert not followed.wrong
    assert followed.events == 24


def test_a_trace_of_a_pool_that_grants_a_stream_twice_is_refused() -> None:
    bug = planted.Bug(
        "twice", "steelworks.streams._ledger:Ledger._take", "self._free.pop()", "self._free[-1]", ""
    )
    with planted.planted(bug), traces.recording_pools() as found:
        pool = StreamPool("cpu", size=2)
        with pool.stream():
            threading.Thread(target=lambda: pool.stream().__enter__()).start()
            use_streams(pool)
    followed = traces.follow_pools(found.finished())
    assert "Grant" in followed.wrong


@pytest.mark.evidence
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_the_tests_of_the_queue_do_is_allowed(tmp_path: Path) -> None:
    recorded = traces.of_tests(traces.TRACED_QUICK, tmp_path / "traces.json", seconds=280)
    for followed in (traces.follow(recorded["queues"]), traces.follow_pools(recorded["pools"])):
        assert not followed.wrong
        assert followed.traces > 20
        assert followed.skipped < followed.traces
