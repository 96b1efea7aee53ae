"""freeze_weights: linear layers that read their own, transposed copies of the weights."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import steelworks
from steelworks.devices.mps import MPSDevice
from steelworks.plans import PlanOptions, _make_plan
from steelworks.plans._frozen import freeze
from steelworks.testing import FakeMPS


class Tied(nn.Module):
    """An embedding whose table is the weight of the last layer, and a layer of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.inner = nn.Linear(6, 6)
        self.special = Doubling(6, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.special(self.inner(self.table(ids))))


class Doubling(nn.Linear):
    """A subclass: what it does with its weight is its own affair."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.view(-1).view(6, 6) * 2


def test_a_frozen_plan_answers_as_the_model_does() -> None:
    model = Tied().eval()
    ids = torch.randint(0, 11, (3, 5))
    made = steelworks.plan(model, ids, padding=None, freeze_weights=True)
    torch.testing.assert_close(made(ids), model(ids))


def test_linear_weights_are_stored_transposed_and_all_else_is_shared() -> None:
    model = Tied()
    twin = freeze(model)
    for name in ("inner", "out"):
        weight = twin.get_submodule(name).weight
        assert weight.t().is_contiguous() and not weight.is_contiguous()
        assert weight.data_ptr() != model.get_submodule(name).weight.data_ptr()
    assert twin.table.weight is model.table.weight
    assert twin.special.weight is model.special.weight
    assert twin.inner.bias is model.inner.bias


def test_the_users_module_is_left_alone() -> None:
    model = Tied()
    before = {name: (tensor.data_ptr(), tensor.stride()) for name, tensor in model.state_dict().items()}
    freeze(model)
    assert {n: (t.data_ptr(), t.stride()) for n, t in model.state_dict().items()} == before
    assert model.out.weight is model.table.weight


def test_a_frozen_queue_does_not_see_later_changes_and_a_plain_one_does() -> None:
    model = nn.Linear(4, 4)
    x = torch.ones(1, 4)
    with torch.no_grad():
        before = model(x)
        with (
            steelworks.BatchQueue(model, freeze_weights=True) as frozen,
            steelworks.BatchQueue(model) as plain,
        ):
            model.weight.add_(1.0)
            torch.testing.assert_close(frozen(x), before)
            torch.testing.assert_close(plain(x), model(x))


def test_with_collate_the_weights_are_frozen_too() -> None:
    model = nn.Linear(4, 4)
    x = torch.ones(4)
    with torch.no_grad():
        before = model(x)
        with steelworks.BatchQueue(model, freeze_weights=True, collate=torch.stack) as queue:
            model.weight.add_(1.0)
            torch.testing.assert_close(queue(x), before)


def test_a_function_can_not_be_frozen() -> None:
    with pytest.raises(ValueError, match=r"needs an nn\.Module, not function"):
        steelworks.plan(lambda x: x, torch.ones(1, 2), freeze_weights=True)


def test_a_module_that_can_not_be_copied_is_refused_with_the_reason() -> None:
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match="can be copied"):
        steelworks.plan(model, torch.ones(1, 2), freeze_weights=True)


def test_freezing_is_refused_off_the_cpu() -> None:
    device = MPSDevice(backend=FakeMPS("2.15.0").torch)
    with pytest.raises(ValueError, match="for the CPU, and the device is mps"):
        _make_plan(nn.Linear(2, 2), None, device, PlanOptions(freeze_weights=True))
