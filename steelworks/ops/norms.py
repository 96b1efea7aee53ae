"""layer_norm and rms_norm, with a residual that is added first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch

from steelworks.errors import InvalidInputError
from steelworks.kernels.norm_operands import check_norm
from steelworks.paths import Signature

from ._library import FLOATS, Operator, device_type, dtype_of, float_reason
from ._norms_gradients import (
    add_layer_backward,
    add_layer_norm_vendor,
    add_layer_saved,
    add_rms_backward,
    add_rms_norm_vendor,
    add_rms_saved,
    layer_backward,
    layer_norm_vendor,
    layer_saved,
    rms_backward,
    rms_norm_vendor,
    rms_saved,
)

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
    if not x.is_floating_point():
        raise InvalidInputError(f"{op}: x is {x.dtype}; a floating-point dtype is needed: convert it")
    check_norm(op, x, tuple(shape), weight, bias, residual)
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


_SHAPE = "SymInt[] normalized_shape, Tensor? weight=None"
_LAYER_NORM = Operator(
    "layer_norm",
    f"(Tensor x, {_SHAPE}, Tensor? bias=None, float eps=1e-05) -> Tensor",
    signature=_layer_signature,
    check=_check_layer,
    vendor=layer_norm_vendor,
    fake=_layer_fake,
    sizes=_sizes,
    flags=(1, None, None),
    no_path=_NO_GRAPH,
    backward=layer_backward,
    saved=layer_saved,
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
    vendor=rms_norm_vendor,
    fake=_rms_fake,
    sizes=_sizes,
    flags=(1, None, None),
    no_path=_NO_GRAPH,
    backward=rms_backward,
    saved=rms_saved,
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
    vendor=add_layer_norm_vendor,
    fake=_add_fake,
    sizes=_sizes,
    family="layer_norm",
    flags=(1, None, None, None),
    no_path=_NO_GRAPH,
    backward=add_layer_backward,
    saved=add_layer_saved,
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
    vendor=add_rms_norm_vendor,
    fake=_add_fake,
    sizes=_sizes,
    family="rms_norm",
    flags=(1, None, None),
    no_path=_NO_GRAPH,
    backward=add_rms_backward,
    saved=add_rms_saved,
    vendor_trains=True,
    autocast="float32",
)
_ADD_RMS_NORM.metal(_possible, _add_rms_metal)
_ADD_RMS_NORM.triton(_possible, _add_rms_triton)
