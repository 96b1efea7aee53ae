"""Whether a model is run packed: where that is right and wins, and on a twin of the user's module."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from steelworks import Padding
from steelworks.devices import CPUDevice
from steelworks.plans import _packed, packing
from steelworks.plans.eager import EagerOptions, EagerPlan
from steelworks.plans.inputs import Reading


class Encoder(nn.Module):
    """Honours its mask; notes whether it ran as a twin, and with which weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("scale", torch.full((1,), 2.0))
        self.is_twin = False
        self.ran_as_twin: list[bool] = []  # shared with no twin: deepcopy gives each its own

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        self.ran_as_twin.append(self.is_twin)
        return (input_ids * attention_mask).sum(1, keepdim=True) * self.weight * self.scale


class Packing:
    """In place of the packing package: marks the twin instead of packing it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ok: bool = True) -> None:
        self.installed: list[Any] = []
        self.removed = 0
        self._ok = ok
        monkeypatch.setattr(packing, "install", self._install)
        monkeypatch.setattr(packing, "verify", self._verify)

    def _install(self, module: Any) -> Any:
        self.installed.append(module)
        module.is_twin = True
        return SimpleNamespace(remove=self._remove)

    def _verify(self, *arguments: Any) -> Any:
        return SimpleNamespace(ok=self._ok, reason="its answers differ")

    def _remove(self) -> None:
        self.removed += 1


def measured(monkeypatch: pytest.MonkeyPatch, padded: float, packed: float) -> list[int]:
    """Have the trial give these seconds; how often it was made."""
    trials: list[int] = []

    def fastest(*calls: Any) -> list[float]:
        trials.append(len(calls))
        return [padded, packed]

    monkeypatch.setattr(_packed, "_fastest", fastest)
    return trials


def request(length: int) -> dict[str, torch.Tensor]:
    ids = torch.arange(1, length + 1).reshape(1, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def run_ragged(model: nn.Module, **options: Any) -> EagerPlan:
    """Run two requests of different lengths as one batch, and check their answers."""
    plan = EagerPlan(model, CPUDevice(), EagerOptions(padding=Padding(), **options))
    runner = plan.runner()
    readings = [plan.reader.read(request(n)) for n in (5, 7)]
    for _ in range(2):
        results = runner.finish(runner.launch(readings))
        assert [float(r) for r in results] == [30.0, 56.0]
    return plan


def twins_of(plan: EagerPlan) -> bool:
    return plan.packs(plan.reader.read(request(5)).lane.group)


def test_a_twin_is_used_where_it_is_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, trials = Packing(monkeypatch), measured(monkeypatch, padded=1.0, packed=0.8)
    plan = run_ragged(Encoder())
    assert twins_of(plan)
    assert trials == [2], "measured once"
    (twin,) = fake.installed
    assert twin.ran_as_twin[-1] is True
    assert fake.removed == 0


@pytest.mark.parametrize("packed", [0.99, 1.0, 2.0])
def test_a_twin_that_does_not_win_clearly_is_let_go(monkeypatch: pytest.MonkeyPatch, packed: float) -> None:
    fake = Packing(monkeypatch)
    measured(monkeypatch, padded=1.0, packed=packed)
    model = Encoder()
    plan = run_ragged(model)
    assert not twins_of(plan)
    assert fake.removed == 1
    assert model.ran_as_twin[-1] is False


def test_packing_that_was_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    Packing(monkeypatch)
    trials = measured(monkeypatch, padded=1.0, packed=2.0)
    assert twins_of(run_ragged(Encoder(), packing=True))
    assert trials == []


@pytest.mark.parametrize(
    "options", [{"packing": False}, {"deterministic": True}, {"deterministic": True, "packing": True}]
)
def test_packing_that_was_switched_off_is_not_even_tried(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    fake = Packing(monkeypatch)
    measured(monkeypatch, padded=1.0, packed=0.5)
    plan = run_ragged(Encoder(), **options)
    assert not twins_of(plan)
    assert fake.installed == []


def test_a_twin_that_answers_otherwise_is_let_go_even_where_packing_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = Packing(monkeypatch, ok=False)
    plan = run_ragged(Encoder(), packing=True)
    assert not twins_of(plan)
    assert fake.removed == 1


def test_a_twin_shares_the_weights_and_leaves_the_user_s_module_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake, model = Packing(monkeypatch), Encoder()
    run_ragged(model, packing=True)
    (twin,) = fake.installed
    assert twin is not model
    assert twin.weight is model.weight
    assert twin.scale is model.scale
    assert not model.is_twin


def test_closing_a_plan_lets_its_twins_go(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Packing(monkeypatch)
    plan = run_ragged(Encoder(), packing=True)
    assert fake.removed == 0
    plan.close()
    assert fake.removed == 1


def test_a_module_that_can_not_be_copied_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, model = Packing(monkeypatch), Encoder()
    model.lock = threading.Lock()  # type: ignore[assignment]
    assert not twins_of(run_ragged(model, packing=True))
    assert fake.installed == []


def test_the_trial_takes_the_best_of_several_runs_of_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(_packed, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def taking(seconds: list[float]) -> Any:
        each = iter(seconds)

        def call() -> None:
            now[0] += next(each)

        return call

    runs = _packed._TRIAL_RUNS
    first, second = [5.0, 2.0, 9.0, 4.0], [3.0, 8.0, 7.0, 6.0]
    assert runs == len(first)
    assert _packed._fastest(taking(first), taking(second)) == [2.0, 3.0]


def test_the_trial_has_rows_of_several_lengths_made_of_the_request_s_own_content() -> None:
    plan = EagerPlan(Encoder(), CPUDevice(), EagerOptions(padding=Padding()))
    rows: list[Reading] = _packed._trial(plan.reader.read(request(5)))
    lengths = [one.length for one in rows]
    assert max(lengths) == _packed._TRIAL_LENGTH
    assert len(set(lengths)) > 2
    for one in rows:
        ids, mask = one.leaves
        assert ids.shape == mask.shape == (1, one.length)
        assert ids[0].tolist() == [1 + n % 5 for n in range(one.length)]
