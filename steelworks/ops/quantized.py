"""Weights in 8 or 4 bits: making them, and the linear layer that reads them as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import torch
import torch.nn.functional as F

from steelworks.errors import InvalidInputError
from steelworks.kernels import quantized_weight as _formats
from steelworks.kernels.quantized_weight import GROUP_SIZES, QuantizedWeight
from steelworks.paths import Signature

from ._checks import FLOATS, check_devices, check_dtype
from ._library import Arguments, Operator, Tensors, device_type, dtype_of, float_reason, shape_of

__all__ = [
    "GROUP_SIZES",
    "QuantizedWeight",
    "dequantize",
    "quantize_int4",
    "quantize_int8",
    "quantized_linear",
]

_NO_GRAPH = {("mps", "graph"): "PyTorch has no operator for this format, so nothing to ask for"}


def quantize_int8(weight: torch.Tensor, *, symmetric: bool = False) -> QuantizedWeight:
    """8 bits with one scale a row: ``scale * (integer - zero)``, rounded to the nearest.

    Args:
        weight: ``(n, k)``; float32, float16 or bfloat16; finite. The linear layer computes in its dtype.
        symmetric: The integer 0 stands for 0, and the range is -127..127. Otherwise the row's smallest and largest
            number (or 0) are -128 and 127.

    Raises:
        InvalidInputError: not a matrix of such a dtype, or not finite.
    """
    return _on_device(weight, lambda w: _formats.quantize_int8(w, symmetric=symmetric))


def quantize_int4(weight: torch.Tensor, group_size: int = 64) -> QuantizedWeight:
    """4 bits with one scale for each ``group_size`` columns of a row.

    Args:
        weight: ``(n, k)``; float32, float16 or bfloat16; finite. k need not be a multiple of the group size. The linear
            layer computes in its dtype.
        group_size: 32, 64 or 128.

    Raises:
        InvalidInputError: not a matrix of such a dtype, not finite, or another group size.
    """
    return _on_device(weight, lambda w: _formats.quantize_int4(w, group_size))


def dequantize(weight: QuantizedWeight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The numbers that a quantized weight stands for, ``(n, k)``.

    Args:
        weight: From ``quantize_int8`` or ``quantize_int4``.
        dtype: Of the result; computed in float32 and rounded once.

    Raises:
        InvalidInputError: not such a weight.
    """
    _check_kind("dequantize", weight)
    tensors = (weight.packed, weight.scales, weight.zeros)
    plain = (weight.bits, weight.group_size, weight.columns, dtype)
    result: torch.Tensor = _DEQUANTIZE(tensors, (*tensors, *plain))
    return result


def quantized_linear(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``x dequantize(weight)^T + bias``, the weight staying packed in memory.

    Differentiable in x and bias; the weight is dequantized again for the backward, not kept. Ours sums in float32 and
    rounds once; the vendor's composition rounds the dequantized weight to the dtype.

    Args:
        x: ``(..., k)``, of the dtype of the weight's scales (under autocast it is converted).
        weight: From ``quantize_int8`` or ``quantize_int4``.
        bias: ``(n,)``, of x's dtype.

    Returns:
        ``(..., n)``.

    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit together, or a gradient of the weight is asked for.
    """
    _check_kind("quantized_linear", weight)
    packed, scales, zeros = weight.packed, weight.scales, weight.zeros
    if x.dtype != scales.dtype and torch.is_autocast_enabled(x.device.type):
        x, bias = x.to(scales.dtype), bias if bias is None else bias.to(scales.dtype)
    if scales.requires_grad or zeros.requires_grad:
        raise InvalidInputError(
            "quantized_linear: scales or zeros of the weight require a gradient, which there is none of; only x and "
            "bias have one: detach() them"
        )
    arguments = (x, packed, scales, zeros, weight.bits, weight.group_size, weight.columns, bias)
    result: torch.Tensor = _LINEAR((x, packed, scales, zeros, bias), arguments)
    return result


def _on_device(weight: torch.Tensor, quantize: Callable[[torch.Tensor], QuantizedWeight]) -> QuantizedWeight:
    """Quantizes in float64, on the host for a device that has none."""
    if weight.device.type != "mps":
        return quantize(weight.detach())
    made = quantize(weight.detach().cpu())
    parts = {name: getattr(made, name).to(weight.device) for name in ("packed", "scales", "zeros")}
    return replace(made, **parts)


def _check_kind(operation: str, weight: object) -> None:
    if not isinstance(weight, QuantizedWeight):
        raise InvalidInputError(
            f"{operation}: weight is of type {type(weight).__name__}; a QuantizedWeight is needed: quantize_int8 or "
            "quantize_int4 makes one"
        )


def _vendor(
    x: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bits: int,
    group_size: int,
    columns: int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        # PyTorch's own differentiation would keep the dequantized weight.
        result: torch.Tensor = _LINEAR.registered(x, packed, scales, zeros, bits, group_size, columns, bias)
        return result
    weight = QuantizedWeight(packed, scales, zeros, bits, group_size, columns)
    return F.linear(x, dequantize(weight, x.dtype), bias)


def _saved(inputs: Arguments, _: Any) -> tuple[Tensors, Any]:
    return inputs[1:4], inputs[4:7]


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    of_x = of_bias = None
    if ctx.needs_input_grad[0]:
        weight = QuantizedWeight(*ctx.saved_tensors, *ctx.rest)
        of_x = gradient @ dequantize(weight, gradient.dtype)
    if ctx.needs_input_grad[7]:
        of_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0)
    return of_x, None, None, None, None, None, None, of_bias


def _fake(x: torch.Tensor, packed: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


def _signature(
    x: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bits: int,
    group_size: int,
    columns: int,
    bias: torch.Tensor | None,
) -> tuple[Any, ...]:
    shapes = (x.shape, packed.shape, scales.shape, zeros.shape, shape_of(bias))
    dtypes = (packed.dtype, scales.dtype, zeros.dtype, dtype_of(bias))
    return ("quantized_linear", device_type(x), x.dtype, shapes, (bits, group_size, columns, *dtypes))


def _sizes(signature: Signature) -> Mapping[str, int]:
    x, packed = signature.shapes[:2]
    bits, group_size, columns = signature.flags[:3]
    assert x is not None and packed is not None
    assert isinstance(bits, int) and isinstance(group_size, int) and isinstance(columns, int)
    rows = torch.Size(x[:-1]).numel()
    return {"rows": rows, "columns": packed[0], "depth": columns, "bits": bits, "group": group_size}


def _check(
    x: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bits: int,
    group_size: int,
    columns: int,
    bias: torch.Tensor | None,
) -> None:
    name = "quantized_linear"
    weight = _check_weight(name, packed, scales, zeros, bits, group_size, columns)
    n, k = weight.shape
    if x.dim() < 1 or x.shape[-1] != k:
        raise InvalidInputError(
            f"{name}: x has shape {tuple(x.shape)} and the weight {n} rows of {k}; (..., {k}) is needed"
        )
    if x.dtype != scales.dtype:
        raise InvalidInputError(
            f"{name}: x is {x.dtype} and the weight was quantized for {scales.dtype}; convert x, or quantize a weight "
            f"of {x.dtype}"
        )
    if bias is not None and (bias.shape != (n,) or bias.dtype != x.dtype):
        raise InvalidInputError(
            f"{name}: bias is {bias.dtype} of shape {tuple(bias.shape)}; {x.dtype} of shape ({n},) is needed"
        )
    check_devices(name, packed=packed, x=x, bias=bias)


def _check_weight(
    name: str,
    packed: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bits: int,
    group_size: int,
    columns: int,
) -> QuantizedWeight:
    weight = QuantizedWeight(packed, scales, zeros, bits, group_size, columns)
    try:
        _formats.check_weight(weight)
    except InvalidInputError as problem:
        raise InvalidInputError(f"{name}: {problem}; quantize_int8 and quantize_int4 make such") from None
    check_devices(name, packed=packed, scales=scales, zeros=zeros)
    return weight


# --- dequantize -----------------------------------------------------------------------------------------------


def _vendor_dequantize(
    packed: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bits: int,
    group_size: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    weight = QuantizedWeight(packed, scales, zeros, bits, group_size, columns)
    return _formats.dequantize(weight).to(dtype)


def _fake_dequantize(packed: torch.Tensor, *rest: Any) -> torch.Tensor:
    return packed.new_empty((packed.shape[0], rest[4]), dtype=rest[5])


def _signature_dequantize(
    packed: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bits: int,
    group_size: int,
    columns: int,
    dtype: torch.dtype,
) -> tuple[Any, ...]:
    shapes = (packed.shape, scales.shape, zeros.shape)
    flags = (bits, group_size, columns, packed.dtype, zeros.dtype, dtype)
    return ("dequantize", device_type(packed), scales.dtype, shapes, flags)


def _sizes_dequantize(signature: Signature) -> Mapping[str, int]:
    (packed, *_), (bits, group_size, columns, *_) = signature.shapes, signature.flags
    assert packed is not None and isinstance(bits, int)
    assert isinstance(group_size, int) and isinstance(columns, int)
    return {"columns": packed[0], "depth": columns, "bits": bits, "group": group_size}


def _check_dequantize(
    packed: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bits: int,
    group_size: int,
    columns: int,
    dtype: torch.dtype,
) -> None:
    _check_weight("dequantize", packed, scales, zeros, bits, group_size, columns)
    check_dtype("dequantize", "dtype", dtype, FLOATS)


def _possible_dequantize(signature: Signature) -> str | None:
    wanted = signature.flags[-1]
    assert isinstance(wanted, torch.dtype)
    return float_reason(signature.dtype) or float_reason(wanted)


def _triton_dequantize(*arguments: Any) -> torch.Tensor:
    from steelworks.kernels.triton import quantized as kernels

    return kernels.dequantize(QuantizedWeight(*arguments[:6]), arguments[6])


# --- registration ---------------------------------------------------------------------------------------------


def _possible(signature: Signature) -> str | None:
    return float_reason(signature.dtype)


def _metal(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    from steelworks.kernels.metal import quantized as kernels

    return kernels.quantized_linear(x, QuantizedWeight(*rest[:6]), rest[6])


def _triton(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    from steelworks.kernels.triton import quantized as kernels

    return kernels.quantized_linear(x, QuantizedWeight(*rest[:6]), rest[6])


_LINEAR: Final = Operator(
    "quantized_linear",
    "(Tensor x, Tensor packed, Tensor scales, Tensor zeros, int bits, int group_size, int columns, Tensor? bias) "
    "-> Tensor",
    signature=_signature,
    check=_check,
    vendor=_vendor,
    fake=_fake,
    sizes=_sizes,
    flags=(4, 64, 0),
    no_path=_NO_GRAPH,
    backward=_backward,
    saved=_saved,
)
_LINEAR.metal(_possible, _metal)
_LINEAR.triton(_possible, _triton)

_DEQUANTIZE: Final = Operator(
    "dequantize",
    "(Tensor packed, Tensor scales, Tensor zeros, int bits, int group_size, int columns, ScalarType dtype) -> Tensor",
    signature=_signature_dequantize,
    check=_check_dequantize,
    vendor=_vendor_dequantize,
    fake=_fake_dequantize,
    sizes=_sizes_dequantize,
    flags=(4, 64, 0, torch.uint8, torch.bfloat16, torch.bfloat16),
    no_path=_NO_GRAPH,
)
_DEQUANTIZE.triton(_possible_dequantize, _triton_dequantize)
