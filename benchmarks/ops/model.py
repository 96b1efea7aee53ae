"""A whole model in a graph: as it is, accelerated, and through torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import steelworks
from benchmarks.ops._cases import Case, Goal, Make
from steelworks.plans._masks import WholeMasks

LENGTH = 32
BATCHES = (1, 128)


def minilm_shape() -> nn.Module:
    """A BERT of MiniLM-L6's shape with random weights, float16, on the GPU."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=30522
    )
    return BertModel(config, add_pooling_layer=False).eval().half().cuda()


def compiled(model: nn.Module) -> Callable[[torch.Tensor], Any]:
    """Through torch.compile at its best: attention gets a mask that the fused kernel takes, where that pays."""
    call = torch.compile(model, dynamic=False)

    def run(ids: torch.Tensor) -> Any:
        with WholeMasks():
            return call(ids)

    return run


def better(us: dict[str, float]) -> float:
    """How much faster than torch.compile the better of ours is."""
    return us["compile"] / min(us["steel"], us["steel, compiled"])


def case(batch: int, model: nn.Module, fast: nn.Module) -> Case:
    """One batch size."""
    as_compiled, both = compiled(model), compiled(fast)
    implementations: dict[str, Make] = {
        "steel": lambda ids: lambda: fast(ids)[0],
        "torch": lambda ids: lambda: model(ids)[0],
        "compile": lambda ids: lambda: as_compiled(ids)[0],
        "steel, compiled": lambda ids: lambda: both(ids)[0],
    }
    weights = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if "embeddings" not in n)
    return Case(
        op="minilm",
        name=f"{batch}x{LENGTH} float16",
        bytes=weights,
        inputs=lambda: torch.randint(0, 30000, (batch, LENGTH), device="cuda"),
        implementations=implementations,
        launches=8,
        goals=(
            Goal("torch.compile's time / accelerated", lambda us: us["compile"] / us["steel"], 1.0, 1.3),
            Goal("torch.compile's time / the better of ours", better, 1.0, 1.3),
        ),
        check=lambda ids: model(ids)[0].double(),
        rotate=False,
        host=True,
    )


def cases() -> Iterator[Case]:
    """Each batch size, with one model and its accelerated twin."""
    model = minilm_shape()
    fast = copy.deepcopy(model)
    report = steelworks.accelerate(fast)
    print(f"accelerate changed {len(report.changed)} modules and left {len(report.left)}", flush=True)
    for batch in BATCHES:
        yield case(batch, model, fast)
