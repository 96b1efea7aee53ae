"""Whether a user's whole module answers the same packed and padded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from steelworks.plans.packing._context import disabled, recorded
from steelworks.plans.packing._install import PackingHandle
from steelworks.plans.packing._tolerance import difference

_ROWS = 5
_MIN_COLUMNS = 8


@dataclass(frozen=True)
class VerifyReport:
    """The outcome of :func:`verify`.

    Attributes:
        max_abs_difference: the largest absolute difference of any output, at real positions;
            infinite where outputs have other shapes, or nothing could be compared.
        ok: whether packing may stay.
        reason: in one sentence, why or why not.
    """

    max_abs_difference: float
    ok: bool
    reason: str


def verify(
    module: nn.Module,
    handle: PackingHandle,
    example_inputs: object,
    pad_values: Mapping[str, float] | None = None,
) -> VerifyReport:
    """Run ``module`` packed and padded on ragged batches made from an example, and compare.

    The example's rows are repeated and cut to different lengths. An output whose second dimension is
    the length of the batch has one value a token; it is compared where the mask is 1.

    Args:
        module: the module that ``handle`` was installed on.
        handle: what :func:`install` returned.
        example_inputs: a mapping as tokenizers give, called as ``module(**example_inputs)``, with an
            ``attention_mask`` of shape [rows, length].
        pad_values: the padding value of each input; those not named are padded with 0.

    Returns:
        The report. A module that fails packed, or is never packed, is reported and not raised; a
        module that fails padded raises its own error.
    """
    values = _inputs(example_inputs)
    if values is None:
        return _refusal("the example is no mapping with an attention_mask [rows, length]: no rows to cut")
    largest = 0.0
    outputs = []
    for batch in _ragged(values, pad_values or {}):
        mask = batch["attention_mask"].bool()
        with torch.no_grad():
            with disabled():
                padded = module(**batch)
            with handle.enabled(), recorded() as calls:
                packed = module(**batch)
        if not calls:
            return _refusal("no encoder was packed when the module was called")
        outputs.append((mask, *(pytree.tree_leaves(_plain(output)) for output in (padded, packed))))
    (mask, first, _), (other_mask, second, _) = outputs
    by_token = [
        isinstance(a, torch.Tensor) and a.shape[:2] == mask.shape and b.shape[:2] == other_mask.shape
        for a, b in zip(first, second, strict=True)
    ]
    for real, padded, packed in outputs:
        if len(padded) != len(packed):
            return _refusal("packed and padded outputs have another structure")
        for a, b, token in zip(padded, packed, by_token, strict=True):
            if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
                if a != b:
                    return _refusal(f"packed and padded outputs differ: {a!r} and {b!r}")
                continue
            if token and a.shape == b.shape:
                a, b = a[real], b[real]
            gap, agrees = difference(a, b)
            largest = max(largest, gap)
            if not agrees:
                return VerifyReport(
                    largest,
                    False,
                    f"an output differs by up to {gap:.3g}; does the module use positions whose mask is 0?",
                )
    return VerifyReport(largest, True, "packed and padded agree")


def _refusal(reason: str) -> VerifyReport:
    return VerifyReport(float("inf"), False, reason)


def _inputs(example: object) -> dict[str, Any] | None:
    """The example's inputs by name, if it has a mask to cut rows by."""
    if not isinstance(example, Mapping):
        return None
    mask = example.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or mask.numel() == 0:
        return None
    return dict(example)


def _ragged(values: dict[str, Any], pad_values: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Two ragged batches of different width, made from the rows of the example."""
    shape = values["attention_mask"].shape
    width = max(shape[1], _MIN_COLUMNS)
    for columns in (width, width - 1):
        lengths = [columns, columns // 2, 1, columns - 1, 3]
        batch = {}
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape[:1] == shape[:1]:
                value = value.repeat(_ROWS, *[1] * (value.dim() - 1))[:_ROWS].clone()
                if value.shape[1:2] == shape[1:2]:
                    copies = -(-columns // shape[1])
                    value = value.repeat(1, copies, *[1] * (value.dim() - 2))[:, :columns].clone()
                    for row, length in enumerate(lengths):
                        value[row, length:] = 0 if name == "attention_mask" else pad_values.get(name, 0)
                        if name == "attention_mask":
                            value[row, :length] = 1
            batch[name] = value
        yield batch


def _plain(output: Any) -> Any:
    """ModelOutput and its like as plain dicts, which pytree knows whatever else is registered."""
    if isinstance(output, Mapping):
        return {name: _plain(value) for name, value in output.items() if value is not None}
    if isinstance(output, tuple | list):
        return [_plain(value) for value in output]
    return output
