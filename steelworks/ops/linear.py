"""linear (with bias, residual and activation), matmul, bmm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch.nn import functional

from steelworks.errors import InvalidInputError
from steelworks.paths import Signature

from ._library import Arguments, Operator, Tensors, device_type, dtype_of, float_reason, shape_of

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
    result: torch.Tensor = _LINEAR((x, weight, bias, residual), (x, weight, bias, activation, residual))
    return result


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product of two matrices, vectors, or batches of matrices that broadcast; torch.matmul. Differentiable.

    Args:
        a: (..., M, K) or (K,), floating point.
        b: (..., K, N) or (K,), of a's dtype.

    Returns:
        (..., M, N), dense; without M or N where ``a`` or ``b`` is a vector.

    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit.
    """
    result: torch.Tensor = _MATMUL((a, b), (a, b))
    return result


def bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The products of two batches of matrices; torch.bmm. Differentiable.

    Args:
        a: (B, M, K), floating point.
        b: (B, K, N), of a's dtype.

    Returns:
        (B, M, N), dense.

    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit.
    """
    result: torch.Tensor = _BMM((a, b), (a, b))
    return result


# --- checks ---------------------------------------------------------------------------------------------------


def _check_alike(op: str, **tensors: torch.Tensor | None) -> None:
    """All tensors have the first one's dtype and device."""
    (first_name, first), *others = tensors.items()
    assert first is not None
    for name, tensor in others:
        if tensor is None:
            continue
        if tensor.dtype != first.dtype:
            raise InvalidInputError(
                f"{op}: {first_name} is {first.dtype} and {name} is {tensor.dtype}; they must agree: convert one"
            )
        if tensor.device != first.device:
            raise InvalidInputError(
                f"{op}: {first_name} is on '{first.device}' and {name} on '{tensor.device}'; move them to one device"
            )


def _check_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor | None,
) -> None:
    _check_alike("linear", x=x, weight=weight, bias=bias, residual=residual)
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


def _check_matmul(a: torch.Tensor, b: torch.Tensor) -> None:
    _check_alike("matmul", a=a, b=b)
    terms = b.shape[-2 if b.dim() > 1 else -1] if b.dim() else -1
    if not a.dim() or not b.dim() or a.shape[-1] != terms:
        raise InvalidInputError(
            f"matmul: a has shape {tuple(a.shape)} and b {tuple(b.shape)}; (..., M, K) and (..., K, N), or vectors of "
            "K, are needed"
        )
    try:
        torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise InvalidInputError(
            f"matmul: the batch dimensions {tuple(a.shape[:-2])} and {tuple(b.shape[:-2])} do not broadcast"
        ) from None


def _check_bmm(a: torch.Tensor, b: torch.Tensor) -> None:
    _check_alike("bmm", a=a, b=b)
    if a.dim() != 3 or b.dim() != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        raise InvalidInputError(
            f"bmm: a has shape {tuple(a.shape)} and b {tuple(b.shape)}; (B, M, K) and (B, K, N) are needed"
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


#: Rows, columns and terms of the examples.
_PRODUCTS: Final = (
    (1, 1024, 1024),
    (1, 4096, 4096),
    (16, 4096, 4096),
    (64, 512, 512),
    (512, 384, 384),
    (512, 1536, 384),
    (512, 4096, 4096),
    (4096, 4096, 4096),
)


def _linear_examples(device: torch.device, dtype: torch.dtype) -> Iterator[Arguments]:
    for m, n, k in _PRODUCTS:
        x, weight = (torch.randn(r, k, device=device, dtype=dtype) for r in (m, n))
        yield x, weight, torch.zeros(n, device=device, dtype=dtype), None, None


def _matmul_examples(device: torch.device, dtype: torch.dtype) -> Iterator[Arguments]:
    for m, n, k in _PRODUCTS:
        yield torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)


def _bmm_examples(device: torch.device, dtype: torch.dtype) -> Iterator[Arguments]:
    for batch, m, n, k in ((12, 32, 32, 32), (12, 256, 256, 32), (96, 128, 128, 64), (32, 1024, 1024, 64)):
        a = torch.randn(batch, m, k, device=device, dtype=dtype)
        yield a, torch.randn(batch, k, n, device=device, dtype=dtype)


_LINEAR = Operator(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias=None, str? activation=None, Tensor? residual=None) -> Tensor",
    signature=_linear_signature,
    check=_check_linear,
    vendor=_linear_vendor,
    fake=_linear_fake,
    sizes=_linear_sizes,
    flags=(None, None, None, None),
    examples=_linear_examples,
    backward=_linear_backward,
    saved=_linear_saved,
    autocast="lower",
)
_LINEAR.metal(_linear_possible, _linear_metal)
_LINEAR.graph(_linear_possible, _linear_graph)


# --- matmul, bmm ----------------------------------------------------------------------------------------------


def _matmul_signature(a: torch.Tensor, b: torch.Tensor) -> tuple[Any, ...]:
    return ("matmul", device_type(a), a.dtype, (a.shape, b.shape), (b.dtype,))


def _bmm_signature(a: torch.Tensor, b: torch.Tensor) -> tuple[Any, ...]:
    return ("bmm", device_type(a), a.dtype, (a.shape, b.shape), (b.dtype,))


def _matmul_sizes(signature: Signature) -> Mapping[str, int]:
    a, b = signature.shapes[0] or (1,), signature.shapes[1] or (1,)
    lead = max(torch.Size(a[:-2]).numel(), torch.Size(b[:-2]).numel())
    return {
        "batch": lead,
        "rows": a[-2] if len(a) > 1 else 1,
        "columns": b[-1] if len(b) > 1 else 1,
        "terms": a[-1],
    }


def _matmul_possible(signature: Signature) -> str | None:
    a, b = signature.shapes
    if len(a or ()) < 2 or len(b or ()) < 2:
        return "an operand is a vector"
    if signature.flags[0] not in (None, signature.dtype):
        return "the operands' dtypes differ"
    return float_reason(signature.dtype)


def _product_metal(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    from steelworks.kernels.metal.gemm import gemm

    return gemm(a, b)


def _matmul_fake(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    return a.new_empty((*lead, *a.shape[-2:-1], *(b.shape[-1:] if b.dim() > 1 else ())))


def _matmul_saved(inputs: Arguments, output: Any) -> tuple[Tensors, Any]:
    return inputs, None


def _matmul_backward(ctx: Any, gradient: torch.Tensor) -> Any:
    a, b = ctx.saved_tensors
    left = a if a.dim() > 1 else a.unsqueeze(0)
    right = b if b.dim() > 1 else b.unsqueeze(1)
    wide = gradient
    if b.dim() == 1:
        wide = wide.unsqueeze(-1)
    if a.dim() == 1:
        wide = wide.unsqueeze(-2)
    needs_a, needs_b = ctx.needs_input_grad
    of_a = matmul(wide, right.mT).sum_to_size(left.shape).view(a.shape) if needs_a else None
    of_b = matmul(left.mT, wide).sum_to_size(right.shape).view(b.shape) if needs_b else None
    return of_a, of_b


_MATMUL = Operator(
    "matmul",
    "(Tensor a, Tensor b) -> Tensor",
    signature=_matmul_signature,
    check=_check_matmul,
    vendor=torch.matmul,
    fake=_matmul_fake,
    sizes=_matmul_sizes,
    family="matmul",
    flags=(None,),
    examples=_matmul_examples,
    backward=_matmul_backward,
    saved=_matmul_saved,
    autocast="lower",
)
_BMM = Operator(
    "bmm",
    "(Tensor a, Tensor b) -> Tensor",
    signature=_bmm_signature,
    check=_check_bmm,
    vendor=torch.bmm,
    fake=_matmul_fake,
    sizes=_matmul_sizes,
    family="matmul",
    flags=(None,),
    examples=_bmm_examples,
    backward=_matmul_backward,
    saved=_matmul_saved,
    autocast="lower",
)
for _operator in (_MATMUL, _BMM):
    _operator.metal(_matmul_possible, _product_metal)
    _operator.graph(_matmul_possible, _operator.vendor)  # which is what PyTorch's own mm and bmm are on mps
