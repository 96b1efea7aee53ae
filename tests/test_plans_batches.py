"""Merging requests into a batch, cutting its output, and finding out whether padding is right."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch
from helpers import LONG, Held, StubPlan, in_thread, in_threads, outcomes_of, row, values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

import steelworks as sw
from steelworks import Padding
from steelworks.devices import CPUDevice
from steelworks.errors import InvalidInputError, ModelOutputError
from steelworks.plans import eager
from steelworks.plans.batches import OutputLayout, cut, merge, probe_layout
from steelworks.plans.eager import EagerOptions, EagerPlan
from steelworks.plans.inputs import InputReader, Reading


def tokens(length: int, rows: int = 1, seed: int = 0, **more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(100 * length + seed)
    ids = torch.randint(1, 50, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def readings_of(*requests: Any, **options: Any) -> list[Reading]:
    reader = InputReader(Padding(), **options)
    return [reader.read(request) for request in requests]


# ---------------------------------------------------------------- merge


def test_a_lone_request_is_its_own_batch_without_a_copy() -> None:
    x = torch.randn(2, 3)
    assert merge(readings_of(x))[0] is x


def test_rows_are_stacked_in_order() -> None:
    a, b = torch.randn(1, 3), torch.randn(2, 3)
    assert torch.equal(merge(readings_of(a, b))[0], torch.cat([a, b]))


def test_shorter_sequences_are_padded_at_the_end_and_their_mask_with_zero() -> None:
    short, long = tokens(2), tokens(5, rows=2)
    ids, mask = merge(readings_of(short, long))
    assert ids.shape == mask.shape == (3, 5)
    assert torch.equal(ids[0], torch.cat([short["input_ids"][0], torch.zeros(3, dtype=torch.long)]))
    assert mask.tolist() == [[1, 1, 0, 0, 0], [1] * 5, [1] * 5]
    assert torch.equal(ids[1:], long["input_ids"])


def test_a_length_asked_for_pads_all() -> None:
    ids, mask = merge(readings_of(tokens(2), tokens(3)), length=8)
    assert ids.shape == (2, 8)
    assert mask.sum(1).tolist() == [2, 3]


def test_pad_values_of_the_user_are_used() -> None:
    reader = InputReader(Padding(values={"input_ids": 49}))
    ids, mask = merge([reader.read(tokens(2)), reader.read(tokens(4))])
    assert ids[0, 2:].tolist() == [49, 49]
    assert mask[0].tolist() == [1, 1, 0, 0]


def test_inputs_that_are_no_sequence_are_not_padded() -> None:
    extra = torch.arange(2.0).reshape(1, 2)
    merged = merge(readings_of(tokens(2, extra=extra), tokens(5, extra=extra + 10)))
    assert merged[2].tolist() == [[0, 1], [10, 11]]


def test_missing_rows_repeat_the_last_one() -> None:
    for requests in ((row(1), torch.cat([row(2), row(3)])), (tokens(2), tokens(4, rows=2))):
        merged = merge(readings_of(*requests), rows=8)
        for tensor in merged:
            assert tensor.shape[0] == 8
            assert all(torch.equal(tensor[i], tensor[2]) for i in range(3, 8))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), min_size=1, max_size=6),
    st.integers(0, 12),
    st.integers(0, 20),
    st.booleans(),
)
def test_cutting_undoes_merging(shapes: list[tuple[int, int]], length: int, rows: int, embeds: bool) -> None:
    requests = []
    for i, (n, own) in enumerate(shapes):
        request = tokens(own, rows=n, seed=i)
        if embeds:
            request = {"inputs_embeds": torch.randn(n, own, 2), "attention_mask": request["attention_mask"]}
        requests.append(request)
    readings = readings_of(*requests)
    total, longest = sum(n for n, _ in shapes), max(own for _, own in shapes)
    length, rows = max(length, longest), max(rows, total)
    first, mask = merge(readings, length, rows)
    layout = OutputLayout(((1,), (1,)), padding=True)
    results = cut((first, mask), readings, layout, length, rows=rows)
    for request, (data, own_mask) in zip(requests, results, strict=True):
        assert torch.equal(data, request["inputs_embeds" if embeds else "input_ids"])
        assert torch.equal(own_mask, request["attention_mask"])


# ---------------------------------------------------------------- cut


def test_each_request_gets_its_rows() -> None:
    readings = readings_of(row(1), torch.zeros(3, 1), row(1))
    parts = cut(torch.arange(10.0).reshape(5, 2), readings, None, 0)
    assert [part.tolist() for part in parts] == [[[0, 1]], [[2, 3], [4, 5], [6, 7]], [[8, 9]]]


def test_spare_rows_are_dropped() -> None:
    parts = cut(torch.arange(8.0), readings_of(row(1), row(2)), None, 0, rows=8)
    assert [part.tolist() for part in parts] == [[0], [1]]


@pytest.mark.parametrize("rows", [1, 3])
def test_other_rows_than_the_batch_has_are_an_error_that_names_both(rows: int) -> None:
    with pytest.raises(ModelOutputError, match=rf"shape \[{rows}, 4\] for a batch of 2 rows"):
        cut(torch.zeros(rows, 4), readings_of(row(1), row(2)), None, 0)
    with pytest.raises(ModelOutputError, match="for a batch of 4 rows"):
        cut({"a": torch.zeros(2, 4)}, readings_of(row(1), row(2)), None, 0, rows=4)


def test_results_do_not_share_elements() -> None:
    parts = cut(torch.zeros(3, 2), readings_of(row(1), row(2), row(3)), None, 0)
    parts[1].fill_(7)
    assert [part.sum().item() for part in parts] == [0, 14, 0]


def test_a_list_of_values_is_cut_by_rows_and_spare_ones_are_dropped() -> None:
    readings = readings_of(torch.zeros(2, 1), torch.zeros(1, 1), torch.zeros(2, 1))
    assert cut([1, 2, 3, 4, 5], readings, None, 0) == [[1, 2], [3], [4, 5]]
    assert cut([1, 2, 3, 4, 5, 6, 7, 8], readings, None, 0, rows=8) == [[1, 2], [3], [4, 5]]
    single = readings_of(torch.zeros(1, 1), torch.zeros(1, 1))
    assert cut([1, 2], single, None, 0, unbatched=True) == [1, 2]


def test_only_the_dims_that_grow_are_cut_even_where_others_are_as_long() -> None:
    # An attention map [rows, heads, length, length] of 4 heads at length 4.
    readings = readings_of(tokens(2), tokens(4))
    maps = torch.arange(2.0 * 4 * 4 * 4).reshape(2, 4, 4, 4)
    layout = OutputLayout(((2, 3),), padding=True)
    short, long = cut(maps, readings, layout, 4)
    assert short.shape == (1, 4, 2, 2)
    assert torch.equal(short, maps[:1, :, :2, :2])
    assert torch.equal(long, maps[1:])


def test_unbatched_results_lose_their_first_dim_and_are_cut_in_the_right_one() -> None:
    readings = readings_of(*({name: t[0] for name, t in tokens(n).items()} for n in (2, 5)), unbatched=True)
    states = torch.arange(2.0 * 5 * 3).reshape(2, 5, 3)
    short, long = cut(states, readings, OutputLayout(((1,),), padding=True), 5, unbatched=True)
    assert torch.equal(short, states[0, :2])
    assert torch.equal(long, states[1])


def test_a_number_without_rows_belongs_to_a_lone_request_only() -> None:
    output = {"loss": torch.tensor(3.0), "y": torch.zeros(1, 1)}
    assert float(cut(output, readings_of(row(1)), None, 0)[0]["loss"]) == 3
    for readings, rows in ((readings_of(row(1), row(2)), 0), (readings_of(row(1)), 2)):
        with pytest.raises(ModelOutputError):
            cut({"loss": torch.tensor(3.0)}, readings, None, 0, rows=rows)


def test_an_object_that_may_hold_the_neighbours_data_is_given_to_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Cache:
        pass

    cache = Cache()
    assert cut((row(1), cache), readings_of(row(1)), None, 0)[0][1] is cache
    with caplog.at_level(logging.WARNING, logger="steelworks"):
        for _ in range(3):
            with pytest.raises(ModelOutputError, match="holds a Cache"):
                cut((torch.zeros(2, 1), cache), readings_of(row(1), row(2)), None, 0)
    assert caplog.text.count("requests run one by one") == 1


# ---------------------------------------------------------------- probing


def probe(model: Any, request: Any) -> OutputLayout | None:
    reading = readings_of(request)[0]

    def call(tensors: Any, group: Any) -> Any:
        args, kwargs = group.rebuild(tensors)
        with torch.no_grad():
            return model(*args, **kwargs)

    return probe_layout(call, reading)


def masked_mean(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    mask = attention_mask[..., None].to(inputs_embeds.dtype)
    return (inputs_embeds * mask).sum(1) / mask.sum(1)


def embedded(values_: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"inputs_embeds": values_, "attention_mask": torch.ones(values_.shape[:2], dtype=torch.long)}


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=20,
        attn_implementation="eager",
    )
    return BertModel(config).eval()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 16, 20])
def test_a_transformer_that_honours_its_mask_may_be_padded(bert: nn.Module, length: int) -> None:
    def call(**inputs: torch.Tensor) -> Any:
        output = bert(**inputs, output_attentions=True)
        return output.last_hidden_state, output.pooler_output, output.attentions[0]

    layout = probe(call, tokens(length))
    assert layout is not None
    assert layout.padding
    # [rows, length, 16], [rows, 16], [rows, 4, length, length]; 16 and 4 are lengths here, too.
    assert layout.sequence_dims == ((1,), (), (2, 3))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (lambda inputs_embeds, attention_mask: inputs_embeds.mean(1), torch.randn(1, 6, 4)),
        (lambda inputs_embeds, attention_mask: inputs_embeds.sum(1), torch.randn(1, 6, 4)),
        (lambda inputs_embeds, attention_mask: inputs_embeds.amax(1), torch.rand(1, 6, 4) + 1),
        (lambda inputs_embeds, attention_mask: inputs_embeds.mean(1), torch.zeros(1, 6, 4)),
        (lambda inputs_embeds, attention_mask: inputs_embeds[:, -1], torch.randn(1, 6, 4)),
        (
            lambda inputs_embeds, attention_mask: inputs_embeds.cumsum(1).flip(1).cumsum(1).flip(1),
            torch.randn(1, 6, 4),
        ),
    ],
    ids=["mean", "sum", "max of positive numbers", "mean of zeros", "last position", "both directions"],
)
def test_a_model_that_ignores_its_mask_is_found_out_whatever_the_request(
    model: Any, x: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="steelworks"):
        layout = probe(model, embedded(x))
    assert layout is not None
    assert not layout.padding
    assert "padding is off" in caplog.text


def test_a_model_that_honours_its_mask_may_be_padded_even_where_the_request_is_zeros() -> None:
    layout = probe(masked_mean, embedded(torch.zeros(1, 6, 4)))
    assert layout is not None
    assert layout.padding


def test_a_request_of_nan_leaves_it_open() -> None:
    x = torch.full((1, 6, 4), float("nan"))
    assert probe(masked_mean, embedded(x)) is None
    assert probe(lambda inputs_embeds, attention_mask: inputs_embeds.mean(1), embedded(x)) is None


def test_minus_infinity_in_an_answer_is_an_answer() -> None:
    def logits(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return inputs_embeds[..., 0].masked_fill(attention_mask == 0, float("-inf"))

    layout = probe(logits, embedded(torch.randn(1, 6, 4)))
    assert layout == OutputLayout(((1,),), padding=True)


def test_minus_infinity_does_not_hide_that_the_mask_is_ignored() -> None:
    def model(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        answer = inputs_embeds.mean(1)  # over the padding too
        answer[:, 0] = float("-inf")
        return answer

    layout = probe(model, embedded(torch.ones(1, 6, 4)))
    assert layout is not None
    assert not layout.padding


@pytest.mark.parametrize(
    "model",
    [
        lambda inputs_embeds, attention_mask: inputs_embeds.repeat_interleave(2, 1),
        lambda inputs_embeds, attention_mask: torch.cat([inputs_embeds[:, :1], inputs_embeds], 1),
        lambda inputs_embeds, attention_mask: inputs_embeds.flatten(1),
        lambda inputs_embeds, attention_mask: inputs_embeds.flatten(0, 1),
        lambda inputs_embeds, attention_mask: tuple(inputs_embeds.unbind(1)),
    ],
    ids=["twice as long", "one longer", "flattened", "rows flattened", "one output a position"],
)
def test_an_output_that_can_t_be_cut_back_to_the_length_turns_padding_off(model: Any) -> None:
    layout = probe(model, embedded(torch.ones(1, 6, 4)))
    assert layout is not None
    assert not layout.padding


def test_a_model_that_takes_certain_lengths_only_is_not_padded(caplog: pytest.LogCaptureFixture) -> None:
    def blocks(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return masked_mean(inputs_embeds.reshape(len(inputs_embeds), -1, 8, 4).flatten(1, 2), attention_mask)

    with caplog.at_level(logging.WARNING, logger="steelworks"):
        layout = probe(blocks, embedded(torch.randn(1, 16, 4)))
    assert layout is not None
    assert not layout.padding
    assert "raises RuntimeError" in caplog.text


def test_a_request_on_which_the_model_fails_decides_nothing() -> None:
    def refuse(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("this request")

    with pytest.raises(ArithmeticError):
        probe(refuse, embedded(torch.randn(1, 6, 4)))


def test_ids_that_the_request_does_not_have_are_never_fed_to_the_model() -> None:
    seen: set[int] = set()

    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        seen.update(input_ids.flatten().tolist())
        return attention_mask.float()

    request = tokens(9)
    probe(model, request)
    assert seen <= {0, *request["input_ids"].flatten().tolist()}, "another id may be past the embedding's end"


# ---------------------------------------------------------------- through the queue


def together(start: Any, model: Any, requests: list[Any], **options: Any) -> tuple[list[Any], Held, Any]:
    """Have ``requests`` run as one batch, if they may."""
    held = Held(model, held=1)
    queue = start(held, **options)
    first = queue.submit(requests[0])
    held.wait_for_call()
    futures = [queue.submit(request) for request in requests]
    held.open()
    first.result(LONG)
    return outcomes_of(futures), held, queue


@pytest.mark.parametrize("packing", [None, False])
def test_requests_of_different_lengths_share_a_batch_and_get_their_own_lengths_back(
    start: Any, bert: nn.Module, packing: bool | None
) -> None:
    requests = [tokens(n, rows=1 + n % 2, seed=n) for n in (5, 2, 16, 9, 20, 1)]
    results, _held, queue = together(start, bert, requests, packing=packing)
    for request, result in zip(requests, results, strict=True):
        with torch.no_grad():
            alone = bert(**request)
        assert result.last_hidden_state.shape == alone.last_hidden_state.shape
        torch.testing.assert_close(result.last_hidden_state, alone.last_hidden_state, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(result.pooler_output, alone.pooler_output, rtol=1e-4, atol=1e-5)
    assert queue.statistics().batch_rows.mean > 1.5


def test_a_decoder_s_states_are_padded_and_cut_back(start: Any) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    model = GPT2Model(config).eval()
    requests = [tokens(n, seed=n) for n in (5, 2, 9, 7)]
    results, _, queue = together(
        start, lambda **inputs: model(**inputs, use_cache=False).last_hidden_state, requests
    )
    for request, result in zip(requests, results, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(result, model(**request).last_hidden_state, rtol=1e-4, atol=1e-5)
    assert queue.statistics().retries == 0


def test_a_decoder_s_cache_is_its_own_request_s_only(start: Any) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=16, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    model = GPT2Model(config).eval()
    requests = [tokens(4, seed=n) for n in range(4)]
    results, _, _ = together(start, model, requests)
    for result in results:
        assert result.past_key_values.layers[0].keys.shape[0] == 1, "no neighbour's keys in it"


def test_a_model_that_ignores_its_mask_is_not_padded_and_answers_right(start: Any) -> None:
    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return input_ids.double().mean(1)

    requests = [tokens(n, seed=n) for n in (5, 2, 9, 5, 7, 2)]
    results, _, _ = together(start, model, requests)
    for request, result in zip(requests, results, strict=True):
        assert torch.equal(result, request["input_ids"].double().mean(1))


def test_a_model_that_ignores_its_mask_is_probed_once_and_runs_equal_lengths_together(start: Any) -> None:
    held = Held(lambda input_ids, attention_mask: input_ids.double().mean(1), held=0)
    queue = start(held)
    list(queue.map([tokens(n, seed=n) for n in (3, 4, 5, 6)]))
    before = len(held.batches)
    results = list(queue.map([tokens(4 + n % 2, seed=n) for n in range(32)]))
    assert len(results) == 32
    assert len(held.batches) - before <= 4


def test_a_first_request_of_nan_does_not_settle_the_question(start: Any) -> None:
    # With NaN in it, a model that ignores its mask looks as if it honoured it.
    def model(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return inputs_embeds.mean(1)

    requests = [embedded(torch.randn(1, n, 4)) for n in (3, 4, 5, 6)]
    requests[0] = embedded(torch.full((1, 3, 4), float("nan")))
    for _ in range(2):
        results, _, _ = together(start, model, requests)
        assert results[0].isnan().all()
        for request, result in zip(requests[1:], results[1:], strict=True):
            torch.testing.assert_close(result, request["inputs_embeds"].mean(1))


def test_a_model_that_answers_nan_to_everything_is_not_probed_forever(start: Any) -> None:
    held = Held(lambda inputs_embeds, attention_mask: inputs_embeds.mean(1) * float("nan"), held=0)
    queue = start(held, max_batch_size=4)
    for _ in range(3):
        list(queue.map([embedded(torch.randn(1, 3 + n % 3, 4)) for n in range(16)]))
    before = len(held.batches)
    list(queue.map([embedded(torch.randn(1, 3 + n % 3, 4)) for n in range(16)]))
    assert len(held.batches) - before <= 16


def test_a_poisonous_first_request_does_not_turn_padding_off(start: Any) -> None:
    def model(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if (inputs_embeds > 1e5).any():
            raise ArithmeticError
        return masked_mean(inputs_embeds, attention_mask)

    requests = [embedded(torch.randn(1, n, 4)) for n in (3, 4, 5, 6)]
    requests[0] = embedded(torch.full((1, 3, 4), 1e6))
    held = Held(model, held=0)
    queue = start(held)
    ends = list(queue.map(requests, return_exceptions=True))
    assert isinstance(ends[0], ArithmeticError)
    assert all(isinstance(end, torch.Tensor) for end in ends[1:])
    list(queue.map([embedded(torch.randn(1, n, 4)) for n in (3, 4)]))
    before = len(held.batches)
    list(queue.map([embedded(torch.randn(1, 3 + n % 4, 4)) for n in range(16)]))
    assert len(held.batches) - before <= 4, "lengths share batches"


def test_without_padding_lengths_do_not_share_batches(start: Any) -> None:
    results, held, _ = together(
        start, masked_mean, [embedded(torch.ones(1, n, 1)) for n in (3, 4, 3)], padding=None
    )
    assert [values(r) for r in results] == [[1], [1], [1]]
    assert sorted(len(batch) for batch in held.batches[1:]) == [1, 2]


def test_names_of_one_s_own_may_be_padded(start: Any) -> None:
    padding = Padding(inputs=("signal",), mask="valid")

    def model(signal: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return signal * valid

    requests = [{"signal": torch.randn(1, n), "valid": torch.ones(1, n)} for n in (3, 5, 4)]
    results, _, queue = together(start, model, requests, padding=padding)
    for request, result in zip(requests, results, strict=True):
        assert torch.equal(result, request["signal"])
    assert queue.statistics().batches == 2


def test_unbatched_requests_of_different_lengths_share_a_batch(start: Any) -> None:
    requests = [{name: tensor[0] for name, tensor in tokens(n, seed=n).items()} for n in (3, 6, 4)]
    results, _, _ = together(
        start, lambda input_ids, attention_mask: input_ids * attention_mask, requests, unbatched=True
    )
    for request, result in zip(requests, results, strict=True):
        assert torch.equal(result, request["input_ids"])


def test_a_plan_called_directly_joins_the_runs_of_a_large_request() -> None:
    plan = sw.plan(nn.Linear(3, 2), torch.zeros(1, 3), max_batch_size=4)
    x = torch.randn(11, 3)
    torch.testing.assert_close(plan(x), plan.model(x).detach())
    assert plan(x[:2]).shape == (2, 2)
    plan.close()


def test_an_output_without_rows_of_a_large_request_is_an_error_that_says_what_to_do() -> None:
    plan = EagerPlan(lambda x: x.sum(), CPUDevice(), EagerOptions(max_batch_size=2))
    assert float(plan(torch.ones(2, 1))) == 2.0
    with pytest.raises(InvalidInputError, match="send smaller requests"):
        plan(torch.ones(3, 1))


def test_a_plan_makes_one_runner_for_its_callers_and_closes_it() -> None:
    plan = StubPlan()
    made: list[Any] = []
    make = plan.runner

    def runner(depth: int = 1) -> Any:
        made.append(make(depth))
        made[-1].close = lambda: closed.append(made[-1])
        return made[-1]

    closed: list[Any] = []
    plan.runner = runner  # type: ignore[method-assign]
    for v in range(3):
        assert values(plan(row(v))) == [2.0 * v]
    assert len(made) == 1
    plan.close()
    plan.close()
    assert closed == made
    assert values(plan(row(1))) == [2.0], "a later call makes another one"
    assert len(made) == 2


def test_callers_of_a_plan_take_turns_with_its_runner() -> None:
    entered, overlapped = threading.Event(), threading.Event()
    inside = threading.Lock()

    def launch(batch: list[float]) -> None:
        if not inside.acquire(blocking=False):
            overlapped.set()
            return
        entered.set()
        overlapped.wait(0.2)  # time enough for the other one to come in, if it may
        inside.release()

    plan = StubPlan(launch)
    first = in_thread(lambda: values(plan(row(1))))
    assert entered.wait(LONG)
    second = in_thread(lambda: values(plan(row(2))))
    assert (first(), second()) == ([2.0], [4.0])
    assert not overlapped.is_set()


class NotingLock:
    """A lock that tells how many threads have come to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.came = threading.Semaphore(0)

    def __enter__(self) -> None:
        self.came.release()
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def test_a_group_is_probed_once_though_several_threads_meet_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = EagerPlan(masked_mean, CPUDevice(), EagerOptions(padding=Padding(inputs=("inputs_embeds",))))
    lock = NotingLock()
    monkeypatch.setattr(plan, "_learning", lock)
    probes: list[Reading] = []

    def probing(call: Any, reading: Reading) -> Any:
        probes.append(reading)
        if len(probes) == 1:
            for _ in range(2):
                assert lock.came.acquire(timeout=LONG), "the other thread does not come"
        return probe_layout(call, reading)

    monkeypatch.setattr(eager, "probe_layout", probing)
    reading = plan.reader.read(embedded(torch.randn(1, 6, 4)))
    layouts = in_threads(2, lambda index: plan.layout(reading))
    assert layouts[0] is layouts[1]
    assert len(probes) == 1


def test_lanes_are_mixed_until_padding_is_found_to_change_the_answers() -> None:
    def ignoring(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return inputs_embeds.mean(1)

    for model, mixes in ((masked_mean, True), (ignoring, False)):
        plan = EagerPlan(model, CPUDevice(), EagerOptions(padding=Padding(inputs=("inputs_embeds",))))
        reading = plan.reader.read(embedded(torch.randn(1, 6, 4)))
        assert plan.may_pad(reading.lane.group)
        plan.layout(reading)
        assert plan.may_pad(reading.lane.group) is mixes
        assert not plan.may_pad(plan.reader.read(row(1)).lane.group), "there is nothing to pad"


@pytest.mark.parametrize(("deterministic", "seen"), [(False, (3, 6)), (True, (4, 8))])
def test_costs_are_noted_for_the_rows_and_the_length_that_ran(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool, seen: tuple[int, int]
) -> None:
    observed: list[tuple[int, int]] = []
    monkeypatch.setattr(
        eager.FittedCost, "observe", lambda self, rows, length, seconds: observed.append((rows, length))
    )
    options = EagerOptions(padding=Padding(inputs=("inputs_embeds",)), deterministic=deterministic)
    plan = EagerPlan(masked_mean, CPUDevice(), options)
    runner = plan.runner()
    runner.finish(runner.launch([plan.reader.read(embedded(torch.randn(1, n, 4))) for n in (5, 6, 5)]))
    assert observed == [seen]


def test_requests_that_must_not_be_padded_get_their_own_answers_from_one_launch() -> None:
    def ignoring(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return inputs_embeds.mean(1)

    plan = EagerPlan(ignoring, CPUDevice(), EagerOptions(padding=Padding(inputs=("inputs_embeds",))))
    requests = [embedded(torch.randn(1, n, 4)) for n in (5, 7, 5, 6, 7, 5)]
    runner = plan.runner()
    results = runner.finish(runner.launch([plan.reader.read(request) for request in requests]))
    for request, result in zip(requests, results, strict=True):
        torch.testing.assert_close(result, ignoring(**request))


def test_a_plan_may_be_called_from_many_threads() -> None:
    plan = sw.plan(lambda x: x * 2, row(0), max_batch_size=2)
    results = in_threads(8, lambda index: [values(plan(torch.full((5, 1), float(index)))) for _ in range(20)])
    assert results == [[[2.0 * n] * 5] * 20 for n in range(8)]
