"""softmax and log_softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from steelworks.errors import InvalidInputError
from steelworks.paths import Signature, choose

from ._library import Arguments, Operator, Tensors, device_type, eager, float_reason

_SCHEMA = "(Tensor x, int dim=-1, ScalarType? dtype=None) -> Tensor"
_NO_GRAPH = {
    ("mps", "graph"): "PyTorch computes softmax with a Metal kernel of its own; MPSGraph can't be asked for"
}


def softmax(x: torch.Tensor, dim: int = -1, dtype: torch.dtype | None = None) -> torch.Tensor:
    """exp(x) over its sum along one dimension; torch.softmax, on the path that the selector picks.

    A row that is all -inf, or has a NaN or +inf, becomes NaN. Differentiable. Ours computes in float32.

    Args:
        x: Floating point, any shape, any strides.
        dim: The dimension.
        dtype: ``x`` is converted to it first; by default it stays.

    Returns:
        A tensor of ``x``'s shape.

    Raises:
        InvalidInputError: no such dimension, or a dtype that is not floating point.
    """
    result: torch.Tensor = _SOFTMAX((x,), (x, dim, dtype))
    return result


def log_softmax(x: torch.Tensor, dim: int = -1, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The logarithm of ``softmax``, without its underflow: x - maximum - log(sum of exp(x - maximum)).

    Arguments, result and errors are those of ``softmax``.
    """
    result: torch.Tensor = _LOG_SOFTMAX((x,), (x, dim, dtype))
    return result


def _sizes(signature: Signature) -> Mapping[str, int]:
    shape = signature.shapes[0] or (1,)
    dim = signature.flags[0]
    assert isinstance(dim, int)
    columns = shape[dim]
    inner = torch.Size(shape[dim % len(shape) + 1 :]).numel()
    return {"rows": torch.Size(shape).numel() // max(columns, 1), "columns": columns, "inner": inner}


def _check(name: str) -> Callable[..., None]:
    def check(x: torch.Tensor, dim: int, dtype: torch.dtype | None) -> None:
        most = max(x.dim(), 1)
        if not -most <= dim < most:
            raise InvalidInputError(
                f"{name}: dim is {dim}; for {x.dim()} dimensions, {-most} to {most - 1} are allowed"
            )
        for what, given in (("x is", x.dtype), ("dtype is", dtype)):
            if given is not None and not given.is_floating_point and (what != "x is" or dtype is None):
                raise InvalidInputError(
                    f"{name}: {what} {given}; a floating-point dtype is needed: convert it, or give dtype=torch.float32"
                )

    return check


def _possible(signature: Signature) -> str | None:
    wanted = signature.flags[1]
    if wanted not in (None, signature.dtype, torch.float32):
        return f"the result is to be {wanted}, neither x's dtype nor float32"
    return float_reason(signature.dtype)


def _saved(inputs: Arguments, output: Any) -> tuple[Tensors, Any]:
    x, dim, _ = inputs
    return (output,), (dim, x.dtype)


def _define(name: str, vendor: Callable[..., torch.Tensor], derivative: Any) -> Operator:
    def signature(x: torch.Tensor, dim: int, dtype: torch.dtype | None) -> tuple[Any, ...]:
        return (name, device_type(x), x.dtype, (x.shape,), (dim, dtype))

    def fake(x: torch.Tensor, dim: int = -1, dtype: torch.dtype | None = None) -> torch.Tensor:
        return x.new_empty(x.shape, dtype=x.dtype if dtype is None else dtype)

    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (output,) = ctx.saved_tensors
        dim, dtype = ctx.rest
        if gradient.is_cuda and eager(gradient, output) and float_reason(gradient.dtype) is None:
            signature_of = (name, "cuda", dtype, (output.shape,), (dim, None))
            if choose(signature_of).path == "steel":
                return backward_triton(gradient, output, dim, dtype), None, None
        return derivative(gradient, output, dim, dtype), None, None

    def backward_triton(
        gradient: torch.Tensor, output: torch.Tensor, dim: int, dtype: torch.dtype
    ) -> torch.Tensor:
        from steelworks.kernels.triton import softmax as kernels

        result: torch.Tensor = getattr(kernels, f"{name}_backward")(gradient, output, dim, dtype=dtype)
        return result

    def metal(x: torch.Tensor, dim: int, dtype: torch.dtype | None) -> torch.Tensor:
        from steelworks.kernels.metal import softmax as kernels

        result: torch.Tensor = getattr(kernels, name)(x, dim, dtype=dtype)
        return result

    def triton(x: torch.Tensor, dim: int, dtype: torch.dtype | None) -> torch.Tensor:
        from steelworks.kernels.triton import softmax as kernels

        result: torch.Tensor = getattr(kernels, name)(x, dim, dtype=dtype)
        return result

    operator = Operator(
        name,
        _SCHEMA,
        signature=signature,
        check=_check(name),
        vendor=vendor,
        fake=fake,
        sizes=_sizes,
        family="softmax",
        flags=(-1, None),
        no_path=_NO_GRAPH,
        backward=backward,
        saved=_saved,
        vendor_trains=True,
        autocast="float32",
    )
    operator.metal(_possible, metal)
    operator.triton(_possible, triton)
    return operator


_SOFTMAX = _define("softmax", torch.softmax, torch.ops.aten._softmax_backward_data)
_LOG_SOFTMAX = _define("log_softmax", torch.log_softmax, torch.ops.aten._log_softmax_backward_data)
