"""Captured plans: run on an NVIDIA GPU (`pytest -m cuda`)."""

from __future__ import annotations

import gc
import logging
import threading
from typing import Any

import pytest
import torch
from torch import nn

import steelworks as sw

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


class Masked(nn.Module):
    """Token states [B, L, 16] and their mean over the mask [B, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 16)
        self.linear = nn.Linear(16, 16)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.linear(self.embedding(input_ids))
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return {"states": states, "mean": (states * mask).sum(1) / mask.sum(1)}


@pytest.fixture
def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval().cuda()


def answer(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x.cuda()).cpu()


def tokens(length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 100, (1, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a.float(), b.float(), atol=1e-4, rtol=1e-4)


def test_a_plan_answers_like_its_model_for_every_number_of_rows(mlp: nn.Module) -> None:
    plan = sw.plan(mlp, torch.randn(1, 8), batch_sizes=[1, 3, 8])
    for rows in range(1, 20):
        x = torch.randn(rows, 8)
        result = plan(x)
        assert result.shape == (rows, 4)
        assert close(result, answer(mlp, x))


def test_a_plan_chooses_captured_sizes_by_their_times(mlp: nn.Module) -> None:
    plan = sw.plan(mlp, torch.randn(1, 8), batch_sizes=[1, 4, 16])
    plan(torch.randn(1, 8))
    group = next(iter(plan.reader._groups.values()))
    runs = group.state[("table", 0)].best(16).runs
    assert sum(runs) >= 16
    assert set(runs) <= {1, 4, 16}


def test_requests_of_other_lengths_are_padded_and_cut_back() -> None:
    torch.manual_seed(0)
    model = Masked().eval().cuda()
    with sw.BatchQueue(model, max_batch_size=8, example=tokens(12), lengths=[8, 16]) as queue:
        requests = [
            tokens(length) for length in (1, 5, 8, 9, 16, 3, 16, 7, 20, 33)
        ]  # the last two: not captured
        for request, result in zip(requests, queue.map(requests), strict=True):
            with torch.no_grad():
                wanted = model(**{name: t.cuda() for name, t in request.items()})
            assert result["states"].shape == wanted["states"].shape
            assert close(result["states"], wanted["states"].cpu())
            assert close(result["mean"], wanted["mean"].cpu())


def test_a_model_that_cannot_be_captured_runs_as_it_is_and_says_why_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Peeking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale * (2.0 if float(x.sum()) > 0 else 3.0)

    model = Peeking().cuda()
    with (
        caplog.at_level(logging.WARNING, "steelworks.plans"),
        sw.BatchQueue(model, max_batch_size=1, example=torch.ones(1, 4)) as queue,
    ):
        assert torch.equal(queue(torch.ones(1, 4)), torch.full((1, 4), 2.0))
        assert torch.equal(queue(-torch.ones(1, 4)), torch.full((1, 4), -3.0))
    assert len([r for r in caplog.records if "can't be captured" in r.getMessage()]) == 1


def test_results_stay_as_they_are_while_later_batches_run(mlp: nn.Module) -> None:
    with sw.BatchQueue(mlp, max_batch_size=4, example=torch.randn(1, 8)) as queue:
        xs = [torch.randn(1, 8) for _ in range(200)]
        results = list(queue.map(xs)) + [queue(x) for x in xs]
        for x, result in zip(xs + xs, results, strict=True):
            assert close(result, answer(mlp, x))


@pytest.mark.parametrize("express", [0, 1, 8])
def test_16_threads_with_mixed_row_counts_get_their_own_answers(mlp: nn.Module, express: int) -> None:
    wrong: list[Any] = []
    with sw.BatchQueue(mlp, max_batch_size=8, example=torch.randn(1, 8), express=express) as queue:

        def caller(seed: int) -> None:
            generator = torch.Generator().manual_seed(seed)
            for turn in range(50):
                x = torch.randn(1 + (turn + seed) % 4, 8, generator=generator)
                if not close(queue(x), answer(mlp, x)):
                    wrong.append((seed, turn))

        threads = [threading.Thread(target=caller, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statistics = queue.statistics()
    assert not wrong
    assert statistics.accepted == statistics.completed == 16 * 50


def test_map_and_blocking_callers_share_a_queue(mlp: nn.Module) -> None:
    with sw.BatchQueue(mlp, max_batch_size=16, example=torch.randn(1, 8), express=0) as queue:
        x = torch.randn(1, 8)
        wanted = answer(mlp, x)
        right: list[bool] = []
        thread = threading.Thread(target=lambda: right.extend(close(queue(x), wanted) for _ in range(50)))
        thread.start()
        xs = [torch.randn(1, 8) for _ in range(2000)]
        assert all(close(y, answer(mlp, x)) for x, y in zip(xs, queue.map(xs), strict=True))
        thread.join()
    assert right == [True] * 50


def test_a_suspended_map_does_not_hold_up_other_callers(mlp: nn.Module) -> None:
    with sw.BatchQueue(mlp, max_batch_size=4, example=torch.randn(1, 8), express=0) as queue:
        results = queue.map(torch.randn(1, 8) for _ in range(100))
        next(results)
        x = torch.randn(1, 8)
        assert close(queue(x), answer(mlp, x))
        assert queue.drain(timeout=30)
        assert sum(1 for _ in results) == 99


def test_the_callers_current_stream_is_left_alone(mlp: nn.Module) -> None:
    stream = torch.cuda.Stream()
    with sw.BatchQueue(mlp, max_batch_size=4, example=torch.randn(1, 8)) as queue, torch.cuda.stream(stream):
        queue(torch.randn(1, 8))
        list(queue.map([torch.randn(1, 8)] * 20))
        assert torch.cuda.current_stream() == stream


def test_an_input_that_needs_grad_is_served(mlp: nn.Module) -> None:
    with sw.BatchQueue(mlp, max_batch_size=4, example=torch.randn(1, 8)) as queue:
        queue(torch.randn(1, 8))
        x = torch.randn(1, 8, requires_grad=True)
        assert close(queue(x), answer(mlp, x.detach()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_served(mlp: nn.Module, dtype: torch.dtype) -> None:
    model = mlp.to(dtype)
    with sw.BatchQueue(model, max_batch_size=4, example=torch.randn(1, 8, dtype=dtype)) as queue:
        xs = [torch.randn(1, 8, dtype=dtype) for _ in range(20)]
        for x, result in zip(xs, queue.map(xs), strict=True):
            assert result.dtype == dtype
            assert torch.allclose(result.float(), answer(model, x).float(), atol=2e-2, rtol=2e-2)
        assert torch.allclose(queue(xs[0]).float(), answer(model, xs[0]).float(), atol=2e-2, rtol=2e-2)


def test_several_workers_have_graphs_of_their_own(mlp: nn.Module) -> None:
    with sw.BatchQueue(mlp, max_batch_size=4, example=torch.randn(1, 8), num_workers=3, express=0) as queue:
        xs = [torch.randn(1, 8) for _ in range(500)]
        futures = [queue.submit(x) for x in xs]
        assert all(close(f.result(), answer(mlp, x)) for f, x in zip(futures, xs, strict=True))


def test_without_an_example_the_first_request_is_captured(mlp: nn.Module) -> None:
    with sw.BatchQueue(mlp, max_batch_size=4) as queue:
        for rows in (1, 2, 4):
            x = torch.randn(rows, 8)
            assert close(queue(x), answer(mlp, x))
        group = next(iter(queue.plan.reader._groups.values()))
        assert ("table", 0) in group.state


def test_nan_stays_with_its_own_request(mlp: nn.Module) -> None:
    with sw.BatchQueue(mlp, max_batch_size=8, example=torch.randn(1, 8)) as queue:
        xs = [torch.randn(1, 8) for _ in range(40)]
        xs[7] = torch.full((1, 8), float("nan"))
        results = list(queue.map(xs))
        assert results[7].isnan().all()
        assert all(close(results[i], answer(mlp, xs[i])) for i in range(40) if i != 7)


def test_deterministic_results_have_the_same_bits_alone_and_in_company(mlp: nn.Module) -> None:
    with sw.BatchQueue(mlp, max_batch_size=16, example=torch.randn(1, 8), deterministic=True) as queue:
        xs = [torch.randn(1, 8) for _ in range(64)]
        alone = [queue(x) for x in xs]
        assert all(torch.equal(a, b) for a, b in zip(alone, queue.map(xs), strict=True))


def test_closing_gives_the_memory_back(mlp: nn.Module) -> None:
    def once() -> int:
        with sw.BatchQueue(mlp, max_batch_size=64, example=torch.randn(1, 8)) as queue:
            queue(torch.randn(1, 8))
        del queue
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    # cuBLAS keeps a workspace for each stream it has met: the next queue gets the streams of the last.
    for _ in range(3):
        first = once()
    for _ in range(12):
        last = once()
    assert last <= first + (4 << 20)
