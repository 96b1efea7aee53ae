"""Training through LoRALinear: the loss falls, and runs as PEFT's does from the same A and B."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steelworks.nn import apply_lora

torch.set_num_threads(1)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 5))


STEPS = 30


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 12, generator=generator)
    return x, (x[:, :5] * 2 + x[:, 5:10]).argmax(-1)


def train(model: nn.Module, named: list[nn.Parameter]) -> list[float]:
    x, y = data()
    optimizer = torch.optim.AdamW(named, lr=2e-2)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_fine_tuning_lowers_the_loss_and_runs_as_peft_does() -> None:
    peft = pytest.importorskip("peft")
    ours = mlp()
    theirs = peft.get_peft_model(mlp(), peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"]))
    apply_lora(ours, ["0", "2"], rank=4, alpha=8)
    pairs = []
    for place in (0, 2):
        mine, other = ours[place], theirs.base_model.model[place]
        with torch.no_grad():
            mine.lora_a.copy_(other.lora_A["default"].weight)  # type: ignore[operator,union-attr]
        pairs += [
            (mine.lora_a, other.lora_A["default"].weight),
            (mine.lora_b, other.lora_B["default"].weight),
        ]
    mine_losses = train(ours, [a for a, _ in pairs])  # type: ignore[misc]
    their_losses = train(theirs, [b for _, b in pairs])
    assert mine_losses[-1] < 0.5 * mine_losses[0], mine_losses
    torch.testing.assert_close(mine_losses, their_losses, rtol=1e-3, atol=1e-4)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_fine_tuning_a_small_bert_lowers_the_loss_and_runs_as_peft_does() -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )

    def bert() -> nn.Module:
        torch.manual_seed(3)
        model: nn.Module = transformers.BertForSequenceClassification(config)
        return model.train()

    targets = ["query", "value", "dense"]
    ours, theirs = (
        bert(),
        peft.get_peft_model(bert(), peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets)),
    )
    names = apply_lora(ours, targets, rank=4, alpha=16)
    with torch.no_grad():
        for name in names:
            ours.get_submodule(name).lora_a.copy_(  # type: ignore[operator,union-attr]
                theirs.base_model.model.get_submodule(name).lora_A["default"].weight
            )
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 50, (16, 8), generator=generator)
    labels = (ids[:, 0] > 25).long()

    def losses(model: nn.Module) -> list[float]:
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        seen = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        return seen

    mine, other = losses(ours), losses(theirs)
    assert mine[-1] < 0.3 * mine[0], mine
    torch.testing.assert_close(mine, other, rtol=2e-2, atol=2e-3)
