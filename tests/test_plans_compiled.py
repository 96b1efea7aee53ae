"""torch.compile on the CPU: compiled alone, and never at the price of an answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

import steelworks as sw


def double(x: torch.Tensor) -> torch.Tensor:
    if bool((x < 0).any()):
        raise ValueError("negative")
    return x * 2


class Compiler:
    """Stands for torch.compile: notes which shapes were called for the first time by two threads at once."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.overlaps = 0
        self.calls = 0
        self._seen: set[torch.Size] = set()
        self._compiling = threading.Lock()

    def __call__(self, model: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        assert options == {"dynamic": True}

        def compiled(x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.error is not None:
                raise self.error
            if x.shape not in self._seen:
                if not self._compiling.acquire(blocking=False):
                    self.overlaps += 1
                    return model(x)
                self._seen.add(x.shape)
                for _ in range(200):  # long enough for another thread to come in
                    torch.randn(8, 8) @ torch.randn(8, 8)
                self._compiling.release()
            return model(x)

        return compiled


def test_new_shapes_are_compiled_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", compiler)
    wrong: list[int] = []
    with sw.BatchQueue(double, compile=True, num_workers=2) as queue:

        def caller(seed: int) -> None:
            for width in range(1, 30):
                x = torch.ones(1, width * 8 + seed)
                if not torch.equal(queue(x), x * 2):
                    wrong.append(width)

        threads = [threading.Thread(target=caller, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert compiler.calls > 0
    assert compiler.overlaps == 0


def test_a_model_that_cannot_be_compiled_runs_as_it_is_and_says_why_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failure = BackendCompilerFailed("inductor", RuntimeError("no compiler"), None)
    monkeypatch.setattr(torch, "compile", Compiler(failure))
    with caplog.at_level(logging.WARNING, "steelworks.plans"), sw.BatchQueue(double, compile=True) as queue:
        for width in (1, 2, 3):
            assert torch.equal(queue(torch.ones(1, width)), torch.full((1, width), 2.0))
    assert len([r for r in caplog.records if "can't be compiled" in r.getMessage()]) == 1


def test_the_models_own_error_is_not_taken_for_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", compiler)
    with sw.BatchQueue(double, compile=True) as queue:
        with pytest.raises(ValueError, match="negative"):
            queue(-torch.ones(1, 2))
        before = compiler.calls
        assert torch.equal(queue(torch.ones(1, 2)), torch.full((1, 2), 2.0))
        assert compiler.calls > before
