"""Adapters saved by us load in PEFT, and the other way, with the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from steelworks.nn import Adapter, Adapters, LayerWeights, LoRALinear, apply_lora

peft = pytest.importorskip("peft")
torch.set_num_threads(1)
X = torch.randn(6, 12, generator=torch.Generator().manual_seed(9))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.head = nn.Linear(16, 5)
        self.extra = nn.ModuleDict({"head": nn.Linear(5, 5)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.extra["head"](self.head(self.body(x)))
        return made


def by_peft(**options: Any) -> Any:
    model = peft.get_peft_model(Net(), peft.LoraConfig(**options)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_()
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["0", "head"]},
        {"r": 4, "lora_alpha": 8, "target_modules": r"body\.[02]|head"},
        {"r": 4, "lora_alpha": 8, "target_modules": ["0", "2"], "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["0", "2", "head"],
            "rank_pattern": {"0": 2},
            "alpha_pattern": {"^head": 3, "body.2": 5},
        },
    ],
)
def test_what_peft_saved_answers_the_same_here(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = by_peft(**options)
    theirs.save_pretrained(tmp_path)
    want = theirs(X)
    net = Net().eval()
    adapters = Adapters(net)
    adapters.load(tmp_path, "a")
    adapters.activate("a")
    torch.testing.assert_close(net(X), want)
    with adapters.use(["a"] * 6):
        torch.testing.assert_close(net(X), want)
    own = Net().eval()
    Adapter.load(tmp_path).apply(own)
    torch.testing.assert_close(own(X), want)


def test_what_we_saved_answers_the_same_in_peft(tmp_path: Path) -> None:
    # 'head' names extra.head for PEFT, too: the saved targets must not.
    net = Net().eval()
    apply_lora(net, "body.0", rank=4, alpha=8)
    net.head = LoRALinear(net.head, 3, 7)  # type: ignore[assignment]
    for m in net.modules():
        if isinstance(m, LoRALinear):
            nn.init.normal_(m.lora_b)
    Adapter.of(net).save(tmp_path, base_model="net")
    theirs = peft.PeftModel.from_pretrained(Net(), tmp_path).eval()
    adapted = [n for n, m in theirs.named_modules() if hasattr(m, "lora_A")]
    assert adapted == ["base_model.model.body.0", "base_model.model.head"]
    torch.testing.assert_close(theirs(X), net(X))


def test_the_files_have_the_keys_that_peft_writes(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    theirs = by_peft(r=4, lora_alpha=8, target_modules=["0", "2"])
    theirs.save_pretrained(tmp_path / "theirs")
    Adapter.load(tmp_path / "theirs").save(tmp_path / "ours")
    read = [load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours")]
    assert read[0].keys() == read[1].keys()
    assert all(torch.equal(read[0][key], read[1][key]) for key in read[0])
    config = peft.LoraConfig.from_pretrained(tmp_path / "ours")
    assert (config.r, config.lora_alpha, set(config.target_modules)) == (4, 8, {"0", "2"})


def test_an_adapter_with_ranks_and_alphas_of_its_own_goes_through_peft_and_back(tmp_path: Path) -> None:
    weights = {
        "body.0": LayerWeights(torch.randn(2, 12), torch.randn(16, 2), 3),
        "body.2": LayerWeights(torch.randn(5, 16), torch.randn(16, 5), 0.5),
        "extra.head": LayerWeights(torch.randn(1, 5), torch.randn(5, 1), 3),
    }
    Adapter(weights).save(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(Net(), tmp_path / "ours").eval()
    theirs.save_pretrained(tmp_path / "theirs")
    back = Adapter.load(tmp_path / "theirs").layers
    assert {n: (w.rank, w.alpha) for n, w in back.items()} == {
        n: (w.rank, w.alpha) for n, w in weights.items()
    }
    net = Net().eval()
    adapters = Adapters(net)
    adapters.add("a", Adapter(weights))
    adapters.activate("a")
    torch.testing.assert_close(net(X), theirs(X))
