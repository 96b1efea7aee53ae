"""Rows of a table, chosen by ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F

from steelworks.errors import InvalidInputError
from steelworks.paths import Signature

from ._checks import check_devices, size_reason
from ._library import Operator, device_type, float_reason


def embedding(input: torch.Tensor, weight: torch.Tensor, padding_idx: int | None = None) -> torch.Tensor:
    """``weight[input]``; ``torch.nn.functional.embedding``. Differentiable in weight, through the vendor's.

    Args:
        input: Ids, int32 or int64, of any shape.
        weight: The table, ``(rows, width)``.
        padding_idx: A row that gets no gradient; negative ones count from the end.

    Returns:
        ``(*input.shape, width)``, of weight's dtype.

    Raises:
        InvalidInputError: dtypes, shapes or devices that do not fit; on the CPU also an id that the table does not
            have. (On a GPU the ids are not read back: our Metal kernel gives a row of NaN for such an id, and reads
            nothing outside the table; what PyTorch does is its own.)
    """
    result: torch.Tensor = _EMBEDDING((input, weight), (input, weight, padding_idx))
    return result


def _vendor(input: torch.Tensor, weight: torch.Tensor, padding_idx: int | None) -> torch.Tensor:
    return F.embedding(input, weight, padding_idx)


def _fake(input: torch.Tensor, weight: torch.Tensor, padding_idx: int | None) -> torch.Tensor:
    return weight.new_empty((*input.shape, weight.shape[1]))


def _signature(input: torch.Tensor, weight: torch.Tensor, padding_idx: int | None) -> tuple[Any, ...]:
    shapes = (weight.shape, input.shape)
    return ("embedding", device_type(weight), weight.dtype, shapes, (input.dtype, padding_idx))


def _sizes(signature: Signature) -> Mapping[str, int]:
    weight, input = signature.shapes
    assert weight is not None and input is not None
    return {"rows": torch.Size(input).numel(), "columns": weight[1]}


def _check(input: torch.Tensor, weight: torch.Tensor, padding_idx: int | None) -> None:
    if input.dtype not in (torch.int32, torch.int64):
        raise InvalidInputError(
            f"embedding: input is {input.dtype}; int32 or int64 is needed: convert it with .to(...)"
        )
    if weight.dim() != 2:
        raise InvalidInputError(f"embedding: weight has shape {tuple(weight.shape)}; (rows, width) is needed")
    check_devices("embedding", input=input, weight=weight)
    rows = weight.shape[0]
    if padding_idx is not None and not -rows <= padding_idx < rows:
        raise InvalidInputError(
            f"embedding: padding_idx is {padding_idx}; the table has rows 0 to {rows - 1} (or {-rows} to -1)"
        )
    if input.device.type == "cpu" and input.numel():
        least, most = int(input.min()), int(input.max())
        if least < 0 or most >= rows:
            raise InvalidInputError(
                f"embedding: ids go from {least} to {most}; the table has rows 0 to {rows - 1}"
            )


def _possible(signature: Signature) -> str | None:
    return (
        float_reason(signature.dtype) or size_reason(signature.shapes[0]) or size_reason(signature.shapes[1])
    )


def _metal(input: torch.Tensor, weight: torch.Tensor, padding_idx: int | None) -> torch.Tensor:
    from steelworks.kernels.metal import embedding as kernels

    return kernels.embedding(input, weight)


_EMBEDDING: Final = Operator(
    "embedding",
    "(Tensor input, Tensor weight, int? padding_idx) -> Tensor",
    signature=_signature,
    check=_check,
    vendor=_vendor,
    fake=_fake,
    sizes=_sizes,
    flags=(torch.int64, None),
    no_path={
        ("cuda", "steel"): "PyTorch's gather runs at the memory's speed on CUDA; there is no kernel of ours",
        ("mps", "graph"): "PyTorch picks MPSGraph or a kernel of its own by itself; neither can be asked for",
    },
)
_EMBEDDING.metal(_possible, _metal)
