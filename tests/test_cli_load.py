"""The measuring code that the commands and the benchmarks share."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from steelworks.cli._load import (
    Run,
    StalledError,
    max_abs_difference,
    percentile,
    run_callers,
    summarize,
)
from steelworks.cli._oracle import OracleSettings, batches_by_length, intra_op_threads, run_oracle
from steelworks.cli._workload import Workload, as_is, call_model, tolerance_for

CPU = torch.device("cpu")


class MeanOfTokens(nn.Module):
    """Averages the ids under the mask: right only if padding is masked."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        ids = input_ids.float() * attention_mask
        mean = ids.sum(1, keepdim=True) / attention_mask.sum(1, keepdim=True)
        return {"mean": mean, "states": ids.unsqueeze(-1)}


def tokens(length: int) -> dict[str, torch.Tensor]:
    ids = torch.arange(1, length + 1).unsqueeze(0)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_every_request_is_answered_once_and_outputs_stand_in_request_order() -> None:
    run = run_callers(lambda x: x * 10, list(range(100)), callers=4, warm_up=0)
    assert run.outputs == [x * 10 for x in range(100)]
    assert not run.failures
    assert all(seconds is not None and seconds >= 0 for seconds in run.latencies)
    assert run.throughput_rps > 0


def test_as_many_calls_as_callers_run_at_the_same_time() -> None:
    together = threading.Barrier(4)
    run = run_callers(lambda x: together.wait(timeout=30), range(8), callers=4, warm_up=0)
    assert not run.failures


def test_warm_up_calls_are_made_by_every_caller_and_are_not_in_the_result() -> None:
    lock, calls = threading.Lock(), {}

    def call(x: int) -> int:
        with lock:
            name = threading.current_thread().name
            calls[name] = calls.get(name, 0) + 1
        return x

    run = run_callers(call, range(6), callers=3, warm_up=2)
    assert len(run.outputs) == 6
    assert sum(calls.values()) == 6 + 3 * 2
    assert len(calls) == 3 and min(calls.values()) >= 2


def test_a_request_that_raises_is_an_error_and_the_others_are_answered() -> None:
    def call(x: int) -> int:
        if x == 3:
            raise ValueError("three")
        return x

    run = run_callers(call, range(10), callers=2)
    assert list(run.failures) == [3]
    assert run.outputs[:3] == [0, 1, 2] and run.outputs[3] is None
    assert summarize("threads", run, None).errors == 1


def test_a_call_that_raises_system_exit_does_not_end_its_caller() -> None:
    def call(x: int) -> int:
        raise SystemExit

    run = run_callers(call, range(5), callers=2)
    assert len(run.failures) == 5
    assert run.throughput_rps == 0.0


def test_a_run_in_which_nothing_ends_is_given_up_and_counts_as_errors() -> None:
    never = threading.Event()
    try:
        run = run_callers(lambda x: never.wait(), range(3), callers=3, warm_up=0, stall_seconds=0.3)
    finally:
        never.set()
    assert len(run.failures) == 3
    assert all(isinstance(error, StalledError) for error in run.failures.values())


def test_an_interrupted_run_lets_the_calls_in_flight_end_and_sends_no_more() -> None:
    begun: list[int] = []
    ended: list[int] = []

    def interrupt(done: int) -> None:
        if done:
            raise KeyboardInterrupt

    def call(x: int) -> None:
        begun.append(x)
        never.wait(0.05)
        ended.append(x)

    never = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        run_callers(call, range(1000), callers=2, warm_up=0, progress=interrupt)
    assert 0 < len(begun) < 1000
    assert sorted(begun) == sorted(ended)


def test_past_the_time_limit_no_request_is_sent_and_those_sent_are_answered() -> None:
    run = run_callers(lambda x: x, range(1000), callers=1, warm_up=0, time_limit=0.0)
    assert run.outputs == [0]
    assert not run.failures


def test_progress_ends_at_the_number_of_requests() -> None:
    seen: list[int] = []
    run_callers(lambda x: x, range(20), callers=2, progress=seen.append)
    assert seen[-1] == 20


@pytest.mark.parametrize(("requests", "callers"), [([], 1), ([1], 0)])
def test_no_request_or_no_caller_is_a_clear_error(requests: list[int], callers: int) -> None:
    with pytest.raises(ValueError, match="at least 1 is needed"):
        run_callers(lambda x: x, requests, callers)


def test_percentiles_lie_between_neighbours() -> None:
    assert percentile([], 50) is None
    assert percentile([3.0], 99) == 3.0
    assert percentile([4.0, 1.0, 2.0, 3.0], 50) == 2.5
    assert percentile(range(101), 99) == 99.0


def test_a_row_holds_milliseconds_and_the_largest_difference() -> None:
    run = Run(2.0, [0.001, 0.003, None], [torch.zeros(2), torch.ones(2), None], {2: ValueError()})
    row = summarize("queue", run, [torch.zeros(2), torch.tensor([1.0, 1.5]), torch.zeros(2)])
    assert (row.throughput_rps, row.p50_ms, row.errors, row.max_abs_difference) == (1.0, 2.0, 1, 0.5)


@pytest.mark.parametrize(
    ("got", "expected", "difference"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), 2.0),
        ({"a": torch.zeros(1), "b": torch.ones(1)}, {"b": torch.ones(1), "a": torch.ones(1)}, 1.0),
        ((torch.zeros(1), [torch.tensor([5])]), [torch.zeros(1), torch.tensor([2])], 3.0),
        (torch.tensor([float("nan"), float("inf")]), torch.tensor([float("nan"), float("inf")]), 0.0),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), float("inf")),
        (torch.zeros(2), torch.zeros(3), float("inf")),
        (torch.zeros(1), (torch.zeros(1), torch.zeros(1)), float("inf")),
        (torch.tensor([1 + 1j]), torch.tensor([1 - 1j]), 2.0),
    ],
)
def test_differences_of_outputs(got: Any, expected: Any, difference: float) -> None:
    assert max_abs_difference(got, expected) == difference


def test_the_oracle_pads_masks_and_cuts_back_so_that_answers_are_those_of_single_calls() -> None:
    requests = [tokens(length) for length in (5, 1, 7, 3, 3, 9, 2)]
    workload = Workload("", MeanOfTokens(), requests, as_is)
    run = run_oracle(workload, requests, CPU, OracleSettings(workers=2, threads_per_worker=1, batch_size=3))
    assert not run.failures and run.seconds > 0
    for request, output in zip(requests, run.outputs, strict=True):
        assert max_abs_difference(output, call_model(workload.model, request, CPU)) == 0.0


def test_the_oracle_counts_a_failed_batch_for_each_of_its_requests() -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no")

    requests = [torch.zeros(1, 2)] * 4
    run = run_oracle(Workload("", Fails(), requests, as_is), requests, CPU, OracleSettings(1, 1, 2))
    assert sorted(run.failures) == [0, 1, 2, 3]


def test_batches_are_sorted_by_length_and_hold_only_what_fits_together() -> None:
    masked = [tokens(length) for length in (4, 2, 9, 1)]
    assert batches_by_length(masked, 2) == [[3, 1], [0, 2]]
    bare = [torch.zeros(1, 4), torch.zeros(1, 2), torch.zeros(1, 4)]
    assert batches_by_length(bare, 32) == [[1], [0, 2]]


def test_the_thread_setting_is_put_back() -> None:
    before = torch.get_num_threads()
    with intra_op_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_tolerance_follows_dtype_and_scale() -> None:
    assert tolerance_for([torch.ones(2)]) == pytest.approx(1e-4)
    assert tolerance_for([torch.full((2,), 50.0)]) == pytest.approx(5e-3)
    assert tolerance_for([torch.ones(2, dtype=torch.int64)]) == 0.0
    assert tolerance_for([torch.ones(1).half(), torch.ones(1)]) == pytest.approx(2e-2)
    assert tolerance_for([None]) is None
