"""LoRA: a linear layer with its adapter against the layer alone, 64 adapters in a batch, and a training step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from benchmarks.ops import _mlx
from benchmarks.ops._cases import Case, Goal, Make, compiled
from steelworks.kernels import reference
from steelworks.kernels.triton import lora

BF16 = torch.bfloat16
#: (rows, columns and inner columns, rank)
SHAPES = tuple((m, d, r) for d in (512, 4096) for m in (1, 64, 512) for r in (8, 16, 64))
MIXED = ((512, 16), (4096, 8), (4096, 16))
TRAINING = ((512, 1024, 16), (512, 4096, 16), (2048, 4096, 16))


def drawn(*shape: int, size: float = 1.0) -> torch.Tensor:
    """Normal numbers of a given size."""
    return torch.randn(shape, device="cuda", dtype=torch.float32).mul_(size).to(BF16)


def spread(make: Callable[..., Callable[[], Any]]) -> Make:
    """An implementation of several inputs, as the runner calls it."""
    return lambda inputs: make(*inputs)


def stock(x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What layers with adapters do in PyTorch."""
    return functional.linear(x, weight) + 2.0 * functional.linear(functional.linear(x, a), b)


def single(m: int, d: int, r: int) -> Case:
    """One adapter."""
    fast = compiled(stock)
    implementations: dict[str, Make] = {
        "steel": spread(lambda x, w, a, b: lambda: lora.lora_linear(x, w, a, b, 2.0)),
        "linear alone": spread(lambda x, w, a, b: lambda: functional.linear(x, w)),
        "torch": spread(lambda x, w, a, b: lambda: stock(x, w, a, b)),
    }
    if (m, r) == (64, 16):
        implementations["compile"] = spread(lambda x, w, a, b: lambda: fast(x, w, a, b))
    return Case(
        op="lora_linear",
        name=f"{m}x{d}x{d} r={r} bf16",
        bytes=2 * (2 * m * d + d * d + 2 * r * d),
        inputs=lambda: (drawn(m, d), drawn(d, d, size=d**-0.5), drawn(r, d, size=d**-0.5), drawn(d, r)),
        implementations=implementations,
        launches=24 if d == 4096 else 100,
        goals=(
            Goal("time / linear alone", lambda us: us["steel"] / us["linear alone"], 1.3, 1.1, least=False),
        ),
        check=lambda inputs: reference.lora_linear(*inputs, 2.0),
        rotate=d == 4096,
        host=(m, d, r) == (64, 4096, 16),
        chains=_mlx.lora(m, d, r, 100) if r != 64 else {},
    )


def mixed(d: int, r: int) -> Case:
    """64 rows, each with an adapter of its own."""
    tokens = 64

    def inputs() -> tuple[torch.Tensor, ...]:
        return (
            drawn(tokens, d),
            drawn(d, d, size=d**-0.5),
            drawn(tokens, r, d, size=d**-0.5),
            drawn(tokens, d, r),
            torch.randperm(tokens, device="cuda", dtype=torch.int32),
        )

    scales = torch.full((tokens,), 2.0, device="cuda")
    nobody_else = torch.zeros(tokens, device="cuda", dtype=torch.int32)
    implementations: dict[str, Make] = {
        "steel": spread(lambda x, w, a, b, i: lambda: lora.lora_linear_multi(x, w, a, b, scales, i)),
        "one adapter": spread(
            lambda x, w, a, b, i: lambda: lora.lora_linear_multi(x, w, a, b, scales, nobody_else)
        ),
        "lora_linear": spread(lambda x, w, a, b, i: lambda: lora.lora_linear(x, w, a[0], b[0], 2.0)),
        "linear alone": spread(lambda x, w, a, b, i: lambda: functional.linear(x, w)),
    }
    return Case(
        op="multi_lora_linear",
        name=f"{tokens} adapters {tokens}x{d}x{d} r={r} bf16",
        bytes=2 * (2 * tokens * d + d * d),  # with one adapter; each further one adds 4 r d
        inputs=inputs,
        implementations=implementations,
        launches=24,
        goals=(
            Goal("time / one adapter", lambda us: us["steel"] / us["one adapter"], 1.3, 1.1, least=False),
            Goal("time / lora_linear", lambda us: us["steel"] / us["lora_linear"], 1.3, 1.1, least=False),
        ),
        rotate=d == 4096,
    )


class _Layer(torch.nn.Module):
    """The module that PEFT wraps."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(*weight.shape, bias=False, device="cuda", dtype=weight.dtype)
        self.layer.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(x)
        return found


def peft_step(
    x: torch.Tensor, weight: torch.Tensor, r: int, grad: torch.Tensor, wide: bool
) -> Callable[[], Any]:
    """Forward and backward of PEFT's layer; adapters in float32 (``wide``, its default) or in bfloat16."""
    import peft

    config = peft.LoraConfig(r=r, lora_alpha=2 * r, target_modules=["layer"], lora_dropout=0.0)
    net = peft.get_peft_model(_Layer(weight), config, autocast_adapter_dtype=wide)
    trained = [p for p in net.parameters() if p.requires_grad]

    def step() -> Any:
        with torch.enable_grad():
            return torch.autograd.grad(net(x), [x, *trained], grad)

    return step


def training(m: int, d: int, r: int) -> Case:
    """Forward and backward; the weight is frozen."""

    def steel(x: torch.Tensor, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor, g: torch.Tensor) -> Any:
        def step() -> Any:
            with torch.enable_grad():
                return torch.autograd.grad(lora.lora_linear(x, w, a, b, 2.0), [x, a, b], g)

        return step

    def alone(x: torch.Tensor, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor, g: torch.Tensor) -> Any:
        def step() -> Any:
            with torch.enable_grad():
                return torch.autograd.grad(functional.linear(x, w), [x], g)

        return step

    implementations: dict[str, Make] = {"steel": spread(steel), "linear alone": spread(alone)}
    try:
        import peft  # noqa: F401

        implementations["peft"] = spread(lambda x, w, a, b, g: peft_step(x, w, r, g, True))
        implementations["peft bf16 adapters"] = spread(lambda x, w, a, b, g: peft_step(x, w, r, g, False))
    except ImportError:
        pass
    return Case(
        op="lora_training",
        name=f"{m}x{d}x{d} r={r} bf16",
        bytes=2 * (4 * m * d + d * d),
        inputs=lambda: (
            drawn(m, d).requires_grad_(),
            drawn(d, d, size=d**-0.5),
            drawn(r, d, size=d**-0.5).requires_grad_(),
            drawn(d, r).requires_grad_(),
            drawn(m, d),
        ),
        implementations=implementations,
        launches=6,
        goals=tuple(
            Goal(
                f"time of {peer} / ours", lambda us, peer=peer: us.get(peer, math.nan) / us["steel"], 1.3, 2.0
            )
            for peer in ("peft", "peft bf16 adapters")
        ),
        rotate=False,
        host=True,
    )


def cases() -> Iterator[Case]:
    """One adapter, an adapter a row, training."""
    for m, d, r in SHAPES:
        yield single(m, d, r)
    for d, r in MIXED:
        yield mixed(d, r)
    for m, d, r in TRAINING:
        yield training(m, d, r)
