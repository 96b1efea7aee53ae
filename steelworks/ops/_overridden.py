"""The aten operators that ``install`` overrides: what each becomes among our operations.

A conversion gives the operation's tensors and arguments, or None for calls that stay PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from ._copy import COPY
from ._library import Arguments, Operator, Tensors
from .attention import ATTENTION
from .linear import LINEAR
from .matmul import _BMM, _MATMUL
from .norms import _EPSILON, _EPSILON_64, _LAYER_NORM, _RMS_NORM
from .softmax import _LOG_SOFTMAX, _SOFTMAX

Converted = tuple[Tensors, Arguments] | None


@dataclass(frozen=True)
class Override:
    """One aten operator.

    Attributes:
        aten: Its name.
        operator: What stands for it.
        convert: From its arguments to the operation's.
        devices: Where.
    """

    aten: str
    operator: Operator
    convert: Callable[..., Converted]
    devices: tuple[str, ...] = ("cpu", "cuda", "mps")


def _alike(first: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether the tensors share dtype and device: what our operations ask for, and PyTorch not always."""
    dtype, device = first.dtype, first.device
    for other in others:
        if other is None:
            continue
        if other.dtype is not dtype or other.device != device:
            return False
    return True


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Converted:
    if weight.dim() != 2 or not x.dim() or x.shape[-1] != weight.shape[-1] or not _alike(x, weight, bias):
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return (x, weight, bias), (x, weight, bias, None, None)


def _addmm(
    added: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> Converted:
    if beta != 1 or alpha != 1 or not _alike(a, b, added) or not _fit(a, b):
        return None
    if added.shape == b.shape[1:]:
        return (a, b, added), (a, b.t(), added, None, None)
    if added.shape == (a.shape[0], b.shape[1]):
        return (a, b, added), (a, b.t(), None, None, added)
    return None


def _fit(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0]


def _mm(a: torch.Tensor, b: torch.Tensor) -> Converted:
    return ((a, b), (a, b)) if _alike(a, b) and _fit(a, b) else None


def _bmm(a: torch.Tensor, b: torch.Tensor) -> Converted:
    fit = a.dim() == b.dim() == 3 and a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1]
    return ((a, b), (a, b)) if fit and _alike(a, b) else None


def _softmax(x: torch.Tensor, dim: int, half_to_float: bool) -> Converted:
    most = max(x.dim(), 1)
    if not x.is_floating_point() or not -most <= dim < most:
        return None
    return (x,), (x, dim, torch.float32 if half_to_float else None)


def _layer_norm(
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Converted:
    shape = tuple(shape)
    if not _normed(x, shape, weight, bias):
        return None
    return (x, weight, bias), (x, shape, weight, bias, eps)


def _rms_norm(
    x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> Converted:
    shape = tuple(shape)
    if not _normed(x, shape, weight):
        return None
    if eps is None:
        eps = _EPSILON_64 if x.dtype == torch.float64 else _EPSILON
    return (x, weight), (x, shape, weight, eps)


def _normed(x: torch.Tensor, shape: tuple[int, ...], *parameters: torch.Tensor | None) -> bool:
    fit = bool(shape) and tuple(x.shape[-len(shape) :]) == shape and x.is_floating_point()
    return fit and _alike(x, *parameters) and all(p is None or tuple(p.shape) == shape for p in parameters)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Converted:
    if dropout_p or query.dim() != 4 or key.dim() != 4 or value.dim() != 4 or not _alike(query, key, value):
        return None
    if is_causal and (attn_mask is not None or query.shape[2] != key.shape[2]):
        return None  # PyTorch aligns the first query with the first key, ours the last with the last
    heads, key_heads = query.shape[1], key.shape[1]
    if heads != key_heads and not (enable_gqa and key_heads and heads % key_heads == 0):
        return None
    fit = query.shape[0] == key.shape[0] and query.shape[3] == key.shape[3] and 0 not in query.shape
    if not fit or key.shape[:3] != value.shape[:3] or 0 in key.shape:
        return None
    if attn_mask is not None and (attn_mask.dim() > 4 or attn_mask.dtype not in (torch.bool, query.dtype)):
        return None
    return (query, key, value, attn_mask), (query, key, value, attn_mask, is_causal, scale)


def _clone(x: torch.Tensor, *, memory_format: torch.memory_format | None = None) -> Converted:
    dense = memory_format == torch.contiguous_format
    dense = dense or (memory_format in (None, torch.preserve_format) and x.is_contiguous())
    return ((x,), (x,)) if dense and x.numel() else None


#: In an order that a reader expects; they are independent of one another.
OVERRIDES: Final = (
    Override("linear", LINEAR, _linear),
    Override("addmm", LINEAR, _addmm),
    Override("mm", _MATMUL, _mm),
    Override("bmm", _BMM, _bmm),
    Override("_softmax", _SOFTMAX, _softmax),
    Override("_log_softmax", _LOG_SOFTMAX, _softmax),
    Override("layer_norm", _LAYER_NORM, _layer_norm),
    Override("rms_norm", _RMS_NORM, _rms_norm),
    Override("scaled_dot_product_attention", ATTENTION, _attention),
    Override("clone", COPY, _clone, devices=("cpu", "mps")),
)
