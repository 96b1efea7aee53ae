"""quantize="int8": the right layers, independent rows, the user's model left alone, and clear refusals."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
from helpers import LONG, in_threads
from torch import nn
from transformers import BertConfig, BertModel

import steelworks as sw
from steelworks.devices import CPUDevice
from steelworks.plans import _int8
from steelworks.plans._int8 import Int8Linear, by_row, quantized_copy
from steelworks.plans.eager import EagerOptions, EagerPlan
from steelworks.plans.packing import _lean

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this torch has no FBGEMM"
)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.Linear(512, 4)).eval()


class Sentences(nn.Module):
    """A small BERT whose masked mean is the answer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        config = BertConfig(
            vocab_size=200, hidden_size=384, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1)


@pytest.fixture(scope="module")
def sentences() -> Sentences:
    return Sentences().eval()


def request(length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 200, (1, length), generator=torch.Generator().manual_seed(seed + length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def similarity(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(nn.functional.cosine_similarity(a, b, dim=-1).min())


def int8_layers(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if type(layer) is Int8Linear]


# ---------------------------------------------------------------- the layer


def test_a_layer_answers_what_its_integers_say_exactly() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(512, 512).eval()
    x = torch.randn(9, 512)
    scaled, scale = by_row(x)
    size = layer.weight.detach().abs()
    step = torch.maximum((size[:, 1:] + size[:, :-1]).amax(1), size.amax(1)).double() / 127
    weights = (layer.weight.detach().double() / step[:, None]).round()
    sums = (scaled.double() * 127).round() @ weights.T
    wanted = scale.double() * sums * step / 127 + layer.bias.detach().double()
    torch.testing.assert_close(Int8Linear(layer)(x), wanted.float(), atol=2e-6, rtol=1e-5)


def test_the_largest_sums_of_two_products_do_not_overflow() -> None:
    weight = torch.ones(4, 512)
    weight[1], weight[2, ::2], weight[3, 1::2] = -1.0, 0.0, 0.0
    layer = nn.Linear(512, 4, bias=False).eval()
    layer.weight = nn.Parameter(weight)
    x = torch.stack([torch.ones(512), -torch.ones(512), torch.where(torch.arange(512) % 2 == 0, 1.0, -1.0)])
    torch.testing.assert_close(Int8Linear(layer)(x), layer(x), atol=6.0, rtol=0)


def test_a_row_gets_the_same_bits_alone_and_among_others() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(512, 512).eval())
    x = torch.randn(70, 512) * torch.logspace(-3, 3, 70)[:, None]
    together = layer(x)
    for first, last in ((0, 1), (5, 8), (20, 37), (69, 70)):
        assert torch.equal(layer(x[first:last]), together[first:last])


def test_a_row_of_zeros_gives_the_bias_and_nan_stays_in_its_row() -> None:
    layer = nn.Linear(512, 512).eval()
    x = torch.zeros(3, 512)
    x[1, 7] = torch.nan
    y = Int8Linear(layer)(x)
    assert torch.equal(y[0], layer.bias)
    assert torch.equal(y[2], layer.bias)
    assert bool(y[1].isnan().all())


def test_other_dtypes_and_empty_inputs_take_the_float_weights() -> None:
    layer = nn.Linear(512, 512).eval()
    made = Int8Linear(layer)
    assert made(torch.empty(0, 512)).shape == (0, 512)
    with torch.autocast("cpu", torch.bfloat16):
        assert made(torch.randn(2, 512).bfloat16()).dtype == torch.bfloat16


def test_a_layer_answers_the_same_where_gradients_are_on() -> None:
    layer = Int8Linear(nn.Linear(512, 512).eval())
    x = torch.randn(3, 512, requires_grad=True)
    with torch.no_grad():
        wanted = layer(x)
    assert torch.equal(layer(x), wanted)


def test_packing_leaves_the_engine_of_the_process_as_it_was_and_says_nothing() -> None:
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Int8Linear(nn.Linear(512, 512).eval())
    assert torch.backends.quantized.engine == before


# ---------------------------------------------------------------- which layers


def test_large_layers_are_replaced_in_a_copy_and_the_model_is_left_alone() -> None:
    model = network()
    made = quantized_copy(model)
    assert int8_layers(made) == ["0", "2"]
    assert int8_layers(model) == []
    assert made[3].weight is model[3].weight  # type: ignore[index, union-attr]
    assert made[0].weight is model[0].weight  # type: ignore[index, union-attr]


def test_a_model_that_is_one_layer_is_replaced_itself() -> None:
    assert type(quantized_copy(nn.Linear(512, 512).eval())) is Int8Linear


def test_layers_that_others_hooked_or_rewrote_stay() -> None:
    class Own(nn.Linear):
        pass

    hooked, rewritten = nn.Linear(512, 512), nn.Linear(512, 512)
    hooked.register_forward_hook(lambda *_: None)
    rewritten.forward = lambda input: input  # type: ignore[method-assign]
    model = nn.Sequential(hooked, rewritten, Own(512, 512), nn.Linear(512, 512), nn.Linear(512, 512).half())
    assert int8_layers(quantized_copy(model.eval())) == ["3"]


# ---------------------------------------------------------------- plans and queues


def test_a_plan_answers_close_to_the_model_and_not_the_same() -> None:
    model, x = network(), torch.randn(6, 512)
    plan = sw.plan(model, x, quantize="int8")
    y, wanted = plan(x), model(x).detach()
    assert similarity(y, wanted) > 0.999
    assert not torch.equal(y, wanted)
    assert not torch.equal(y, sw.plan(model, x)(x))


def test_a_result_of_a_queue_does_not_depend_on_its_batch_mates() -> None:
    model = network()
    requests = [torch.randn(1, 512) * (1 + 9 * (i % 3)) for i in range(40)]
    with sw.BatchQueue(model, quantize="int8", num_workers=1, max_batch_size=16) as queue:
        futures = [queue.submit(x) for x in requests]
        for x, future in zip(requests, futures, strict=True):
            # The small last layer is float32, whose sums may change their order.
            torch.testing.assert_close(future.result(LONG), queue(x), atol=1e-5, rtol=1e-5)
        assert queue.statistics().batches < 2 * len(requests)


def test_custom_collate_runs_the_int8_model_too() -> None:
    model = network()
    rows = [torch.randn(512) for _ in range(4)]
    with sw.BatchQueue(model, quantize="int8", collate=torch.stack) as queue:
        results = list(queue.map(rows))
    assert not torch.equal(torch.stack(results), model(torch.stack(rows)).detach())
    torch.testing.assert_close(torch.stack(results), quantized_copy(model)(torch.stack(rows)).detach())


@pytest.mark.parametrize("packing", [True, False])
def test_sentences_of_different_lengths_share_batches_packed_or_padded(
    sentences: Sentences, packing: bool
) -> None:
    plan = EagerPlan(
        sentences, CPUDevice(), EagerOptions(padding=sw.Padding(), packing=packing, quantize=True)
    )
    requests = [request(length) for length in (5, 9, 17, 12)]
    readings = [plan.reader.read(x) for x in requests]
    runner = plan.runner()
    results = runner.finish(runner.launch(readings))
    group = readings[0].lane.group
    assert plan.packs(group) is packing
    assert group.state["layout"].padding
    with torch.no_grad():
        for x, result in zip(requests, results, strict=True):
            assert similarity(result, sentences(**x)) > 0.99
            assert not torch.equal(result, sentences(**x))


def test_the_packed_twin_runs_the_int8_layers_without_module_calls(
    sentences: Sentences, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = EagerPlan(sentences, CPUDevice(), EagerOptions(padding=sw.Padding(), packing=True, quantize=True))
    readings = [plan.reader.read(request(length)) for length in (5, 9)]
    runner = plan.runner()
    runner.finish(runner.launch(readings))
    runs: list[Any] = []
    run = _lean._run
    monkeypatch.setattr(_lean, "_run", lambda layer, *rest: (runs.append(layer), run(layer, *rest))[1])
    multiplied: list[Int8Linear] = []
    multiply = Int8Linear.multiply
    monkeypatch.setattr(
        Int8Linear, "multiply", lambda self, *rest: (multiplied.append(self), multiply(self, *rest))[1]
    )
    runner.finish(runner.launch(readings))
    assert len(runs) == 2
    assert len(multiplied) == 2 * 6
    assert int8_layers(sentences) == []


def test_deterministic_keeps_its_bits_in_int8(sentences: Sentences) -> None:
    requests = [request(length, seed) for seed in range(3) for length in (4, 9, 13, 20)]
    with sw.BatchQueue(sentences, quantize="int8", deterministic=True, example=requests[0]) as queue:
        alone = [queue(x) for x in requests]
        together: list[Any] = [None] * len(requests)

        def caller(index: int) -> None:
            for place in range(index, len(requests), 4):
                together[place] = queue(requests[place])

        assert in_threads(4, caller) == [None] * 4
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


def test_plans_made_by_several_threads_at_once_are_all_right() -> None:
    model, x = network(), torch.randn(3, 512)
    wanted = sw.plan(model, x, quantize="int8")(x)
    gate = threading.Barrier(4)
    answers: list[Any] = [None] * 4

    def make(index: int) -> None:
        gate.wait(LONG)
        answers[index] = sw.plan(model, x, quantize="int8")(x)

    assert in_threads(4, make) == [None] * 4
    for answer in answers:
        torch.testing.assert_close(answer, wanted, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- refusals


def test_what_can_t_be_quantised_is_refused_and_says_what_to_do() -> None:
    x = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="has no float32 nn.Linear with 131072 weights.*leave quantize out"):
        sw.plan(nn.Linear(4, 4).eval(), x, quantize="int8")
    with pytest.raises(ValueError, match="pass the module"):
        sw.plan(lambda x: x, x, quantize="int8")
    with pytest.raises(ValueError, match="quantize is 'int4'; it must be 'int8' or None"):
        sw.BatchQueue(network(), quantize="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leave one out"):
        sw.plan(network(), torch.zeros(1, 512), quantize="int8", compile=True)
    with pytest.raises(ValueError, match="give them to plan"):
        sw.BatchQueue(sw.plan(network(), torch.zeros(1, 512)), quantize="int8")


def test_a_module_that_can_t_be_copied_is_refused() -> None:
    model = network()
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match="needs a copy of the module"):
        quantized_copy(model)


def test_a_torch_without_the_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_int8, "_ENGINE", "none such")
    with pytest.raises(ValueError, match="needs FBGEMM"):
        quantized_copy(network())


def test_another_device_than_the_cpu_is_refused() -> None:
    elsewhere = CPUDevice()
    elsewhere.torch_device = torch.device("meta")
    with pytest.raises(ValueError, match="was given for meta; it is made for the CPU"):
        sw.plan(network(), torch.zeros(1, 512), quantize="int8", device=elsewhere)
