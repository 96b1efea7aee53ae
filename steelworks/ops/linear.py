"""linear, with bias, residual and activation; qkv_linear, three of one x."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch.nn import functional

from steelworks.errors import InvalidInputError
from steelworks.paths import Signature

from ._checks import check_alike
from ._library import Arguments, Operator, Tensors, device_type, dtype_of, float_reason, shape_of
from .matmul import matmul

ACTIVATIONS: Final = (None, "relu", "gelu", "silu")


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """activation(x W^T + bias + residual); without the last two, torch.nn.functional.linear.

    Our kernel applies bias, residual and activation before it rounds. Differentiable.

    Args:
        x: (..., K), floating point.
        weight: (N, K), or (K,) as torch allows it.
        bias: (N,).
        activation: None, ``"relu"``, ``"gelu"`` (the exact form) or ``"silu"``.
        residual: Of the result's shape.

    Returns:
        (..., N), of x's dtype.

    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit, or no such activation.
    """
    result: torch.Tensor = LINEAR((x, weight, bias, residual), (x, weight, bias, activation, residual))
    return result


def qkv_linear(
    x: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bias: torch.Tensor | None = None,
    key_bias: torch.Tensor | None = None,
    value_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three linear layers of one x: an attention's query, key and value. On CUDA one launch. Differentiable.

    Args:
        x: (..., K), floating point.
        query, key, value: Weights (N, K) of x's dtype; each N may be another.
        query_bias, key_bias, value_bias: (N,); all or none.

    Returns:
        Three tensors (..., N).

    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit, or a bias for some and none for others.
    """
    arguments = (x, query, key, value, query_bias, key_bias, value_bias)
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _QKV(arguments, arguments)
    return result


def _check_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor | None,
) -> None:
    check_alike("linear", x=x, weight=weight, bias=bias, residual=residual)
    if activation not in ACTIVATIONS:
        allowed = ", ".join(map(repr, ACTIVATIONS))
        raise InvalidInputError(f"linear: activation is {activation!r}; allowed are {allowed}")
    if weight.dim() not in (1, 2) or x.dim() < 1 or x.shape[-1] != weight.shape[-1]:
        raise InvalidInputError(
            f"linear: x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; (..., K) and (N, K) are needed"
        )
    if bias is not None and tuple(bias.shape) not in ((), (1,), tuple(weight.shape[:-1])):
        raise InvalidInputError(
            f"linear: bias has shape {tuple(bias.shape)}; with this weight {tuple(weight.shape[:-1])} is needed"
        )
    result = (*x.shape[:-1], *weight.shape[:-1])
    if residual is not None and tuple(residual.shape) != result:
        raise InvalidInputError(
            f"linear: residual has shape {tuple(residual.shape)}; the result's, {result}, is needed"
        )


# --- linear ---------------------------------------------------------------------------------------------------


def _linear_signature(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor | None,
) -> tuple[Any, ...]:
    if bias is None and residual is None:
        return (
            "linear",
            device_type(x),
            x.dtype,
            (x.shape, weight.shape, None, None),
            (weight.dtype, None, None, activation),
        )
    return (
        "linear",
        device_type(x),
        x.dtype,
        (x.shape, weight.shape, shape_of(bias), shape_of(residual)),
        (weight.dtype, dtype_of(bias), dtype_of(residual), activation),
    )


def _linear_sizes(signature: Signature) -> Mapping[str, int]:
    x, weight = signature.shapes[0] or (1,), signature.shapes[1] or (1,)
    return {
        "rows": torch.Size(x[:-1]).numel(),
        "columns": weight[0] if len(weight) > 1 else 1,
        "terms": x[-1],
        "after": int(signature.shapes[3] is not None or signature.flags[3] is not None),
    }


def _linear_vendor(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    y = functional.linear(x, weight, bias)
    return y if activation is None and residual is None else _finished(y, activation, residual)


def _finished(y: torch.Tensor, activation: str | None, residual: torch.Tensor | None) -> torch.Tensor:
    if residual is not None:
        y = y + residual
    if activation is None:
        return y
    if activation not in ACTIVATIONS:
        raise ValueError(activation)  # _check says it better
    result: torch.Tensor = getattr(functional, activation)(y)
    return result


def _linear_metal(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    from steelworks.kernels.metal.gemm import gemm

    if x.dim() > 1:
        return gemm(x, weight, trans_b=True, bias=bias, residual=residual, activation=activation)
    row = None if residual is None else residual.unsqueeze(0)
    return gemm(x.unsqueeze(0), weight, trans_b=True, bias=bias, residual=row, activation=activation).squeeze(
        0
    )


def _linear_graph(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    y = torch.mm(rows, weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
    return _finished(y.view(*x.shape[:-1], weight.shape[0]), activation, residual)


def _linear_possible(signature: Signature) -> str | None:
    _, weight, bias, _ = signature.shapes
    if weight is not None and len(weight) != 2:
        return "the weight is no matrix"
    if bias is not None and weight is not None and tuple(bias) != tuple(weight[:1]):
        return "the bias is broadcast"
    if any(d not in (None, signature.dtype) for d in signature.flags[:3]):
        return "the tensors' dtypes differ"
    return float_reason(signature.dtype)


def _linear_possible_triton(signature: Signature) -> str | None:
    return _linear_possible(signature) or _half_reason(signature.dtype)


def _half_reason(dtype: torch.dtype) -> str | None:
    if dtype in (torch.float16, torch.bfloat16):
        return None
    return f"it is {dtype}; the Triton kernels are for float16 and bfloat16"


def _linear_triton(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    from steelworks.kernels.triton import linear as kernels

    return kernels.linear(x, weight, bias, activation, residual)


def _linear_fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], *weight.shape[:-1]))


def _linear_saved(inputs: Arguments, output: Any) -> tuple[Tensors, Any]:
    x, weight, bias, activation, residual = inputs
    keep = residual if activation in ("gelu", "silu") else None
    after = output if activation == "relu" else None
    needed = bias if activation in ("gelu", "silu") else None
    about = (activation, shape_of(bias), residual is not None)
    return (x, weight, needed, keep, after), about


def _linear_backward(ctx: Any, gradient: torch.Tensor) -> Any:
    x, weight, bias, residual, after = ctx.saved_tensors
    activation, bias_shape, has_residual = ctx.rest
    if activation == "relu":
        gradient = gradient * (after > 0)
    elif activation is not None:
        gradient = _through(activation, gradient, linear(x, weight, bias, residual=residual))
    needs_x, needs_weight, needs_bias, _, needs_residual = ctx.needs_input_grad
    rows = x.reshape(-1, x.shape[-1])
    columns = weight.reshape(-1, weight.shape[-1])
    across = gradient.reshape(-1, columns.shape[0])
    of_x = matmul(across, columns).view(x.shape) if needs_x else None
    of_weight = matmul(across.t(), rows).view(weight.shape) if needs_weight else None
    of_bias = across.sum_to_size(bias_shape) if needs_bias and bias_shape else None
    if needs_bias and bias_shape is not None and of_bias is None:
        of_bias = across.sum()
    return of_x, of_weight, of_bias, None, gradient if needs_residual and has_residual else None


def _through(activation: str, gradient: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """The gradient of an activation's argument."""
    if activation == "silu":
        share = torch.sigmoid(before)
        return gradient * share * (1 + before * (1 - share))
    result: torch.Tensor = torch.ops.aten.gelu_backward(gradient, before)
    return result


LINEAR = Operator(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias=None, str? activation=None, Tensor? residual=None) -> Tensor",
    signature=_linear_signature,
    check=_check_linear,
    vendor=_linear_vendor,
    fake=_linear_fake,
    sizes=_linear_sizes,
    flags=(None, None, None, None),
    backward=_linear_backward,
    saved=_linear_saved,
    autocast="lower",
)
LINEAR.metal(_linear_possible, _linear_metal)
LINEAR.triton(_linear_possible_triton, _linear_triton)
LINEAR.graph(_linear_possible, _linear_graph)


# --- qkv_linear -----------------------------------------------------------------------------------------------


def _qkv_signature(*arguments: Any) -> tuple[Any, ...]:
    x, query, key, value, *biases = arguments
    return (
        "qkv_linear",
        device_type(x),
        x.dtype,
        (x.shape, query.shape, key.shape, value.shape, *map(shape_of, biases)),
        (query.dtype, key.dtype, value.dtype, *map(dtype_of, biases)),
    )


def _check_qkv(*arguments: Any) -> None:
    x, query, key, value, query_bias, key_bias, value_bias = arguments
    check_alike(
        "qkv_linear",
        x=x,
        query=query,
        key=key,
        value=value,
        query_bias=query_bias,
        key_bias=key_bias,
        value_bias=value_bias,
    )
    layers = (("query", query, query_bias), ("key", key, key_bias), ("value", value, value_bias))
    for name, weight, bias in layers:
        if x.dim() < 1 or weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
            raise InvalidInputError(
                f"qkv_linear: x has shape {tuple(x.shape)} and {name} {tuple(weight.shape)}; (..., K) and (N, K) are "
                "needed"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise InvalidInputError(
                f"qkv_linear: {name}_bias has shape {tuple(bias.shape)}; ({weight.shape[0]},) is needed"
            )
        if (bias is None) != (query_bias is None):
            raise InvalidInputError(
                f"qkv_linear: query_bias is {'not ' * (query_bias is not None)}None and {name}_bias the opposite; give "
                "all biases or none"
            )


def _qkv_layers(arguments: Sequence[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    yield from zip(arguments[1:4], arguments[4:], strict=True)


def _qkv_vendor(*arguments: Any) -> tuple[torch.Tensor, ...]:
    return tuple(functional.linear(arguments[0], *layer) for layer in _qkv_layers(arguments))


def _qkv_metal(*arguments: Any) -> tuple[torch.Tensor, ...]:
    return tuple(_linear_metal(arguments[0], *layer, None, None) for layer in _qkv_layers(arguments))


def _qkv_triton(*arguments: Any) -> tuple[torch.Tensor, ...]:
    from steelworks.kernels.triton import linear as kernels

    return kernels.qkv_linear(*arguments)


def _qkv_possible(signature: Signature) -> str | None:
    if any(d not in (None, signature.dtype) for d in signature.flags):
        return "the tensors' dtypes differ"
    return float_reason(signature.dtype)


def _qkv_possible_triton(signature: Signature) -> str | None:
    return _qkv_possible(signature) or _half_reason(signature.dtype)


def _qkv_sizes(signature: Signature) -> Mapping[str, int]:
    x, *weights = (shape or (1,) for shape in signature.shapes[:4])
    return {
        "rows": torch.Size(x[:-1]).numel(),
        "columns": sum(w[0] for w in weights),
        "terms": x[-1],
    }


def _qkv_fake(x: torch.Tensor, *arguments: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    return tuple(x.new_empty((*x.shape[:-1], w.shape[0])) for w in arguments[:3] if w is not None)


def _qkv_saved(inputs: Arguments, output: Any) -> tuple[Tensors, Any]:
    return inputs[:4], inputs[4] is not None


def _qkv_backward(ctx: Any, *gradients: torch.Tensor) -> Any:
    x, *weights = ctx.saved_tensors
    needs_x, *needs = ctx.needs_input_grad
    rows = x.reshape(-1, x.shape[-1])
    across = [g.reshape(-1, w.shape[0]) for g, w in zip(gradients, weights, strict=True)]
    of_x = None
    if needs_x:
        first, *others = (matmul(g, w) for g, w in zip(across, weights, strict=True))
        of_x = sum(others, first).view(x.shape)
    of_weights = [matmul(g.t(), rows) if need else None for g, need in zip(across, needs[:3], strict=True)]
    of_biases = [g.sum(0) if need and ctx.rest else None for g, need in zip(across, needs[3:], strict=True)]
    return of_x, *of_weights, *of_biases


_QKV = Operator(
    "qkv_linear",
    "(Tensor x, Tensor query, Tensor key, Tensor value, Tensor? query_bias=None, Tensor? key_bias=None, "
    "Tensor? value_bias=None) -> (Tensor, Tensor, Tensor)",
    signature=_qkv_signature,
    check=_check_qkv,
    vendor=_qkv_vendor,
    fake=_qkv_fake,
    sizes=_qkv_sizes,
    flags=(None,) * 6,
    backward=_qkv_backward,
    saved=_qkv_saved,
    autocast="lower",
    no_path={("mps", "graph"): "PyTorch has no operator for three linear layers, so nothing to ask for"},
)
_QKV.metal(_qkv_possible, _qkv_metal)
_QKV.triton(_qkv_possible_triton, _qkv_triton)
