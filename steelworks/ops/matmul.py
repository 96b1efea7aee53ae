"""matmul, bmm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from steelworks.errors import InvalidInputError
from steelworks.paths import Signature

from ._checks import check_alike
from ._library import Arguments, Operator, Tensors, device_type, float_reason


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


def _check_matmul(a: torch.Tensor, b: torch.Tensor) -> None:
    check_alike("matmul", a=a, b=b)
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
    check_alike("bmm", a=a, b=b)
    if a.dim() != 3 or b.dim() != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        raise InvalidInputError(
            f"bmm: a has shape {tuple(a.shape)} and b {tuple(b.shape)}; (B, M, K) and (B, K, N) are needed"
        )


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
    backward=_matmul_backward,
    saved=_matmul_saved,
    autocast="lower",
)
for _operator in (_MATMUL, _BMM):
    _operator.metal(_matmul_possible, _product_metal)
    _operator.graph(_matmul_possible, _operator.vendor)  # which is what PyTorch's own mm and bmm are on mps
