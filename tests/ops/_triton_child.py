"""Run in a process of its own by test_triton_paths.py, with TRITON_INTERPRET=1: CPU tensors then take Triton's kernels.

Each operation's Triton path is put in the place of the one for the CPU; results are compared with the vendor's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch

from steelworks import paths
from steelworks.ops import lora, quantized, topk

# As attributes of the package these two are the functions.
attention = importlib.import_module("steelworks.ops.attention")
linear = importlib.import_module("steelworks.ops.linear")

OPERATORS = (
    linear.LINEAR,
    linear._QKV,
    attention.ATTENTION,
    lora._LORA,
    lora._FORWARD,
    lora.GRADIENTS,
    lora._MULTI,
    quantized._LINEAR,
    quantized._DEQUANTIZE,
    topk._TOP_K,
)


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _compare(name: str, run: Callable[[], Any], taken: tuple[str, ...], close: float = 1e-4) -> None:
    with paths.use("vendor"):
        want = run()
    with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
        got = run()
    for op in taken:
        assert recorded.of(op, "steel") == 1, f"{name}: {op} took {dict(recorded.counts)}"
    torch.testing.assert_close(got, want, rtol=close, atol=close, msg=lambda m: f"{name}: {m}")


def _training(x: torch.Tensor, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor) -> Any:
    leaves = [t.clone().requires_grad_() for t in (x, w, a, b, bias)]
    lora.lora_linear(*leaves[:4], 0.5, leaves[4]).square().sum().backward()
    return [leaf.grad for leaf in leaves]


def main() -> None:
    """Compares all."""
    torch.set_num_threads(1)
    for operator in OPERATORS:
        there = paths._registry.implementation_of(operator.name, "cuda", "steel")
        assert there is not None
        paths.register(operator.name, "cpu", "steel", run=there.run, possible=there.possible)
    x, w, bias = _draw(5, 16, seed=0), _draw(24, 16, seed=1), _draw(24, seed=2)
    a, b = _draw(4, 16, seed=3), _draw(24, 4, seed=4)
    _compare("one adapter", lambda: lora.lora_linear(x, w, a, b, 0.5, bias), ("lora_linear",))
    trained = ("lora_linear_forward", "lora_linear_backward")
    _compare("training", lambda: _training(x, w, a, b, bias), trained)
    frozen = [a.clone().requires_grad_(), b.clone().requires_grad_()]

    def adapters_only() -> Any:
        return torch.autograd.grad(lora.lora_linear(x, w, *frozen, 0.5, bias).sum(), frozen)

    _compare("training of the adapter", adapters_only, trained)
    many = (torch.stack((a, -a)), torch.stack((b, 2 * b)), torch.tensor([0.5, 1.5]))
    for named in (torch.tensor([0, 1, -1, 0, 9]), torch.tensor([0, 1, -1, 0, 9], dtype=torch.int32)):
        _compare("many", lambda n=named: lora.multi_lora_linear(x, w, *many, n, bias), ("multi_lora_linear",))
    for made in (quantized.quantize_int8(w), quantized.quantize_int4(_draw(24, 64, seed=5), 32)):
        rows = _draw(3, made.columns, seed=6)
        _compare(
            "quantized", lambda m=made, r=rows: quantized.quantized_linear(r, m, bias), ("quantized_linear",)
        )
        _compare("dequantize", lambda m=made: quantized.dequantize(m), ("dequantize",))
    values = _draw(3, 50, seed=7)
    for largest in (True, False):
        _compare("top-k", lambda g=largest: topk.top_k(values, 5, largest=g), ("top_k",))
    half = _draw(2, 5, 32, seed=8).half()
    layers = [_draw(n, 32, seed=n).half() for n in (24, 8, 16)]
    biases = [_draw(n, seed=n).half() for n in (24, 8, 16)]
    beside = _draw(2, 5, 24, seed=9).half()
    for activation in (None, "gelu"):
        _compare(
            "linear",
            lambda a=activation: linear.linear(half, layers[0], biases[0], activation=a, residual=beside),
            ("linear",),
            0.02,
        )
    _compare("qkv", lambda: linear.qkv_linear(half, *layers, *biases), ("qkv_linear",), 0.02)
    _compare("qkv without bias", lambda: linear.qkv_linear(half, *layers), ("qkv_linear",), 0.02)
    q, k, v = (_draw(2, h, 6, 16, seed=h).half() for h in (4, 2, 2))
    mask = _draw(2, 1, 1, 6, seed=10) > -0.5
    for causal in (False, True):
        _compare(
            "attention", lambda c=causal: attention.attention(q, k, v, mask, c, 0.3), ("attention",), 0.02
        )
    print("all compared")  # what the test waits for


if __name__ == "__main__":
    sys.exit(main())
