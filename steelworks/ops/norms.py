"""layer_norm and rms_norm, with a residual that is added first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch.nn import functional

from steelworks.errors import InvalidInputError
from steelworks.paths import Signature, choose

from ._library import FLOATS, ROWS, Arguments, Operator, Tensors, device_type, dtype_of, eager, float_reason

_NO_GRAPH = {
    ("mps", "graph"): "PyTorch computes norms with Metal kernels of its own; MPSGraph can't be asked for"
}


@overload
def layer_norm(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: None = None,
) -> torch.Tensor: ...
@overload
def layer_norm(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]: ...


def layer_norm(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """(h - mean(h)) / sqrt(variance(h) + eps) * weight + bias over the last dimensions, with h = x + residual.

    Without a residual, torch.nn.functional.layer_norm. The variance is the biased one. Ours computes in float32.
    Differentiable.

    Args:
        x: (..., *normalized_shape), floating point.
        normalized_shape: The last dimensions of ``x``.
        weight: Of ``normalized_shape``, of x's dtype or float32; 1 by default.
        bias: Of ``normalized_shape``, of the weight's dtype; 0 by default.
        eps: Added to the variance.
        residual: Of x's shape and dtype.

    Returns:
        The normalised tensor, of x's shape and dtype; with a residual, that and the sum x + residual.

    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit.
    """
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if residual is None:
        result: torch.Tensor = _LAYER_NORM((x, weight, bias), (x, shape, weight, bias, eps))
        return result
    both: tuple[torch.Tensor, torch.Tensor] = _ADD_LAYER_NORM(
        (x, residual, weight, bias), (x, residual, shape, weight, bias, eps)
    )
    return both


@overload
def rms_norm(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
    *,
    residual: None = None,
) -> torch.Tensor: ...
@overload
def rms_norm(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
    *,
    residual: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]: ...


def rms_norm(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """h / sqrt(mean(h * h) + eps) * weight over the last dimensions, with h = x + residual.

    Without a residual, torch.nn.functional.rms_norm. Ours computes in float32. Differentiable.

    Args:
        x: (..., *normalized_shape), floating point.
        normalized_shape: The last dimensions of ``x``.
        weight: Of ``normalized_shape``, of x's dtype or float32; 1 by default.
        eps: Added to the mean square; by default the distance from 1 to the next float32 (for float64: float64).
        residual: Of x's shape and dtype.

    Returns:
        The normalised tensor, of x's shape and dtype; with a residual, that and the sum x + residual.

    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit.
    """
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if eps is None:
        eps = _EPSILON if x.dtype != torch.float64 else _EPSILON_64
    if residual is None:
        result: torch.Tensor = _RMS_NORM((x, weight), (x, shape, weight, eps))
        return result
    both: tuple[torch.Tensor, torch.Tensor] = _ADD_RMS_NORM(
        (x, residual, weight), (x, residual, shape, weight, eps)
    )
    return both


_EPSILON = torch.finfo(torch.float32).eps
_EPSILON_64 = torch.finfo(torch.float64).eps


def _check(
    op: str,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> None:
    shape = tuple(shape)
    if not x.is_floating_point():
        raise InvalidInputError(f"{op}: x is {x.dtype}; a floating-point dtype is needed: convert it")
    if not shape or tuple(x.shape[-len(shape) :]) != shape:
        raise InvalidInputError(
            f"{op}: normalized_shape is {shape} and x has shape {tuple(x.shape)}; x's last dimensions are needed, at "
            "least one"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise InvalidInputError(f"{op}: {name} has shape {tuple(tensor.shape)}; {shape} is needed")
        if tensor.dtype not in (x.dtype, torch.float32):
            raise InvalidInputError(
                f"{op}: {name} is {tensor.dtype} and x is {x.dtype}; that, or float32, is needed: convert it"
            )
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        raise InvalidInputError(
            f"{op}: weight is {weight.dtype} and bias {bias.dtype}; convert one to the other"
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise InvalidInputError(
            f"{op}: residual is {residual.dtype} of shape {tuple(residual.shape)} and x {x.dtype} of shape "
            f"{tuple(x.shape)}; they must be the same"
        )
    for name, tensor in (("weight", weight), ("bias", bias), ("residual", residual)):
        if tensor is not None and tensor.device != x.device:
            raise InvalidInputError(
                f"{op}: x is on '{x.device}' and {name} on '{tensor.device}'; move them to one device"
            )


def _sizes(signature: Signature) -> Mapping[str, int]:
    shape = signature.shapes[0] or (1,)
    dimensions = signature.flags[0]
    assert isinstance(dimensions, int)
    columns = torch.Size(shape[len(shape) - dimensions :]).numel()
    return {"rows": torch.Size(shape[: len(shape) - dimensions]).numel(), "columns": columns}


def _possible(signature: Signature) -> str | None:
    if any(isinstance(d, torch.dtype) and d not in FLOATS for d in signature.flags):
        return "weight or bias is none of float32, float16 and bfloat16"
    return float_reason(signature.dtype)


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


def _layer_norm(
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


def _rms_norm(x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    wide = _common(x, weight)
    if wide is None:
        return functional.rms_norm(x, shape, weight, eps)
    return functional.rms_norm(x.to(wide), shape, _to(weight, wide), eps).to(x.dtype)


def _add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + residual
    return _layer_norm(total, shape, weight, bias, eps), total


def _add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + residual
    return _rms_norm(total, shape, weight, eps), total


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


def _layer_saved(inputs: Arguments, output: Any) -> tuple[Tensors, Any]:
    x, shape, weight, bias, eps = inputs
    return (x, weight), (tuple(shape), eps, True, dtype_of(weight if weight is not None else bias))


def _layer_backward(ctx: Any, gradient: torch.Tensor) -> Any:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = _gradients(ctx, gradient, x, weight, ctx.needs_input_grad[3])
    return of_x, None, of_weight, of_bias, None


def _rms_saved(inputs: Arguments, output: Any) -> tuple[Tensors, Any]:
    x, shape, weight, eps = inputs
    return (x, weight), (tuple(shape), eps, False, dtype_of(weight))


def _rms_backward(ctx: Any, gradient: torch.Tensor) -> Any:
    x, weight = ctx.saved_tensors
    of_x, of_weight, _ = _gradients(ctx, gradient, x, weight, False)
    return of_x, None, of_weight, None


def _add_layer_saved(inputs: Arguments, output: Any) -> tuple[Tensors, Any]:
    _, _, shape, weight, bias, eps = inputs
    return (output[1], weight), (tuple(shape), eps, True, dtype_of(weight if weight is not None else bias))


def _add_layer_backward(ctx: Any, gradient: torch.Tensor, of_total: torch.Tensor) -> Any:
    total, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = _gradients(ctx, gradient, total, weight, ctx.needs_input_grad[4])
    of_x = of_x + of_total
    return of_x, of_x, None, of_weight, of_bias, None


def _add_rms_saved(inputs: Arguments, output: Any) -> tuple[Tensors, Any]:
    _, _, shape, weight, eps = inputs
    return (output[1], weight), (tuple(shape), eps, False, dtype_of(weight))


def _add_rms_backward(ctx: Any, gradient: torch.Tensor, of_total: torch.Tensor) -> Any:
    total, weight = ctx.saved_tensors
    of_x, of_weight, _ = _gradients(ctx, gradient, total, weight, False)
    of_x = of_x + of_total
    return of_x, of_x, None, of_weight, None


# --- registration ---------------------------------------------------------------------------------------------


def _layer_signature(
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[Any, ...]:
    return (
        "layer_norm",
        device_type(x),
        x.dtype,
        (x.shape,),
        (len(shape), dtype_of(weight), dtype_of(bias), *shape),
    )


def _rms_signature(
    x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float
) -> tuple[Any, ...]:
    return (
        "rms_norm",
        device_type(x),
        x.dtype,
        (x.shape,),
        (len(shape), dtype_of(weight), None, *shape),
    )


def _add_layer_signature(
    x: torch.Tensor,
    residual: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[Any, ...]:
    return (
        "add_layer_norm",
        device_type(x),
        x.dtype,
        (x.shape, residual.shape),
        (len(shape), dtype_of(weight), dtype_of(bias), residual.dtype, *shape),
    )


def _add_rms_signature(
    x: torch.Tensor, residual: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float
) -> tuple[Any, ...]:
    return (
        "add_rms_norm",
        device_type(x),
        x.dtype,
        (x.shape, residual.shape),
        (len(shape), dtype_of(weight), residual.dtype, *shape),
    )


def _layer_fake(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    return x.new_empty(x.shape)


def _rms_fake(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float = _EPSILON,
) -> torch.Tensor:
    return x.new_empty(x.shape)


def _add_fake(x: torch.Tensor, residual: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _layer_metal(
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    from steelworks.kernels.metal import norms

    return norms.layer_norm(x, shape, weight, bias, eps)


def _rms_metal(
    x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float
) -> torch.Tensor:
    from steelworks.kernels.metal import norms

    return norms.rms_norm(x, shape, weight, None, eps)


def _add_layer_metal(
    x: torch.Tensor,
    residual: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    from steelworks.kernels.metal import norms

    return norms.add_layer_norm(x, residual, shape, weight, bias, eps)


def _add_rms_metal(
    x: torch.Tensor, residual: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    from steelworks.kernels.metal import norms

    return norms.add_rms_norm(x, residual, shape, weight, None, eps)


def _layer_triton(
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> Any:
    from steelworks.kernels.triton import norms

    return norms.layer_norm(x, shape, weight, bias, eps)


def _rms_triton(x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float) -> Any:
    from steelworks.kernels.triton import norms

    return norms.rms_norm(x, shape, weight, None, eps)


def _add_layer_triton(
    x: torch.Tensor,
    residual: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> Any:
    from steelworks.kernels.triton import norms

    return norms.layer_norm(x, shape, weight, bias, eps, residual=residual)


def _add_rms_triton(
    x: torch.Tensor, residual: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float
) -> Any:
    from steelworks.kernels.triton import norms

    return norms.rms_norm(x, shape, weight, None, eps, residual=residual)


def _check_layer(
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> None:
    _check("layer_norm", x, None, shape, weight, bias)


def _check_rms(x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float) -> None:
    _check("rms_norm", x, None, shape, weight, None)


def _check_add_layer(
    x: torch.Tensor,
    residual: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> None:
    _check("layer_norm", x, residual, shape, weight, bias)


def _check_add_rms(
    x: torch.Tensor, residual: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float
) -> None:
    _check("rms_norm", x, residual, shape, weight, None)


def _examples(with_residual: bool, with_bias: bool) -> Callable[..., Iterator[Arguments]]:
    def examples(device: torch.device, dtype: torch.dtype) -> Iterator[Arguments]:
        for rows, columns in ROWS:
            x = torch.randn(rows, columns, device=device, dtype=dtype)
            weight = torch.ones(columns, device=device, dtype=dtype)
            residual = (torch.randn_like(x),) if with_residual else ()
            yield (x, *residual, (columns,), weight, *((weight,) if with_bias else ()), 1e-5)

    return examples


_SHAPE = "SymInt[] normalized_shape, Tensor? weight=None"
_LAYER_NORM = Operator(
    "layer_norm",
    f"(Tensor x, {_SHAPE}, Tensor? bias=None, float eps=1e-05) -> Tensor",
    signature=_layer_signature,
    check=_check_layer,
    vendor=_layer_norm,
    fake=_layer_fake,
    sizes=_sizes,
    flags=(1, None, None),
    no_path=_NO_GRAPH,
    examples=_examples(False, True),
    backward=_layer_backward,
    saved=_layer_saved,
    vendor_trains=True,
    autocast="float32",
)
_LAYER_NORM.metal(_possible, _layer_metal)
_LAYER_NORM.triton(_possible, _layer_triton)

_RMS_NORM = Operator(
    "rms_norm",
    f"(Tensor x, {_SHAPE}, float eps={_EPSILON}) -> Tensor",
    signature=_rms_signature,
    check=_check_rms,
    vendor=_rms_norm,
    fake=_rms_fake,
    sizes=_sizes,
    flags=(1, None, None),
    no_path=_NO_GRAPH,
    examples=_examples(False, False),
    backward=_rms_backward,
    saved=_rms_saved,
    vendor_trains=True,
    autocast="float32",
)
_RMS_NORM.metal(_possible, _rms_metal)
_RMS_NORM.triton(_possible, _rms_triton)

_ADD_LAYER_NORM = Operator(
    "add_layer_norm",
    f"(Tensor x, Tensor residual, {_SHAPE}, Tensor? bias=None, float eps=1e-05) -> (Tensor, Tensor)",
    signature=_add_layer_signature,
    check=_check_add_layer,
    vendor=_add_layer_norm,
    fake=_add_fake,
    sizes=_sizes,
    family="layer_norm",
    flags=(1, None, None, None),
    no_path=_NO_GRAPH,
    examples=_examples(True, True),
    backward=_add_layer_backward,
    saved=_add_layer_saved,
    vendor_trains=True,
    autocast="float32",
)
_ADD_LAYER_NORM.metal(_possible, _add_layer_metal)
_ADD_LAYER_NORM.triton(_possible, _add_layer_triton)

_ADD_RMS_NORM = Operator(
    "add_rms_norm",
    f"(Tensor x, Tensor residual, {_SHAPE}, float eps={_EPSILON}) -> (Tensor, Tensor)",
    signature=_add_rms_signature,
    check=_check_add_rms,
    vendor=_add_rms_norm,
    fake=_add_fake,
    sizes=_sizes,
    family="rms_norm",
    flags=(1, None, None),
    no_path=_NO_GRAPH,
    examples=_examples(True, False),
    backward=_add_rms_backward,
    saved=_add_rms_saved,
    vendor_trains=True,
    autocast="float32",
)
_ADD_RMS_NORM.metal(_possible, _add_rms_metal)
_ADD_RMS_NORM.triton(_possible, _add_rms_triton)
