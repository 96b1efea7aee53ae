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
    mask: str = "attention_mask",
) -> VerifyReport:
    """Run ``module`` packed and padded on ragged batches made from an example, and compare.

    The example's rows are repeated and cut to different lengths. An output whose second dimension is
    the length of the batch has one value a token; it is compared where the mask is 1.

    Args:
        module: the module that ``handle`` was installed on.
        handle: what :func:`install` returned.
        example_inputs: a mapping as tokenizers give, called as ``module(**example_inputs)``, with a
            mask of shape [rows, length].
        pad_values: the padding value of each input; those not named are padded with 0.
        mask: the name of the mask among the inputs.

    Returns:
        The report. A module that fails packed, or is never packed, is reported and not raised; a
        module that fails padded raises its own error.
    """
    if not _has_mask(example_inputs, mask):
        return _refusal(
            f"the example is no mapping with a mask {mask!r} of shape [rows, length]: no rows to cut"
        )
    runs = []
    for batch in _ragged(dict(example_inputs), pad_values or {}, mask):  # type: ignore[call-overload]
        with torch.no_grad():
            with disabled():
                padded = module(**batch)
            try:
                with handle.enabled(), recorded() as calls:
                    packed = module(**batch)
            except Exception as error:
                return _refusal(f"the module fails packed ({type(error).__name__}: {error})")
        if not calls:
            return _refusal("no encoder was packed when the module was called")
        runs.append(_Run(batch[mask].bool(), _leaves(padded), _leaves(packed)))
    return _compare(runs)


@dataclass(frozen=True)
class _Run:
    """The outputs of one batch, flat."""

    real: torch.Tensor
    padded: list[Any]
    packed: list[Any]


def _compare(runs: list[_Run]) -> VerifyReport:
    """Compare padded with packed in every run."""
    if len({len(leaves) for run in runs for leaves in (run.padded, run.packed)}) != 1:
        return _refusal("the structure of the output depends on the batch or on packing")
    largest = 0.0
    for index in range(len(runs[0].padded)):
        # One value a token: the second dimension follows the width of the batch in every run.
        by_token = all(
            isinstance(run.padded[index], torch.Tensor) and run.padded[index].shape[:2] == run.real.shape
            for run in runs
        )
        for run in runs:
            a, b = run.padded[index], run.packed[index]
            if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
                if a != b:
                    return _refusal(f"packed and padded outputs differ: {b!r} and {a!r}")
                continue
            if by_token and a.shape == b.shape:
                a, b = a[run.real], b[run.real]
            gap, agrees = difference(a, b)
            largest = max(largest, gap)
            if not agrees:
                question = "does the module use positions whose mask is 0?"
                return VerifyReport(largest, False, f"an output differs by up to {gap:.3g}; {question}")
    return VerifyReport(largest, True, "packed and padded agree")


def _refusal(reason: str) -> VerifyReport:
    return VerifyReport(float("inf"), False, reason)


def _has_mask(example: object, name: str) -> bool:
    mask = example.get(name) if isinstance(example, Mapping) else None
    return isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.numel() > 0


def _ragged(values: dict[str, Any], pad_values: Mapping[str, float], mask: str) -> Iterator[dict[str, Any]]:
    """Two ragged batches of different width, made from the rows of the example."""
    rows, length = values[mask].shape
    width = max(length, _MIN_COLUMNS)
    for columns in (width, width - 1):
        lengths = [columns, columns // 2, 1, columns - 1, 3]
        batch = {}
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape[:1] == (rows,):
                value = _repeated(value, 0, len(lengths))
                if value.shape[1:2] == (length,):
                    value = _repeated(value, 1, columns)
                    for row, count in enumerate(lengths):
                        value[row, count:] = 0 if name == mask else pad_values.get(name, 0)
                        if name == mask:
                            value[row, :count] = 1
            batch[name] = value
        yield batch


def _repeated(value: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """``value`` repeated along ``dim`` until it is ``size`` long; a new tensor."""
    places = torch.arange(size, device=value.device) % value.shape[dim]
    return value.index_select(dim, places)


def _leaves(output: Any) -> list[Any]:
    """The tensors and other values of an output, in order."""
    leaves: list[Any] = pytree.tree_leaves(_plain(output))
    return leaves


def _plain(output: Any) -> Any:
    """ModelOutput and its like as plain dicts, which pytree knows whatever else is registered."""
    if isinstance(output, Mapping):
        return {name: _plain(value) for name, value in output.items() if value is not None}
    if isinstance(output, tuple | list):
        return [_plain(value) for value in output]
    return output
