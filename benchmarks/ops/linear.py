"""Linear layers of a transformer with what comes after them, and products at which cuBLAS is at the floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.ops._cases import Case, Make, compiled
from steelworks.kernels.triton import linear as kernels

#: Rows, columns, terms, layers at once, activation, residual: MiniLM's layers, BERT-base's, then single products.
BLOCKS = tuple(
    (rows, n, k, count, activation, residual)
    for size, most in ((384, 4096), (768, 512))
    for rows in (1, 32, 512, 4096)
    if rows <= most
    for n, k, count, activation, residual in (
        (size, size, 3, None, False),
        (size, size, 1, None, True),
        (4 * size, size, 1, "gelu", False),
        (size, 4 * size, 1, None, True),
    )
)
LARGE = ((32, 4096, 4096), (512, 4096, 4096), (4096, 4096, 4096))


def drawn(*shape: int) -> torch.Tensor:
    """Float16 of about 1."""
    return torch.randn(shape, device="cuda").half()


def composed(
    x: torch.Tensor,
    weights: tuple[torch.Tensor, ...],
    biases: tuple[torch.Tensor, ...],
    activation: str | None,
    residual: torch.Tensor | None,
) -> Any:
    """PyTorch's way: a list where there are several layers."""
    results = []
    for weight, bias in zip(weights, biases, strict=True):
        y = functional.linear(x, weight, bias)
        if residual is not None:
            y = y + residual
        results.append(y if activation is None else getattr(functional, activation)(y))
    return results


def case(rows: int, n: int, k: int, count: int, activation: str | None, has_residual: bool) -> Case:
    """One block, or one product."""

    def inputs() -> Any:
        # Parameters, as in a model: ours reads them while the kernel before ends.
        weights = tuple(nn.Parameter(drawn(n, k) * k**-0.5) for _ in range(count))
        biases = tuple(nn.Parameter(drawn(n)) for _ in range(count))
        residual = drawn(rows, n) if has_residual else None
        return drawn(rows, k), weights, biases, residual

    def ours(x: Any, weights: Any, biases: Any, residual: Any) -> Callable[[], Any]:
        if count == 3:
            return lambda: kernels.qkv_linear(x, *weights, *biases)
        return lambda: kernels.linear(x, weights[0], biases[0], activation, residual)

    fused = compiled(composed)
    implementations: dict[str, Make] = {
        "steel": lambda given: ours(*given),
        "torch": lambda given: lambda: composed(*given[:3], activation, given[3]),
        "compile": lambda given: lambda: fused(*given[:3], activation, given[3]),
    }

    def check(given: Any) -> torch.Tensor:
        x, weights, biases, residual = given
        y = functional.linear(x.double(), weights[0].double(), biases[0].double())
        if residual is not None:
            y = y + residual.double()
        want: torch.Tensor = y if activation is None else getattr(functional, activation)(y)
        return want

    after = "".join((f" with {activation}" if activation else "", " and a residual" if has_residual else ""))
    return Case(
        op="linear",
        name=f"{rows}x{n}x{k}" + (f" {count} times" if count > 1 else "") + after + " float16",
        bytes=2 * (rows * k + count * (n * k + rows * n) + has_residual * rows * n),
        inputs=inputs,
        implementations=implementations,
        launches=40,
        check=check,
        rotate=False,
        host=(rows, k) == (32, 384),
    )


def cases() -> Iterator[Case]:
    """Each block, then each product."""
    for block in BLOCKS:
        yield case(*block)
    for rows, n, k in LARGE:
        yield case(rows, n, k, 1, None, False)
