"""LoRALinear, apply_lora and remove_lora."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

import steelworks
from steelworks.errors import InvalidInputError
from steelworks.nn import LoRALinear, apply_lora, remove_lora

torch.set_num_threads(1)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 5))


def filled(linear: nn.Linear, rank: int = 4, **options: Any) -> LoRALinear:
    """With a B that is not zero."""
    layer = LoRALinear(linear, rank, **options)
    nn.init.normal_(layer.lora_b)
    return layer


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.detach().view(torch.int32).clone()


def test_a_new_layer_computes_what_the_linear_layer_does() -> None:
    linear = nn.Linear(12, 5)
    x = torch.randn(3, 12)
    torch.testing.assert_close(LoRALinear(linear, 4)(x), linear(x))


@pytest.mark.parametrize("bias", [True, False])
def test_the_result_is_the_formula(bias: bool) -> None:
    layer = filled(nn.Linear(12, 5, bias=bias), rank=3, alpha=6)
    x = torch.randn(2, 7, 12)
    want = layer.linear(x) + 2 * (x @ layer.lora_a.T) @ layer.lora_b.T
    torch.testing.assert_close(layer(x), want)


def test_gradients_reach_a_and_b_and_equal_those_of_the_formula() -> None:
    layer = filled(nn.Linear(12, 5), alpha=3)
    x = torch.randn(6, 12)
    layer(x).square().sum().backward()
    got = layer.lora_a.grad, layer.lora_b.grad
    want = torch.autograd.grad(
        (layer.linear(x) + layer.scale * (x @ layer.lora_a.T) @ layer.lora_b.T).square().sum(),
        (layer.lora_a, layer.lora_b),
    )
    torch.testing.assert_close(got, want)


def test_merge_keeps_the_result_and_unmerge_gives_back_the_very_bits() -> None:
    layer = filled(nn.Linear(12, 5)).eval()
    x = torch.randn(3, 12)
    before, want = bits(layer.linear.weight), layer(x)
    layer.merge()
    assert layer.merged
    assert not torch.equal(layer.weight, layer.linear.weight)
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(nn.functional.linear(x, layer.weight, layer.bias), want)
    layer.unmerge()
    assert torch.equal(bits(layer.weight), before)
    assert torch.equal(layer(x), want)


def test_bfloat16_is_merged_with_one_rounding_and_unmerged_exactly() -> None:
    layer = filled(nn.Linear(64, 32).bfloat16())
    before = layer.linear.weight.detach().clone()
    layer.merge()
    exact = before.double() + layer.scale * layer.lora_b.double() @ layer.lora_a.double()
    # float32 sums may fall on the other side of a tie; one rounding is within half a step of bfloat16 and a little.
    assert ((layer.weight.double() - exact).abs() <= exact.abs() * 2**-8 * 1.001 + 1e-6).all()
    layer.unmerge()
    assert torch.equal(layer.weight, before)


def test_merging_leaves_a_tied_weight_and_the_state_dict_alone() -> None:
    layer = filled(nn.Linear(12, 5))
    tied = layer.linear.weight
    before = copy.deepcopy(layer.state_dict())
    layer.merge()
    assert layer.linear.weight is tied
    torch.testing.assert_close(dict(layer.state_dict()), dict(before), rtol=0, atol=0)


def test_loading_into_a_merged_layer_merges_what_was_loaded() -> None:
    one, two = filled(nn.Linear(12, 5)), filled(nn.Linear(12, 5))
    model = nn.Sequential(one)
    one.merge()
    model.load_state_dict(nn.Sequential(two).state_dict())
    two.merge()
    assert one.merged
    assert torch.equal(one.weight, two.weight)


def test_a_merged_layer_refuses_to_train() -> None:
    layer = filled(nn.Linear(12, 5)).train()
    layer.merge()
    with pytest.raises(InvalidInputError, match=r"unmerge\(\)"):
        layer(torch.randn(2, 12))
    layer.eval()(torch.randn(2, 12))


def test_dropout_acts_in_training_on_the_low_rank_part_only() -> None:
    layer = filled(nn.Linear(12, 5), dropout=0.5).train()
    x = torch.randn(3, 12)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    nn.init.zeros_(layer.lora_b)
    layer.train()
    torch.testing.assert_close(layer(x), layer.linear(x))


@pytest.mark.parametrize("rank", [0, -1, 1.5, True, "8"])
def test_a_rank_that_is_no_whole_number_from_1_is_refused(rank: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"rank is {rank!r}; a whole number from 1"):
        LoRALinear(nn.Linear(4, 4), rank)


@pytest.mark.parametrize(
    "options", [{"dropout": 1.0}, {"dropout": -0.1}, {"alpha": float("nan")}, {"alpha": "1"}]
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InvalidInputError, match=f"{name} is .*; a number from 0"):
        LoRALinear(nn.Linear(4, 4), 2, **options)


def hooked() -> nn.Linear:
    linear = nn.Linear(4, 4)
    linear.register_forward_hook(lambda *_: None)
    return linear


class Doubling(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (hooked, "hooks"),
        (lambda: Doubling(4, 4), "Doubling"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "ParametrizedLinear"),
        (lambda: nn.Conv1d(4, 4, 1), "Conv1d"),
        (lambda: torch.zeros(4, 4), "Tensor"),
    ],
)
def test_what_is_no_plain_linear_layer_is_refused(make: Any, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        LoRALinear(make())


class Tree(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.subquery = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.child = nn.ModuleDict({"query": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
        self.shared = self.key

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.shared(
            self.child["norm"](self.child["query"](self.subquery(self.query(x))))
        )
        return self.key(made)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("query", ("query", "child.query")),
        ("child.query", ("child.query",)),
        (re.compile(r"(sub)?query"), ("query", "subquery")),
        (["child.query", re.compile("sub.*")], ("subquery", "child.query")),
        (["query", "query"], ("query", "child.query")),
        ("shared", ("key",)),
    ],
)
def test_targets_are_names_ends_of_names_and_patterns(targets: Any, names: tuple[str, ...]) -> None:
    model = Tree()
    assert apply_lora(model, targets) == names
    found = {name for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    assert found == set(names)


def test_a_layer_in_two_places_is_wrapped_once() -> None:
    model = Tree()
    apply_lora(model, "key")
    assert isinstance(model.key, LoRALinear)
    assert model.key is model.shared


@pytest.mark.parametrize("targets", ["quer", re.compile("query2"), "norm", ["query", "nothing"]])
def test_a_target_that_names_no_linear_layer_lists_the_candidates_and_changes_nothing(targets: Any) -> None:
    model = Tree()
    with pytest.raises(InvalidInputError, match=r"linear layers are: query, key, subquery, child\.query\."):
        apply_lora(model, targets)
    assert not any(isinstance(m, LoRALinear) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("targets", [[], "", 3, [None]])
def test_targets_of_another_kind_are_refused(targets: Any) -> None:
    with pytest.raises((InvalidInputError, TypeError)):
        apply_lora(Tree(), targets)


def test_a_pattern_for_all_does_not_wrap_what_is_wrapped() -> None:
    model = Tree()
    apply_lora(model, "query")
    assert apply_lora(model, re.compile(".*")) == ("key", "subquery")


def test_only_adapters_are_trained_and_removal_undoes_all_of_it() -> None:
    model = mlp()
    model[2].bias.requires_grad_(False)
    modules, trained = list(model), [n for n, p in model.named_parameters() if p.requires_grad]
    apply_lora(model, ["0", "2"])
    assert all("lora_" in n for n, p in model.named_parameters() if p.requires_grad)
    assert remove_lora(model) == ("0", "2")
    assert all(a is b for a, b in zip(model, modules, strict=True))
    assert [n for n, p in model.named_parameters() if p.requires_grad] == trained


def test_a_second_apply_leaves_the_first_adapters_trainable() -> None:
    model = mlp()
    apply_lora(model, "0")
    apply_lora(model, "2")
    assert sum(p.requires_grad for p in model.parameters()) == 4


def test_removal_with_merge_keeps_the_results() -> None:
    model = mlp()
    apply_lora(model, ["0", "2"], rank=2)
    for m in model:
        if isinstance(m, LoRALinear):
            nn.init.normal_(m.lora_b)
    x = torch.randn(3, 12)
    want = model(x)
    remove_lora(model, merge=True)
    assert [type(m) for m in model] == [nn.Linear, nn.GELU, nn.Linear]
    torch.testing.assert_close(model(x), want)


def test_a_copy_of_a_model_with_adapters_is_its_own() -> None:
    model = mlp()
    apply_lora(model, "0")
    twin = copy.deepcopy(model)
    nn.init.normal_(model[0].lora_b)  # type: ignore[arg-type]
    assert not twin[0].lora_b.any()  # type: ignore[operator,union-attr]
    twin[0].merge()  # type: ignore[operator]
    twin.load_state_dict(model.state_dict())
    model[0].merge()  # type: ignore[operator]
    assert torch.equal(twin[0].weight, model[0].weight)  # type: ignore[arg-type]
    remove_lora(twin)
    assert all(p.requires_grad for p in twin.parameters())


def test_the_metal_kernels_compute_the_same_forward_and_backward() -> None:
    layer = filled(nn.Linear(12, 5))
    x = torch.randn(6, 12)
    want = layer(x)
    grads = torch.autograd.grad(want.square().sum(), (layer.lora_a, layer.lora_b))
    with steelworks.paths.simulate_metal(), steelworks.paths.use("steel"):
        got = layer(x)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            torch.autograd.grad(got.square().sum(), (layer.lora_a, layer.lora_b)), grads, rtol=1e-3, atol=1e-3
        )
