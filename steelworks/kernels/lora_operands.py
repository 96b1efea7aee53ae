"""What the LoRA kernels in Metal and in Triton both ask of their arguments."""

from __future__ import annotations

from typing import Final

import torch

from steelworks.errors import InvalidInputError

DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
MAX_RANK: Final = 64  # the largest of metal/tuning.py's LORA_RANKS


def rows_dense(matrix: torch.Tensor) -> torch.Tensor:
    """The same matrix with adjacent elements in a row."""
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] <= 1 else matrix.contiguous()


def check_rank(a: torch.Tensor, dimensions: int, shape: str) -> None:
    if a.dim() != dimensions:
        raise InvalidInputError(f"a has shape {tuple(a.shape)}; {shape} is needed")
    if not 1 <= a.shape[-2] <= MAX_RANK:
        raise InvalidInputError(
            f"the rank is {a.shape[-2]}; 1 to {MAX_RANK} are allowed: add the adapter to the weight instead"
        )


def check_operands(
    x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None
) -> None:
    if x.dim() < 1 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise InvalidInputError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; (..., k) and (n, k) are needed"
        )
    n, k = weight.shape
    count, r = a.shape[:2]
    for name, tensor, shape in (("a", a, (count, r, k)), ("b", b, (count, n, r)), ("bias", bias, (n,))):
        if tensor is not None and tensor.shape != shape:
            raise InvalidInputError(
                f"{name} has shape {tuple(tensor.shape)}; {shape} is needed for x {tuple(x.shape)}, weight "
                f"{tuple(weight.shape)} and rank {r} (one adapter counts as a stack of one)"
            )
    for name, tensor in (("x", x), ("weight", weight), ("a", a), ("b", b), ("bias", bias)):
        if tensor is not None and (tensor.dtype not in DTYPES or tensor.dtype != x.dtype):
            raise InvalidInputError(
                f"{name} is {tensor.dtype} and x is {x.dtype}; they must be the same, and one of float32, "
                "float16, bfloat16: convert them"
            )


def check_adapters(x: torch.Tensor, a: torch.Tensor, scales: torch.Tensor, adapters: torch.Tensor) -> None:
    if scales.shape != a.shape[:1] or scales.dtype != torch.float32:
        raise InvalidInputError(
            f"scales is {scales.dtype} of shape {tuple(scales.shape)}; float32 of shape {tuple(a.shape[:1])} "
            "is needed"
        )
    if adapters.shape != x.shape[:-1] or adapters.dtype != torch.int32:
        raise InvalidInputError(
            f"adapters is {adapters.dtype} of shape {tuple(adapters.shape)}; int32 of shape "
            f"{tuple(x.shape[:-1])}, the rows of x, is needed"
        )
