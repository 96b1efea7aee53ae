"""What the norms are in PyTorch, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from steelworks.paths import choose

from ._library import FLOATS, Arguments, Tensors, dtype_of, eager

# --- vendor ---------------------------------------------------------------------------------------------------


def _common(x: torch.Tensor, *others: torch.Tensor | None) -> torch.dtype | None:
    """The dtype to compute in if the parameters have another than x, which PyTorch takes on few devices."""
    same = wide = x.dtype
    for other in others:
        if other is not None and other.dtype is not same:
            wide = torch.promote_types(wide, other.dtype)
    return None if wide is same else wide


def _to(x: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if x is None else x.to(dtype)


def layer_norm_vendor(
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    wide = _common(x, weight, bias)
    if wide is None:
        return functional.layer_norm(x, shape, weight, bias, eps)
    return functional.layer_norm(x.to(wide), shape, _to(weight, wide), _to(bias, wide), eps).to(x.dtype)


def rms_norm_vendor(
    x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float
) -> torch.Tensor:
    wide = _common(x, weight)
    if wide is None:
        return functional.rms_norm(x, shape, weight, eps)
    return functional.rms_norm(x.to(wide), shape, _to(weight, wide), eps).to(x.dtype)


def add_layer_norm_vendor(
    x: torch.Tensor,
    residual: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + residual
    return layer_norm_vendor(total, shape, weight, bias, eps), total


def add_rms_norm_vendor(
    x: torch.Tensor, residual: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + residual
    return rms_norm_vendor(total, shape, weight, eps), total


# --- gradients ------------------------------------------------------------------------------------------------


def _gradients(
    ctx: Any, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, has_bias: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Of x, weight and bias. With n = (h - mean) * r and g = gradient * weight: r (g - mean(g) - n mean(g n)); the
    means of h and of g are left out for rms_norm."""
    shape, eps, centred, weight_dtype = ctx.rest
    if gradient.is_cuda and eager(gradient, x, weight) and _took_triton(ctx, gradient, x, weight):
        return triton_gradients(gradient, x, weight, shape, eps, centred, weight_dtype if has_bias else None)
    dims = tuple(range(-len(shape), 0))
    h = x if x.dtype == torch.float64 else x.float()
    g = gradient.to(h.dtype)
    if centred:
        h = h - h.mean(dims, keepdim=True)
    scale = torch.rsqrt((h * h).mean(dims, keepdim=True) + eps)
    normal = h * scale
    weighted = g if weight is None else g * weight
    of_x = weighted - normal * (weighted * normal).mean(dims, keepdim=True)
    if centred:
        of_x = of_x - weighted.mean(dims, keepdim=True)
    of_weight = None if weight is None else (g * normal).sum_to_size(shape).to(weight_dtype)
    of_bias = g.sum_to_size(shape).to(weight_dtype) if has_bias else None
    return (of_x * scale).to(x.dtype), of_weight, of_bias


def _took_triton(ctx: Any, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None) -> bool:
    """Whether the forward took our kernels, and the backward can."""
    from steelworks.kernels.triton.norms import backward_unsupported

    shape, _, centred, _ = ctx.rest
    if gradient.dtype not in FLOATS or backward_unsupported(shape) is not None:
        return False
    flags = (len(shape), dtype_of(weight), None, *shape)
    return (
        choose(("layer_norm" if centred else "rms_norm", "cuda", x.dtype, (x.shape,), flags)).path == "steel"
    )


def triton_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    shape: tuple[int, ...],
    eps: float,
    centred: bool,
    bias_dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The gradients by the Triton kernels; the rows' mean and scale are computed again."""
    from steelworks.kernels.triton import norms

    again = (norms.layer_norm_forward if centred else norms.rms_norm_forward)(x, shape, eps=eps)
    return norms.norm_backward(
        gradient, x, weight, again.mean, again.rstd, normalized_shape=shape, bias_dtype=bias_dtype
    )


def layer_saved(inputs: Arguments, output: Any) -> tuple[Tensors, Any]:
    x, shape, weight, bias, eps = inputs
    return (x, weight), (tuple(shape), eps, True, dtype_of(weight if weight is not None else bias))


def layer_backward(ctx: Any, gradient: torch.Tensor) -> Any:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = _gradients(ctx, gradient, x, weight, ctx.needs_input_grad[3])
    return of_x, None, of_weight, of_bias, None


def rms_saved(inputs: Arguments, output: Any) -> tuple[Tensors, Any]:
    x, shape, weight, eps = inputs
    return (x, weight), (tuple(shape), eps, False, dtype_of(weight))


def rms_backward(ctx: Any, gradient: torch.Tensor) -> Any:
    x, weight = ctx.saved_tensors
    of_x, of_weight, _ = _gradients(ctx, gradient, x, weight, False)
    return of_x, None, of_weight, None


def add_layer_saved(inputs: Arguments, output: Any) -> tuple[Tensors, Any]:
    _, _, shape, weight, bias, eps = inputs
    return (output[1], weight), (tuple(shape), eps, True, dtype_of(weight if weight is not None else bias))


def add_layer_backward(ctx: Any, gradient: torch.Tensor, of_total: torch.Tensor) -> Any:
    total, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = _gradients(ctx, gradient, total, weight, ctx.needs_input_grad[4])
    of_x = of_x + of_total
    return of_x, of_x, None, of_weight, of_bias, None


def add_rms_saved(inputs: Arguments, output: Any) -> tuple[Tensors, Any]:
    _, _, shape, weight, eps = inputs
    return (output[1], weight), (tuple(shape), eps, False, dtype_of(weight))


def add_rms_backward(ctx: Any, gradient: torch.Tensor, of_total: torch.Tensor) -> Any:
    total, weight = ctx.saved_tensors
    of_x, of_weight, _ = _gradients(ctx, gradient, total, weight, False)
    of_x = of_x + of_total
    return of_x, of_x, None, of_weight, None
