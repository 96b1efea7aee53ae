"""What a request gets from the queue, and which requests share a batch."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from helpers import (
    LONG,
    Held,
    StubPlan,
    assert_values,
    doubled,
    eventually,
    in_thread,
    in_threads,
    outcomes_of,
    row,
    values,
    wait_for_pending,
    watched,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree
from transformers.modeling_outputs import BaseModelOutput

import steelworks as sw
from steelworks.batching._pending import Pending
from steelworks.batching._request import BlockingSink, Request
from steelworks.devices import resolve
from steelworks.errors import InvalidInputError, ModelOutputError
from steelworks.plans.inputs import InputReader, Padding

Pair = namedtuple("Pair", "double half")


# ---------------------------------------------------------------- results


def test_a_call_returns_what_the_model_returns(start: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh()).eval()
    x = torch.randn(1, 16)
    assert torch.equal(start(model)(x), model(x))


def test_a_request_of_several_rows_gets_as_many_rows_back(start: Any) -> None:
    x = torch.arange(12.0).reshape(4, 3)
    assert torch.equal(start(doubled)(x), x * 2)


def test_a_request_larger_than_a_batch_runs_whole(start: Any) -> None:
    model = Held(held=0)
    x = torch.arange(10.0).reshape(10, 1)
    assert torch.equal(start(model, max_batch_size=4)(x), x * 2)
    assert [len(b) for b in model.batches] == [10]


def test_each_neighbour_of_a_batch_gets_its_own_rows(start: Any) -> None:
    model = Held()
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    sizes = [1, 3, 2, 1]
    requests = [
        torch.full((n, 2), float(10 * i)) + torch.arange(n).reshape(n, 1) for i, n in enumerate(sizes)
    ]
    futures = [queue.submit(x) for x in requests]
    model.open()
    first.result(LONG)
    for x, future in zip(requests, futures, strict=True):
        assert torch.equal(future.result(LONG), x * 2)
    assert len(model.batches) == 2


def test_results_carry_no_gradient_even_if_the_weights_do(start: Any) -> None:
    assert not start(nn.Linear(4, 4))(torch.randn(1, 4)).requires_grad
    assert not start(nn.Linear(4, 4), collate=torch.cat)(torch.randn(1, 4)).requires_grad


def test_the_caller_s_tensor_is_not_changed(start: Any) -> None:
    x = torch.randn(2, 4)
    before = x.clone()
    start(doubled)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("request_of", "model"),
    [
        (lambda v: (row(v), row(10 * v)), lambda a, b: a + b),
        (lambda v: [row(v), row(10 * v)], lambda a, b: a + b),
        (lambda v: {"a": row(v), "b": row(10 * v)}, lambda a, b: a + b),
        (lambda v: UserDict({"a": row(v), "b": row(10 * v)}), lambda a, b: a + b),
        (
            lambda v: {"a": row(v), "more": {"b": row(10 * v), "factor": 1}},
            lambda a, more: a + more["b"] * more["factor"],
        ),
        (lambda v: (row(v), (row(10 * v), None)), lambda a, rest: a + rest[0]),
    ],
    ids=["tuple", "list", "dict", "mapping", "nested dict", "nested tuple"],
)
def test_a_request_may_be_any_tree_of_tensors(start: Any, request_of: Any, model: Any) -> None:
    held = Held(model, held=1)
    queue = start(held)
    first = queue.submit(request_of(0))
    held.wait_for_call()
    futures = [queue.submit(request_of(v)) for v in range(1, 5)]
    held.open()
    first.result(LONG)
    assert_values([f.result(LONG) for f in futures], [11 * v for v in range(1, 5)])
    assert [len(b) for b in held.batches] == [1, 4]


def test_requests_with_different_constants_do_not_share_a_batch(start: Any) -> None:
    model = Held(lambda x, times: x * times, held=1)
    queue = start(model)
    first = queue.submit({"x": row(1), "times": 2})
    model.wait_for_call()
    futures = [queue.submit({"x": row(1), "times": t}) for t in (2, 3, 2, 3)]
    model.open()
    first.result(LONG)
    assert_values([f.result(LONG) for f in futures], [2, 3, 2, 3])


@pytest.mark.parametrize(("one", "other"), [(True, 1), (1, 1.0), (0.0, -0.0)])
def test_constants_that_compare_equal_but_differ_are_kept_apart(start: Any, one: Any, other: Any) -> None:
    def model(x: torch.Tensor, flag: object) -> dict[str, Any]:
        return {"x": x, "saw": repr(flag)}

    queue = start(model)
    assert queue({"x": row(1), "flag": one})["saw"] == repr(one)
    assert queue({"x": row(1), "flag": other})["saw"] == repr(other)


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: (x * 2, x / 2),
        lambda x: [x * 2, x / 2],
        lambda x: {"double": x * 2, "half": x / 2},
        lambda x: Pair(x * 2, x / 2),
        lambda x: BaseModelOutput(last_hidden_state=x * 2, hidden_states=(x, x / 2)),
        lambda x: {"dtype": x.dtype, "none": None, "deep": [(x,)]},
    ],
    ids=["tuple", "list", "dict", "namedtuple", "ModelOutput", "nested with constants"],
)
def test_a_result_has_the_structure_of_the_model_s_output(start: Any, answer: Any) -> None:
    model = Held(answer, held=1)
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    futures = [queue.submit(row(v)) for v in range(1, 4)]
    model.open()
    first.result(LONG)
    for v, future in zip(range(1, 4), futures, strict=True):
        result, expected = future.result(LONG), answer(row(v))
        assert type(result) is type(expected)
        got, spec = pytree.tree_flatten(result)
        wanted, wanted_spec = pytree.tree_flatten(expected)
        assert spec == wanted_spec
        for a, b in zip(got, wanted, strict=True):
            assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b
    assert len(model.batches) == 2


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: float(x.sum()),
        lambda x: f"label {x.sum().item():g}",
        lambda x: bool((x > 2).any()),
        lambda x: {"x": x * 2, "confidence": x.max().item()},
        lambda x: (x, 3, "a constant"),
    ],
    ids=["number", "text", "bool", "beside a tensor", "constants"],
)
def test_a_number_or_text_is_never_another_request_s(start: Any, answer: Any) -> None:
    model = Held(answer, held=1)
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    futures = [queue.submit(row(v)) for v in range(1, 5)]
    model.open()
    first.result(LONG)
    for v, future in zip(range(1, 5), futures, strict=True):
        got, expected = (pytree.tree_leaves(y) for y in (future.result(LONG), answer(row(v))))
        assert all(
            torch.equal(torch.as_tensor(a), torch.as_tensor(b)) if not isinstance(b, str) else a == b
            for a, b in zip(got, expected, strict=True)
        )


@pytest.mark.parametrize("output", [(), [], {}, None, "done"])
def test_an_output_without_tensors_reaches_every_neighbour(start: Any, output: Any) -> None:
    model = Held(lambda x: output, held=1)
    queue = start(model)
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures += [queue.submit(row(v)) for v in range(1, 4)]
    model.open()
    assert outcomes_of(futures) == [output] * 4


def test_a_list_with_one_plain_value_a_row_is_cut_like_a_tensor(start: Any) -> None:
    model = Held(lambda x: {"labels": [f"row {int(v)}" for v in values(x)], "x": x}, held=1)
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    futures = [queue.submit(torch.cat([row(v), row(v + 10)])) for v in range(1, 4)]
    model.open()
    first.result(LONG)
    assert [f.result(LONG)["labels"] for f in futures] == [[f"row {v}", f"row {v + 10}"] for v in range(1, 4)]


def test_a_list_of_plain_values_that_is_not_one_a_row_is_never_given_to_the_wrong_request(start: Any) -> None:
    # The whole list belongs to a batch of one request; of several it can't be told apart.
    model = Held(lambda x: ["all", *(f"row {int(v)}" for v in values(x))], held=1)
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    futures = [queue.submit(row(v)) for v in range(1, 4)]
    model.open()
    first.result(LONG)
    assert [f.result(LONG) for f in futures] == [["all", f"row {v}"] for v in range(1, 4)]


def test_an_output_without_rows_is_given_to_a_request_that_ran_alone(start: Any) -> None:
    model = Held(lambda x: {"x": x, "mean": x.mean()}, held=1)
    queue = start(model)
    first = queue.submit(row(0))
    model.wait_for_call()
    futures = [queue.submit(row(v)) for v in range(1, 4)]
    model.open()
    first.result(LONG)
    assert [float(f.result(LONG)["mean"]) for f in futures] == [1, 2, 3]


def test_nan_stays_with_its_own_request(start: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    model = Held(layer, held=1)
    queue = start(model)
    first = queue.submit(torch.zeros(1, 4))
    model.wait_for_call()
    requests = [torch.randn(1, 4) for _ in range(6)]
    requests[2] = torch.full((1, 4), float("nan"))
    requests[4] = torch.full((1, 4), float("inf"))
    futures = [queue.submit(x) for x in requests]
    model.open()
    first.result(LONG)
    results = [f.result(LONG) for f in futures]
    assert results[2].isnan().all()
    assert not results[4].isfinite().any()
    for i in (0, 1, 3, 5):
        torch.testing.assert_close(results[i], layer(requests[i]).detach())


# ---------------------------------------------------------------- which requests share a batch


def test_a_free_worker_runs_a_lone_request_at_once(start: Any) -> None:
    model = Held(held=0)
    queue = start(model, max_batch_size=64)
    for v in range(5):
        queue(row(v))
    assert model.batches == [[v] for v in range(5)]


def test_whatever_waits_when_a_worker_comes_free_is_one_batch(start: Any) -> None:
    model = Held()
    queue = start(model)
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures += [queue.submit(row(v)) for v in range(1, 20)]
    model.open()
    assert_values([f.result(LONG) for f in futures], [2 * v for v in range(20)])
    assert model.batches == [[0], [float(v) for v in range(1, 20)]]


def test_no_batch_has_more_rows_than_max_batch_size(start: Any) -> None:
    model = Held()
    queue = start(model, max_batch_size=8)
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures += [queue.submit(torch.full((n, 1), float(n))) for n in (3, 3, 3, 5, 3, 1, 8, 2)]
    model.open()
    outcomes_of(futures)
    assert max(len(b) for b in model.batches) <= 8
    # In order of arrival, each batch as full as that order allows.
    assert [len(b) for b in model.batches] == [1, 6, 8, 4, 8, 2]


def test_300_queued_singles_run_in_the_order_in_which_they_came(start: Any) -> None:
    model = Held()
    queue = start(model, max_batch_size=7)
    ended: list[float] = []
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures += [queue.submit(row(v)) for v in range(1, 300)]
    for future in futures:
        future.add_done_callback(lambda f: ended.append(values(f.result())[0] / 2))
    model.open()
    assert queue.drain(LONG)
    assert [v for batch in model.batches for v in batch] == [float(v) for v in range(300)]
    assert ended == [float(v) for v in range(300)]


def test_requests_of_different_trailing_shapes_never_share_a_batch(start: Any) -> None:
    shapes: list[torch.Size] = []

    def record(x: torch.Tensor) -> torch.Tensor:
        shapes.append(x.shape)
        return x * 2

    model = Held(record, held=1)
    queue = start(model)
    futures = [queue.submit(row(0, 1))]
    model.wait_for_call()
    futures += [queue.submit(row(v, 1 + v % 3)) for v in range(12)]
    model.open()
    results = [f.result(LONG) for f in futures]
    assert [tuple(r.shape) for r in results[1:]] == [(1, 1 + v % 3) for v in range(12)]
    assert sorted(tuple(s) for s in shapes[1:]) == [(4, 1), (4, 2), (4, 3)]


def test_requests_of_different_dtypes_never_share_a_batch(start: Any) -> None:
    model = Held(held=1)
    queue = start(model)
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    kinds = [torch.float32, torch.float64, torch.int64, torch.float32]
    futures += [queue.submit(row(v + 1).to(kind)) for v, kind in enumerate(kinds)]
    model.open()
    assert [f.result(LONG).dtype for f in futures[1:]] == kinds


def test_a_group_that_keeps_arriving_does_not_starve_another(start: Any) -> None:
    model = Held()
    queue = start(model, max_batch_size=2)
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures += [queue.submit(row(v)) for v in (1, 2)]
    futures.append(queue.submit(row(-1, 2)))
    futures += [queue.submit(row(v)) for v in (3, 4)]
    model.open()
    outcomes_of(futures)
    assert model.batches == [[0], [1, 2], [-1], [3, 4]]


def test_a_worker_leaves_the_other_its_share_of_what_waits(start: Any) -> None:
    model = Held()
    queue = start(model, num_workers=2, max_batch_size=64)
    futures = [queue.submit(row(v)) for v in range(2)]
    model.wait_for_call(2)
    futures += [queue.submit(row(v)) for v in range(2, 10)]
    model.step()
    model.wait_for_call()
    assert len(model.batches[2]) == 5, "8 wait and 1 runs on the other: half of 9"
    model.open()
    assert_values(outcomes_of(futures), [2 * v for v in range(10)])


def test_a_worker_with_two_batches_in_flight_answers_like_one(start: Any) -> None:
    model = Held()
    queue = start(model, depth=2, max_batch_size=4)
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures += [queue.submit(row(v)) for v in range(1, 30)]
    model.open()
    assert_values([f.result(LONG) for f in futures], [2 * v for v in range(30)])


def fewest_seconds(rows: dict[int, int], limit: int, seconds: Any) -> tuple[float, list[set[int]]]:
    """Of all ways to cut the lengths into runs of neighbours, the least total and the ways that reach it."""
    lengths = sorted(rows)
    best, ways = float("inf"), []
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        parts: list[set[int]] = [{lengths[0]}]
        for length, cut in zip(lengths[1:], cuts, strict=True):
            if cut:
                parts.append({length})
            else:
                parts[-1].add(length)
        total = 0.0
        for part in parts:
            waiting = sum(rows[length] for length in part)
            full, rest = divmod(waiting, limit)
            total += full * seconds(limit, max(part)) + (seconds(rest, max(part)) if rest else 0.0)
        if total < best - 1e-9:
            best, ways = total, parts
        elif total < best + 1e-9:
            ways = ways + parts
    return best, ways


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.integers(1, 12), st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 8),
    st.sampled_from(
        [(0.0, 1.0, 0.0), (20.0, 1.0, 0.0), (3.0, 1.0, 0.1), (1000.0, 1.0, 0.0), (1.0, 0.0, 1.0)]
    ),
    st.integers(0, 5),
)
def test_lengths_share_a_batch_where_that_takes_the_least_predicted_time(
    rows: dict[int, int], limit: int, costs: tuple[float, float, float], oldest: int
) -> None:
    def seconds(batch: int, length: int) -> float:
        return costs[0] + costs[1] * batch * length + costs[2] * batch * length**2

    class Plan(StubPlan):
        def predict(self, group: Any, rows: int, length: int) -> float:
            return seconds(rows, length)

        def may_pad(self, group: Any) -> bool:
            return True

    reader, pending = InputReader(Padding(multiple=1)), Pending()
    lengths = sorted(rows)
    first = lengths[oldest % len(lengths)]
    for arrived, length in enumerate(sorted(lengths, key=lambda length: length != first)):
        for _ in range(rows[length]):
            ids = torch.ones(1, length, dtype=torch.long)
            reading = reader.read({"input_ids": ids, "attention_mask": ids})
            pending.add(Request(reading, BlockingSink(), None, arrived, arrived))
    taken = pending.take(Plan(max_batch_size=limit), limit)
    _, ways = fewest_seconds(rows, limit, seconds)
    segments = [part for part in ways if first in part]
    assert taken[0].reading.length == first, "the oldest is always in it"
    assert any({request.reading.length for request in taken} <= part for part in segments)
    full = max(sum(rows[length] for length in part) for part in segments)
    assert len(taken) == min(limit, full) or len(segments) > 1
    assert pending.count == sum(rows.values()) - len(taken)


# ---------------------------------------------------------------- many threads


@pytest.mark.parametrize("callers", [8, 16])
@pytest.mark.parametrize("workers", [1, 2])
def test_threads_with_mixed_shapes_each_get_their_own_answers(start: Any, callers: int, workers: int) -> None:
    queue = start(doubled, num_workers=workers, max_batch_size=8)

    def work(index: int) -> int:
        for i in range(60):
            x = torch.full((1 + i % 3, 1 + (i * 7 + index) % 5), float(1000 * index + i))
            if not torch.equal(queue(x), x * 2):
                return i
        return -1

    assert in_threads(callers, work) == [-1] * callers
    statistics = queue.statistics()
    assert statistics.completed == callers * 60
    assert statistics.rows == sum(1 + i % 3 for i in range(60)) * callers


def test_first_calls_racing_from_all_threads_see_one_group_a_shape(start: Any) -> None:
    for _ in range(10):
        queue = start(doubled, num_workers=2)
        results = in_threads(16, lambda index, queue=queue: queue({"x": row(index, 1 + index % 2)}))
        assert_values(results, [2 * v for v in range(16)])
        assert len(queue.plan.reader._groups) == 2
        queue.close()


def test_the_model_is_never_called_twice_at_once_with_one_worker(start: Any) -> None:
    inside = threading.Lock()

    def model(x: torch.Tensor) -> torch.Tensor:
        assert inside.acquire(blocking=False), "two calls at once"
        try:
            return x * 2
        finally:
            inside.release()

    queue = start(model, max_batch_size=2)
    results = in_threads(8, lambda index: [values(queue(row(index)))[0] for _ in range(40)])
    assert results == [[2.0 * i] * 40 for i in range(8)]


# ---------------------------------------------------------------- inputs that do not fit


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(0, 4), "0 rows"),
        ((torch.zeros(0, 4), torch.zeros(0, 2)), "0 rows"),
        (torch.tensor(1.0), "no batch dimension"),
        ({"a": torch.zeros(1, 2), "b": torch.zeros(2, 2)}, "different row counts"),
        ((torch.zeros(1, 2), torch.zeros(2, 2)), "different row counts"),
        (torch.zeros(1, 4, device="meta"), "meta"),
        ({"x": torch.zeros(1, 4, device="meta")}, "meta"),
        (torch.zeros(2, 2).to_sparse(), "dense"),
        ("a string", "no tensor"),
        (None, "no tensor"),
        ([], "no tensor"),
        ({}, "no tensor"),
        ({1: torch.zeros(1, 2)}, "keys must be strings"),
        ({"x": torch.zeros(1, 2), "sizes": {1, 2}}, "can't be compared"),
    ],
    ids=repr,
)
def test_an_input_that_does_not_fit_is_refused_in_the_caller_s_thread(
    start: Any, bad: Any, words: str
) -> None:
    queue = start(doubled)
    for way in (queue, queue.submit):
        with pytest.raises(InvalidInputError, match=words):
            way(bad)
    assert queue.statistics().accepted == 0
    assert values(queue(row(3))) == [6]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(1, 4, dtype=torch.float64), "torch.float64.*torch.float32"),
        (torch.zeros(1, 4, 1), "3 dimensions"),
        ({"y": torch.zeros(1, 4)}, "the example has"),
        ((torch.zeros(1, 4), torch.zeros(1, 4)), "the example has"),
    ],
    ids=["dtype", "dimensions", "names", "structure"],
)
def test_with_an_example_a_request_unlike_it_is_refused(start: Any, bad: Any, words: str) -> None:
    queue = start(doubled, example=torch.zeros(1, 4))
    for _ in range(2):
        with pytest.raises(InvalidInputError, match=words):
            queue(bad)
    assert torch.equal(queue(row(1, 4)), row(2, 4))


def test_a_wrong_width_fails_with_the_model_s_own_error_and_neighbours_succeed(start: Any) -> None:
    layer = nn.Linear(4, 2)
    model = Held(layer, held=1)
    queue = start(model)
    first = queue.submit(torch.zeros(1, 4))
    model.wait_for_call()
    futures = [queue.submit(torch.zeros(1, 5 if i == 2 else 4)) for i in range(5)]
    model.open()
    first.result(LONG)
    ends = outcomes_of(futures)
    assert isinstance(ends[2], RuntimeError)
    assert "mat1 and mat2" in str(ends[2])
    assert all(isinstance(end, torch.Tensor) for i, end in enumerate(ends) if i != 2)


def test_a_wrong_dtype_fails_with_the_model_s_own_error_and_neighbours_succeed(start: Any) -> None:
    model = Held(nn.Linear(4, 2), held=1)
    queue = start(model)
    first = queue.submit(torch.zeros(1, 4))
    model.wait_for_call()
    futures = [
        queue.submit(torch.zeros(1, 4, dtype=torch.float64 if i == 2 else torch.float32)) for i in range(5)
    ]
    model.open()
    first.result(LONG)
    ends = outcomes_of(futures)
    assert isinstance(ends[2], RuntimeError)
    assert "dtype" in str(ends[2])
    assert all(isinstance(end, torch.Tensor) for i, end in enumerate(ends) if i != 2)


def test_something_that_is_no_model_is_refused(start: Any) -> None:
    with pytest.raises(TypeError, match="can't be called"):
        sw.BatchQueue(3)


# ---------------------------------------------------------------- the example


def test_with_an_example_the_model_has_run_before_the_first_request(start: Any) -> None:
    model = Held(held=0)
    start(model, example=row(7), max_batch_size=4)
    assert [len(batch) for batch in model.batches][-1] == 4
    assert {v for batch in model.batches for v in batch} == {7}


def test_an_example_on_which_the_model_fails_fails_the_constructor_with_the_model_s_error(start: Any) -> None:
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        sw.BatchQueue(nn.Linear(4, 2), example=torch.zeros(1, 5), name="failing")
    for thread in set(threading.enumerate()) - before:
        thread.join(LONG)
        assert not thread.is_alive()


def test_a_system_exit_on_the_example_reaches_the_constructor_and_hangs_nobody() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        sw.BatchQueue(model, example=row(1))


def test_a_worker_that_can_t_be_set_up_fails_the_constructor_and_hangs_nobody() -> None:
    class Broken(sw.devices.CPUDevice):  # type: ignore[name-defined,misc]
        def worker_scope(self, index: int, count: int) -> Any:
            raise OSError("no such core")

    with pytest.raises(OSError, match="no such core"):
        sw.BatchQueue(doubled, device=Broken())


def test_a_model_in_training_mode_is_warned_about(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="steelworks"):
        start(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train())
    assert "training mode" in caplog.text
    assert "'1', a Dropout, answers differently" in caplog.text
    assert "call model.eval() before" in caplog.text


def test_a_class_instead_of_a_model_is_refused_and_told_what_to_pass() -> None:
    with pytest.raises(TypeError, match=r"model is the class ReLU.*pass ReLU\(\.\.\.\) instead"):
        sw.BatchQueue(nn.ReLU)
    with pytest.raises(TypeError, match="model is the class ReLU"):
        sw.plan(nn.ReLU, row(1))


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), resolve("cpu")], ids=["str", "torch", "own"])
def test_one_device_need_not_be_in_a_list(device: Any) -> None:
    with sw.BatchQueue(doubled, devices=device) as queue:
        assert values(queue(row(3))) == [6]


def test_an_empty_list_of_devices_is_refused() -> None:
    with pytest.raises(ValueError, match="devices is empty; name one device or more"):
        sw.BatchQueue(doubled, devices=[])


@pytest.mark.parametrize("unbatched", [False, True])
def test_an_error_of_the_model_says_how_the_request_differs_from_the_example(unbatched: bool) -> None:
    wide, narrow = torch.zeros(1, 4), torch.zeros(1, 3)
    example, other = (wide[0], narrow[0]) if unbatched else (wide, narrow)
    with sw.BatchQueue(nn.Linear(4, 2).eval(), example=example, unbatched=unbatched) as queue:
        with pytest.raises(RuntimeError) as caught:
            queue(other)
        shapes = ("[3]", "[4]") if unbatched else ("[rows, 3]", "[rows, 4]")
        assert "input 'input' has shape {}, the example {}".format(*shapes) in caught.value.__notes__[0]


def test_an_error_of_a_plan_s_model_says_how_the_request_differs_from_the_example() -> None:
    plan = sw.plan(nn.Linear(4, 2).eval(), torch.zeros(1, 4))
    with pytest.raises(RuntimeError) as caught:
        plan(torch.zeros(1, 3))
    assert "has shape [rows, 3], the example [rows, 4]" in caught.value.__notes__[0]


def test_sequences_of_another_length_than_the_example_s_are_not_blamed() -> None:
    def tokens(length: int) -> dict[str, torch.Tensor]:
        ids = torch.ones(1, length, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": ids}

    reader = InputReader(Padding(), expect=tokens(4))
    assert reader.unlike_example(reader.read(tokens(9))) == ""


def test_an_error_of_the_model_says_nothing_of_an_example_that_the_request_is_like() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        if bool((x < 0).any()):
            raise ValueError("negative")
        return x

    with sw.BatchQueue(model, example=row(1)) as queue, pytest.raises(ValueError, match="negative") as caught:
        queue(row(-1))
    assert not hasattr(caught.value, "__notes__")


def test_batch_inference_says_what_it_calls_the_size_of_a_batch() -> None:
    with pytest.raises(TypeError, match="calls max_batch_size batch_size"):
        sw.batch_inference(doubled, max_batch_size=4)


# ------------------------------------------------------------ one example a request, own collate and split


def test_unbatched_requests_and_results_have_no_batch_dimension(start: Any) -> None:
    model = Held(lambda a, b: {"sum": a + b, "a": a}, held=1)
    queue = start(model, unbatched=True)
    first = queue.submit({"a": torch.zeros(3), "b": torch.zeros(3)})
    model.wait_for_call()
    futures = [queue.submit({"a": torch.full((3,), float(v)), "b": torch.ones(3)}) for v in range(1, 4)]
    model.open()
    first.result(LONG)
    for v, future in zip(range(1, 4), futures, strict=True):
        assert torch.equal(future.result(LONG)["sum"], torch.full((3,), v + 1.0))
    assert len(model.batches) == 2


def test_unbatched_scalars_are_single_examples(start: Any) -> None:
    queue = start(doubled, unbatched=True)
    assert torch.equal(queue(torch.tensor(4.0)), torch.tensor(8.0))


def test_collate_and_split_make_the_batch_and_the_results(start: Any) -> None:
    model = Held(held=1)
    queue = start(
        model,
        collate=lambda words: torch.tensor([[float(len(word))] for word in words]),
        split=lambda output, words: [
            f"{word}: {int(v)}" for word, v in zip(words, values(output), strict=True)
        ],
    )
    futures = [queue.submit("a")]
    model.wait_for_call()
    futures += [queue.submit(word) for word in ("bb", "ccc")]
    model.open()
    assert outcomes_of(futures) == ["a: 2", "bb: 4", "ccc: 6"]
    assert model.batches == [[1], [2, 3]]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (doubled, [torch.tensor([2.0]), torch.tensor([4.0])]),
        (lambda x: {"y": x * 2}, [{"y": torch.tensor([2.0])}, {"y": torch.tensor([4.0])}]),
        (lambda x: [str(v) for v in values(x)], ["1.0", "2.0"]),
    ],
    ids=["tensor", "dict", "list"],
)
def test_without_split_result_i_is_output_i(start: Any, answer: Any, expected: Any) -> None:
    model = Held(lambda x: answer(x), held=1)
    queue = start(model, collate=lambda numbers: torch.tensor([[float(n)] for n in numbers]))
    first = queue.submit(0)
    model.wait_for_call()
    futures = [queue.submit(n) for n in (1, 2)]
    model.open()
    first.result(LONG)
    for got, wanted in zip(outcomes_of(futures), expected, strict=True):
        assert str(got) == str(wanted)


def test_a_collate_that_gives_a_mapping_or_a_tuple_spreads_it_over_the_arguments(start: Any) -> None:
    def stack(numbers: list[float]) -> torch.Tensor:
        return torch.tensor([[float(n)] for n in numbers])

    assert float(start(lambda a, b: a - b, collate=lambda n: {"b": stack(n), "a": 3 * stack(n)})(4)) == 8
    assert float(start(lambda a, b: a - b, collate=lambda n: (stack(n), 3 * stack(n)))(4)) == -8


def test_a_split_that_returns_too_few_results_fails_its_requests_with_a_clear_error(start: Any) -> None:
    model = Held(held=1)
    queue = start(
        model, collate=lambda n: torch.tensor([[float(v)] for v in n]), split=lambda out, n: list(out)[:-1]
    )
    futures = [queue.submit(0)]
    model.wait_for_call()
    futures += [queue.submit(v) for v in (1, 2, 3)]
    model.open()
    for end in outcomes_of(futures):
        assert isinstance(end, ModelOutputError)
        assert "0 results for 1 requests" in str(end)


@pytest.mark.parametrize("rows", [0, 2, 5])
def test_without_split_an_output_of_other_rows_than_requests_is_an_error(start: Any, rows: int) -> None:
    queue = start(lambda x: torch.zeros(rows, 1), collate=torch.cat)
    with pytest.raises(ModelOutputError, match="for 1 requests"):
        queue(row(1))


def test_a_request_that_collate_can_t_take_fails_alone(start: Any) -> None:
    model = Held(held=1)
    queue = start(model, collate=lambda n: torch.tensor([[float(v)] for v in n]))
    first = queue.submit(0)
    model.wait_for_call()
    futures = [queue.submit(v) for v in (1, "two", 3)]
    model.open()
    first.result(LONG)
    ends = outcomes_of(futures)
    assert isinstance(ends[1], ValueError)
    assert [float(ends[0]), float(ends[2])] == [2, 6]


def test_split_without_collate_is_refused() -> None:
    with pytest.raises(ValueError, match="without collate"):
        sw.BatchQueue(doubled, split=lambda output, requests: output)


# ---------------------------------------------------------------- plans and the short form


def test_a_plan_may_be_given_as_the_model_and_brings_its_batch_size(start: Any) -> None:
    plan = sw.plan(doubled, row(1), max_batch_size=3)
    queue = start(plan)
    assert queue.options.max_batch_size == 3
    assert values(queue(row(5))) == [10]
    queue.close()
    assert values(plan(row(6))) == [12], "a plan that the queue did not make outlives it"


def test_several_devices_share_the_work_of_one_queue(start: Any) -> None:
    model = Held()
    queue = start(model, devices=["cpu", "cpu"], num_workers=2)
    futures = [queue.submit(row(v)) for v in range(2)]
    model.wait_for_call(2)
    model.open()
    assert_values([f.result(LONG) for f in futures], [0, 2])


def test_each_device_has_workers_and_runners_of_its_own_plan_and_is_warmed_up(start: Any) -> None:
    models = [Held(held=0), Held(held=0)]
    start(models[0], devices=["cpu"], example=row(1))
    queue = start(models[1], devices=["cpu", "cpu"], num_workers=4, example=row(1))
    assert len(models[1].batches) == 2 * len(models[0].batches)
    plans = queue._crew.plans
    assert plans[0] is not plans[1]
    assert {w.index: plans.index(w.plan) for w in queue._crew._workers} == {0: 0, 1: 1, 2: 0, 3: 1}
    eventually(lambda: all(w.runner is not None for w in queue._crew._workers), "the workers are set up")
    assert all(w.runner._plan is w.plan for w in queue._crew._workers)


def test_closing_frees_a_plan_that_the_queue_made_and_no_other(start: Any) -> None:
    closed: list[str] = []
    given = StubPlan()
    given.close = lambda: closed.append("given")  # type: ignore[method-assign]
    start(given).close()
    assert closed == []
    queue = start(doubled)
    queue.plan.close = lambda: closed.append("own")
    queue.close()
    assert closed == ["own"]


def test_batch_inference_of_a_list_gives_a_list_in_order() -> None:
    with sw.batch_inference(doubled, batch_size=4, num_workers=2) as infer:
        assert_values(infer([row(v) for v in range(30)]), [2 * v for v in range(30)])
        assert infer([]) == []


@pytest.mark.parametrize("rows", [1, 4, 5, 11])
def test_batch_inference_of_one_large_input_gives_one_large_output(rows: int) -> None:
    x = torch.arange(2.0 * rows).reshape(rows, 2)
    with sw.batch_inference(lambda a, b: {"sum": a + b, "diff": (a - b,)}, batch_size=4) as infer:
        for request in ((x, 2 * x), {"a": x, "b": 2 * x}, UserDict({"a": x, "b": 2 * x})):
            result = infer(request)
            assert torch.equal(result["sum"], 3 * x)
            assert torch.equal(result["diff"][0], -x)


def test_batch_inference_takes_an_unbatched_tensor_as_one_example() -> None:
    with sw.batch_inference(lambda x: x.sum(1), batch_size=2, unbatched=True) as infer:
        assert float(infer(torch.ones(5))) == 5


def test_batch_inference_raises_what_the_model_raises() -> None:
    with (
        sw.batch_inference(nn.Linear(4, 2), batch_size=2) as infer,
        pytest.raises(RuntimeError, match="mat1"),
    ):
        infer([torch.zeros(1, 4), torch.zeros(1, 5)])


def test_batch_inference_may_be_called_from_many_threads() -> None:
    with sw.batch_inference(doubled, batch_size=4) as infer:
        results = in_threads(8, lambda i: values(infer(torch.full((9, 1), float(i)))))
    assert results == [[2.0 * i] * 9 for i in range(8)]


# ---------------------------------------------------------------- waiting for a batch to fill


def wait_for_gathering(queue: Any, rows: int) -> None:
    """Wait until the worker waits for a batch of ``rows``."""
    scheduler = queue._scheduler
    eventually(lambda: [sleeper.need for sleeper in scheduler._idle] == [rows], "the worker waits for more")


def test_max_wait_fills_a_batch_with_the_requests_that_are_expected(start: Any) -> None:
    model = Held()
    queue = start(model, max_wait=LONG)
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures += [queue.submit(row(v)) for v in range(1, 5)]
    wait_for_pending(queue, 4)
    model.step(2)  # lets [0] and then [1..4] run; four were in flight, so four are expected
    outcomes_of(futures)
    later = []
    for v in range(5, 8):
        later.append(queue.submit(row(v)))
        wait_for_gathering(queue, 4)  # the worker is free, and waits
    later.append(queue.submit(row(8)))
    model.open()
    outcomes_of(later)
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_max_wait_does_not_delay_a_lone_caller(start: Any) -> None:
    queue = start(doubled, max_wait=LONG)
    for v in range(20):
        assert values(queue(row(v))) == [2 * v]


def test_closing_ends_a_wait_for_more(start: Any) -> None:
    model = Held()
    queue = start(model, max_wait=LONG)
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures += [queue.submit(row(v)) for v in range(1, 5)]
    model.step(2)
    outcomes_of(futures)
    future = queue.submit(row(9))
    wait_for_gathering(queue, 4)
    model.open()
    assert queue.close(timeout=LONG / 2)
    assert values(future.result(0)) == [18]


def test_a_wait_for_more_that_was_in_vain_is_not_repeated(start: Any) -> None:
    model = Held()
    queue = start(model, max_wait=0.05)
    futures = [queue.submit(row(0))]
    model.wait_for_call()
    futures += [queue.submit(row(v)) for v in range(1, 5)]
    model.step(2)
    outcomes_of(futures)
    model.open()
    assert values(queue.submit(row(5)).result(LONG)) == [10]  # it was waited for three more, which never came
    assert queue._scheduler._crowd < 2, "fewer are expected now"
    assert values(queue.submit(row(6)).result(LONG)) == [12]
    assert model.batches[2:] == [[5], [6]]


def test_a_worker_never_waits_for_more_than_fits_a_batch(start: Any) -> None:
    model = Held()
    queue = start(model, max_wait=LONG, max_batch_size=2)
    queue._scheduler._crowd = 8.0  # as if eight requests had been in flight lately
    first = queue.submit(row(1))
    wait_for_gathering(queue, 2)
    second = queue.submit(row(2))
    model.open()
    assert_values(outcomes_of([first, second]), [2, 4])
    assert model.batches == [[1, 2]]


def test_an_interrupt_while_others_are_told_loses_no_batch(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a callback of an expired future raises it in the worker that took the batch behind."""
    model = Held()
    queue = start(model)
    futures = [queue.submit(row(1))]
    model.wait_for_call()
    scheduler = queue._scheduler
    take, deliver, skipped_one = scheduler._take, scheduler._deliver, object()
    left = [skipped_one]

    def taking(skipped: list[Any]) -> list[Any]:
        batch: list[Any] = take(skipped)
        if batch and left:
            skipped.append(left.pop())
        return batch

    def delivering(ended: list[Any]) -> None:
        if ended == [skipped_one]:
            deliver([])
            raise KeyboardInterrupt
        deliver(ended)

    monkeypatch.setattr(scheduler, "_take", taking)
    monkeypatch.setattr(scheduler, "_deliver", delivering)
    futures += [queue.submit(row(2)), queue.submit(row(3))]
    model.open()
    assert_values(outcomes_of(futures), [2, 4, 6])
    assert not left, "nothing was interrupted"
    assert queue.drain(LONG)


def test_a_worker_that_waits_for_more_goes_on_when_no_more_may_wait(start: Any) -> None:
    model = Held()
    queue = start(model, max_wait=100 * LONG, max_batch_size=8, max_pending=2)
    queue._scheduler._crowd = 8.0  # as if eight requests had been in flight lately
    first = queue.submit(row(1))
    wait_for_gathering(queue, 8)
    second = queue.submit(row(2))
    model.open()
    assert_values(outcomes_of([first, second]), [2, 4])
    assert model.batches == [[1, 2]]


def test_a_worker_does_not_wait_for_more_where_requests_are_refused(start: Any) -> None:
    model = Held()
    queue = start(model, max_wait=100 * LONG, max_batch_size=8, max_pending=2, overflow="reject")
    futures = [queue.submit(row(1))]
    model.wait_for_call()
    futures += [queue.submit(row(2)), queue.submit(row(3))]
    queue._scheduler._crowd = 8.0
    with pytest.raises(sw.QueueFullError):
        queue.submit(row(4))
    model.open()
    assert_values(outcomes_of(futures), [2, 4, 6])
    assert model.batches == [[1], [2, 3]]


def test_requests_that_came_up_from_behind_max_pending_wake_an_idle_worker(start: Any) -> None:
    model = Held()
    queue = start(model, num_workers=2, max_pending=1)
    eventually(lambda: len(queue._scheduler._idle) == 2, "both workers wait")
    with watched() as steps:
        taking = steps.stop("before", "Take")
        futures = [queue.submit(row(1))]
        taking.wait()
        submitting = in_thread(lambda: queue.submit(row(2)))
        wait_for_pending(queue, 2)
        taking.release()
        model.wait_for_call(2)  # both run at once
    model.open()
    assert_values(outcomes_of([*futures, submitting()]), [2, 4])


def test_workers_note_when_another_one_runs_as_well(start: Any) -> None:
    model = Held()
    queue = start(model, num_workers=2)
    futures = [queue.submit(row(1))]
    model.wait_for_call()
    assert queue._scheduler.alone()
    futures.append(queue.submit(row(2)))
    model.wait_for_call()
    assert not queue._scheduler.alone(), "the cores are shared"
    model.step()
    eventually(lambda: queue._scheduler.alone(), "one of them is through")
    model.open()
    outcomes_of(futures)
    eventually(lambda: not queue._scheduler._busy, "so is the other")


# ---------------------------------------------------------------- odds and ends


def test_a_queue_says_what_it_is(start: Any) -> None:
    queue = start(doubled, name="embedder", max_batch_size=5)
    for word in ("embedder", "open", "cpu", "max_batch_size=5"):
        assert word in repr(queue)
    assert not queue.closed
    queue.close()
    assert queue.closed
    assert "closed" in repr(queue)


def test_threads_carry_the_queue_s_name(start: Any) -> None:
    queue = start(doubled, name="embedder", num_workers=2)
    queue.submit(row(1), deadline=LONG).result(LONG)
    names = {t.name for t in threading.enumerate()}
    assert {"embedder-worker-0", "embedder-worker-1", "embedder-supervisor"} <= names
