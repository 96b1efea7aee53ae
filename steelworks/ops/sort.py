"""Stable sorting along a dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from steelworks.errors import InvalidInputError
from steelworks.paths import Signature

from ._checks import one_dimension, size_reason
from ._library import Operator, device_type, float_reason


def sort(input: torch.Tensor, dim: int = -1, descending: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorts along one dimension; ``torch.sort(..., stable=True)``.

    Elements that are equal keep their order, always. Every NaN is larger than all else (last when ascending, first when
    descending), and -0 equals +0. The values are differentiable, through the vendor's.

    Args:
        input: Of any shape and strides, not complex. Our kernels take float32, float16, bfloat16, int32 and int64.
        dim: The dimension.
        descending: The largest first.

    Returns:
        The sorted values, and where each was along ``dim`` (int64).

    Raises:
        InvalidInputError: a dtype or dimension that there is not.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _SORT((input,), (input, dim, descending))
    return result


def _vendor(input: torch.Tensor, dim: int, descending: bool) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = torch.sort(input, dim=dim, descending=descending, stable=True)
    return values, indices


def _fake(input: torch.Tensor, dim: int, descending: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return input.new_empty(input.shape), input.new_empty(input.shape, dtype=torch.int64)


def _signature(input: torch.Tensor, dim: int, descending: bool) -> tuple[Any, ...]:
    return ("sort", device_type(input), input.dtype, (input.shape,), (dim, descending))


def _sizes(signature: Signature) -> Mapping[str, int]:
    shape = signature.shapes[0] or (1,)
    dim = signature.flags[0]
    assert isinstance(dim, int)
    return {"rows": torch.Size(shape).numel() // max(shape[dim], 1), "columns": shape[dim]}


def _check(input: torch.Tensor, dim: int, descending: bool) -> None:
    one_dimension("sort", dim, input.dim())
    if input.is_complex():
        raise InvalidInputError(
            f"sort: input is {input.dtype}, whose elements have no order: sort its real part or its absolute value"
        )


def _possible(signature: Signature) -> str | None:
    if signature.dtype in (torch.int32, torch.int64):
        return size_reason(signature.shapes[0])
    return float_reason(signature.dtype) or size_reason(signature.shapes[0])


def _metal(input: torch.Tensor, dim: int, descending: bool) -> tuple[torch.Tensor, torch.Tensor]:
    from steelworks.kernels.metal import sort as kernels

    return kernels.sort(input, dim, descending=descending)


_SORT: Final = Operator(
    "sort",
    "(Tensor input, int dim, bool descending) -> (Tensor, Tensor)",
    signature=_signature,
    check=_check,
    vendor=_vendor,
    fake=_fake,
    sizes=_sizes,
    flags=(-1, False),
    no_path={
        ("cuda", "steel"): "PyTorch's radix sort is fast on CUDA; there is no kernel of ours",
        ("mps", "graph"): "the vendor path is MPSGraph",
    },
)
_SORT.metal(_possible, _metal)
