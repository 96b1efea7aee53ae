"""The k largest or smallest elements along a dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from steelworks.errors import InvalidInputError
from steelworks.paths import Signature

from ._checks import one_dimension, size_reason
from ._library import Operator, device_type, float_reason


def top_k(
    input: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest (or smallest) elements along one dimension, the best first; ``torch.topk``.

    Every NaN is larger than all else, and -0 equals +0. Of equal elements our kernels take those with the lowest index;
    PyTorch leaves open which. The values are differentiable, through the vendor's.

    Args:
        input: Of any shape and strides, not boolean. Our kernels take float32, float16 and bfloat16, in Metal int32 and
            int64 too.
        k: How many, from 0 to the size of the dimension.
        dim: The dimension.
        largest: The largest; otherwise the smallest.
        sorted: False allows any order, which the vendor may find faster.

    Returns:
        The values, and where each was along ``dim`` (int64); ``dim`` has size k.

    Raises:
        InvalidInputError: a dtype or dimension that there is not, or more elements than the dimension has.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _TOP_K((input,), (input, k, dim, largest, sorted))
    return result


def _vendor(
    input: torch.Tensor, k: int, dim: int, largest: bool, sorted: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if input.dim() == 0 and k == 0:  # which torch.topk answers with one element
        return input.new_empty(0), torch.empty(0, dtype=torch.int64, device=input.device)
    values, indices = torch.topk(input, k, dim, largest, sorted)
    return values, indices


def _fake(
    input: torch.Tensor, k: int, dim: int, largest: bool, sorted: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = list(input.shape)
    if shape:
        shape[dim] = k
    elif k == 0:
        shape = [0]
    return input.new_empty(shape), input.new_empty(shape, dtype=torch.int64)


def _signature(input: torch.Tensor, k: int, dim: int, largest: bool, sorted: bool) -> tuple[Any, ...]:
    return ("top_k", device_type(input), input.dtype, (input.shape,), (k, dim, largest, sorted))


def _sizes(signature: Signature) -> Mapping[str, int]:
    shape = signature.shapes[0] or (1,)
    k, dim = signature.flags[:2]
    assert isinstance(k, int) and isinstance(dim, int)
    return {"rows": torch.Size(shape).numel() // max(shape[dim], 1), "columns": shape[dim], "k": k}


def _check(input: torch.Tensor, k: int, dim: int, largest: bool, sorted: bool) -> None:
    length = (input.shape or (1,))[one_dimension("top_k", dim, input.dim())]
    if not 0 <= k <= length:
        raise InvalidInputError(
            f"top_k: k is {k}; dim {dim} has {length} elements: 0 to {length} are allowed"
        )
    if input.dtype == torch.bool or input.is_complex():
        raise InvalidInputError(
            f"top_k: input is {input.dtype}; a floating-point or integer dtype is needed: convert it with .to(...)"
        )


def _possible_metal(signature: Signature) -> str | None:
    if signature.dtype in (torch.int32, torch.int64):
        return size_reason(signature.shapes[0])
    return float_reason(signature.dtype) or size_reason(signature.shapes[0])


def _possible_triton(signature: Signature) -> str | None:
    from steelworks.kernels.triton import tuning
    from steelworks.kernels.triton._topk_kernels import FAN

    k, dim = signature.flags[:2]
    assert isinstance(k, int) and isinstance(dim, int)
    length = (signature.shapes[0] or (1,))[dim]
    if k > tuning.TOPK_MOST:
        return f"k is {k}; the Triton kernels choose up to {tuning.TOPK_MOST}"
    most = tuning.TOPK_TOP * FAN**2
    if length > most:
        return f"there are {length} elements along the dimension; the Triton kernels take up to {most}"
    return float_reason(signature.dtype)


def _metal(
    input: torch.Tensor, k: int, dim: int, largest: bool, sorted: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    from steelworks.kernels.metal import topk as kernels

    return kernels.topk(input, k, dim, largest=largest)


def _triton(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    from steelworks.kernels.triton import topk as kernels

    return kernels.top_k(*arguments)


_TOP_K: Final = Operator(
    "top_k",
    "(Tensor input, int k, int dim, bool largest, bool sorted) -> (Tensor, Tensor)",
    signature=_signature,
    check=_check,
    vendor=_vendor,
    fake=_fake,
    sizes=_sizes,
    flags=(50, -1, True, True),
    no_path={("mps", "graph"): "the vendor path is MPSGraph"},
)
_TOP_K.metal(_possible_metal, _metal)
_TOP_K.triton(_possible_triton, _triton)
