"""What the operands of layer_norm and rms_norm must be, for the operations and for the kernels alike."""

from __future__ import annotations

import torch

from steelworks.errors import InvalidInputError


def check_norm(
    operation: str,
    x: torch.Tensor,
    shape: tuple[int, ...],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> None:
    """Refuses shapes and dtypes that do not fit together.

    Args:
        operation: Named in the message.
        x: Of a dtype that the caller has looked at.
        shape: The dimensions that are normalised; the last ones of ``x``, at least one.
        weight: Of that shape, of x's dtype or float32.
        bias: Of that shape, of the weight's dtype.
        residual: Of x's shape and dtype.

    Raises:
        InvalidInputError: one does not fit.
    """
    if not shape or tuple(x.shape[-len(shape) :]) != shape:
        raise InvalidInputError(
            f"{operation}: normalized_shape is {shape} and x has shape {tuple(x.shape)}; x's last dimensions are "
            "needed, at least one"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise InvalidInputError(f"{operation}: {name} has shape {tuple(tensor.shape)}; {shape} is needed")
        if tensor.dtype not in (x.dtype, torch.float32):
            raise InvalidInputError(
                f"{operation}: {name} is {tensor.dtype} and x is {x.dtype}; that, or float32, is needed: convert it"
            )
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        raise InvalidInputError(
            f"{operation}: weight is {weight.dtype} and bias {bias.dtype}; convert one to the other"
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise InvalidInputError(
            f"{operation}: residual is {residual.dtype} of shape {tuple(residual.shape)} and x {x.dtype} of shape "
            f"{tuple(x.shape)}; they must be the same"
        )
