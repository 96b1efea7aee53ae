"""accelerate on whole blocks: projections of one x together, activations with the layer before, attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import steelworks
from steelworks import paths
from steelworks.nn import LoRALinear, apply_lora
from steelworks.nn._ahead import AHEAD, APART

torch.set_num_threads(1)
X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    def __init__(self, key_size: int = 8, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.q_proj = nn.Linear(16, 16, bias)
        self.k_proj, self.v_proj = nn.Linear(16, key_size, bias), nn.Linear(16, key_size, bias)

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        known = x if other is None else other
        return torch.cat((self.q_proj(x), self.k_proj(known), self.v_proj(known)), -1)


def steel(run: Any) -> tuple[Any, Any]:
    """The result on our kernels, in metalsim, and what ran."""
    with torch.no_grad(), paths.simulate_metal(), paths.use("steel"), paths.record() as counted:
        result = run()
    return result, counted


@pytest.mark.parametrize("bias", [True, False])
def test_projections_of_one_x_are_one_operation(bias: bool) -> None:
    module = Attention(bias=bias)
    want = module(X)
    steelworks.accelerate(module)
    assert torch.equal(module(X), want)
    got, counted = steel(lambda: module(X))
    assert dict(counted.counts) == {("qkv_linear", "steel"): 1}
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert AHEAD.get() is None


def test_weights_are_read_when_they_are_used() -> None:
    module = Attention()
    steelworks.accelerate(module)
    module(X)
    other = Attention()
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(3)
    module.load_state_dict(other.state_dict())
    assert torch.equal(module(X), other(X))


def test_projections_of_two_tensors_stay_apart_and_are_not_computed_ahead_again() -> None:
    module, twin = Attention(), Attention()
    steelworks.accelerate(module)
    other = X.flip(0)
    assert torch.equal(module(X, other), twin(X, other))
    _, counted = steel(lambda: module(X, other))
    assert dict(counted.counts) == {("linear", "steel"): 3}


def test_an_x_that_is_changed_between_the_projections_counts_as_another() -> None:
    class Odd(Attention):
        def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
            first = self.q_proj(x)
            x.mul_(2)
            return torch.cat((first, self.k_proj(x), self.v_proj(x)), -1)

    module, twin = Odd(), Odd()
    steelworks.accelerate(module)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(module(X.clone()), twin(X.clone()))


def test_hooks_on_a_projection_run_and_undo_forgets() -> None:
    module = Attention()
    report = steelworks.accelerate(module)
    seen: list[torch.Size] = []
    module.k_proj.register_forward_hook(lambda m, a, y: seen.append(y.shape))
    module(X)
    assert seen == [torch.Size((2, 5, 8))]
    module(X, X.flip(0))
    assert APART in module.__dict__
    report.undo()
    assert type(module) is Attention and APART not in module.__dict__


def test_gradients_of_shared_projections_are_the_same() -> None:
    module, twin = Attention(), Attention()
    steelworks.accelerate(module)
    for each in (module, twin):
        each(X).square().sum().backward()
    for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_projection_with_an_adapter_takes_part_no_more() -> None:
    module = Attention()
    steelworks.accelerate(module)
    apply_lora(module, rank=2, targets=["k_proj"])
    assert type(module.k_proj) is LoRALinear
    _, counted = steel(lambda: module(X))
    assert counted.of("qkv_linear", "steel") == 0 and counted.of("lora_linear", "steel") == 1


def test_projections_that_are_not_alike_are_left_alone() -> None:
    module = Attention()
    module.v_proj = nn.Linear(16, 8, bias=False)
    report = steelworks.accelerate(module)
    assert type(module) is Attention
    assert {c.name for c in report.changed} == {"q_proj", "k_proj", "v_proj"}


class Intermediate(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.dense, self.intermediate_act_fn = nn.Linear(16, 24), activation

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.intermediate_act_fn(self.dense(hidden_states))
        return made


@pytest.mark.parametrize("activation", [nn.GELU(), nn.ReLU(), nn.SiLU()])
def test_an_activation_goes_into_the_layer_before_it(activation: nn.Module) -> None:
    module = Intermediate(activation)
    want = module(X)
    report = steelworks.accelerate(module)
    assert "ops.linear with" in str(report)
    assert torch.equal(module(X), want)
    seen: list[Any] = []
    real = steelworks.ops.linear
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steelworks.ops, "linear", lambda *a, **k: seen.append(k) or real(*a, **k))
        got, counted = steel(lambda: module(X))
    assert counted.of("linear", "steel") == 1
    assert seen and seen[0].get("activation") in ("gelu", "relu", "silu")
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


class Halved(nn.GELU):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) / 2


@pytest.mark.parametrize("activation", [nn.GELU(approximate="tanh"), nn.Tanh(), Halved(), nn.LeakyReLU(0.1)])
def test_other_activations_are_left(activation: nn.Module) -> None:
    module = Intermediate(activation)
    want = module(X)
    report = steelworks.accelerate(module)
    assert type(module) is Intermediate
    assert any("not the exact gelu, relu or silu" in c.why for c in report.left)
    torch.testing.assert_close(steel(lambda: module(X))[0], want, rtol=1e-4, atol=1e-4)


def test_a_block_that_does_more_than_its_parts_is_left() -> None:
    class More(Intermediate):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) + 1

    module = More(nn.ReLU())
    want = module(X)
    steelworks.accelerate(module)
    torch.testing.assert_close(steel(lambda: module(X))[0], want, rtol=1e-4, atol=1e-4)


def test_a_hook_on_the_activation_runs() -> None:
    module = Intermediate(nn.ReLU())
    steelworks.accelerate(module)
    seen: list[int] = []
    module.intermediate_act_fn.register_forward_hook(lambda *_: seen.append(1))
    steel(lambda: module(X))
    assert seen == [1]


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    transformers = pytest.importorskip(
        "transformers", reason="the package transformers is in the extra 'demo'"
    )
    torch.manual_seed(3)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    made: nn.Module = transformers.BertModel(config, add_pooling_layer=False).eval()
    return made


def embed(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    made: torch.Tensor = model(ids, attention_mask=mask)[0]
    return made


def test_a_bert_unedited_runs_as_few_operations(bert: nn.Module) -> None:
    model: Any = copy.deepcopy(bert)
    ids = torch.arange(12).view(2, 6)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    report = steelworks.accelerate(model, device="cuda")
    assert model.config._attn_implementation == "steelworks_sdpa"
    with torch.no_grad():
        want = embed(bert, ids, mask)
        assert torch.equal(embed(model, ids, mask), want)
    got, counted = steel(lambda: embed(model, ids, mask))
    assert dict(counted.counts) == {
        ("layer_norm", "steel"): 5,
        ("qkv_linear", "steel"): 2,
        ("attention", "steel"): 2,
        ("linear", "steel"): 6,
    }
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    report.undo()
    assert model.config._attn_implementation == "sdpa"
    assert all(type(a) is type(b) for a, b in zip(model.modules(), bert.modules(), strict=True))


def test_training_goes_through_transformers_own_attention(bert: nn.Module) -> None:
    model: Any = copy.deepcopy(bert)
    ids = torch.arange(12).view(2, 6)
    embed(bert, ids).square().sum().backward()
    steelworks.accelerate(model, device="cuda")
    embed(model, ids).square().sum().backward()
    for ours, theirs in zip(model.parameters(), bert.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    bert.zero_grad(set_to_none=True)


def test_a_configuration_that_others_have_changed_is_not_set_back(bert: nn.Module) -> None:
    model: Any = copy.deepcopy(bert)
    report = steelworks.accelerate(model, device="cuda")
    model.config._attn_implementation = "eager"
    report.undo()
    assert model.config._attn_implementation == "eager"


def test_on_the_cpu_attention_is_not_redirected(bert: nn.Module) -> None:
    model: Any = copy.deepcopy(bert)
    steelworks.accelerate(model)
    assert model.config._attn_implementation == "sdpa"
