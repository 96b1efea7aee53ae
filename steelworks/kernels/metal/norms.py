"""layer_norm and rms_norm, with weight and bias, and with a residual that is added first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch

from steelworks.kernels.norm_operands import check_norm

from . import tuning
from ._launch import SIMD_WIDTH, Variant, empty, launch, metal_type
from ._views import GROUP, as_rows, ceil_div, check_float, check_size, round_up

_MOST_THREADS = 1024


@dataclass(frozen=True)
class _Params:
    """norms/params.h: the same fields in the same order."""

    rows: int
    width: int
    row_stride: int
    residual_stride: int
    has_weight: int
    has_bias: int
    has_residual: int
    writes_sum: int


def layer_norm(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """(h - mean(h)) / sqrt(variance(h) + eps) * weight + bias over the last dimensions, with h = x +
    residual.

    All of it is in float32, and the variance is that of the distances from the mean (biased, as torch's). The
    result is rounded once; h is not rounded in between.

    Args:
        x: ``(..., *normalized_shape)``; float32, float16 or bfloat16. Rows may be any distance apart; what
            else is not dense is copied.
        normalized_shape: The last dimensions of ``x``.
        weight: Of ``normalized_shape``; 1 by default. Of ``x``'s dtype or float32.
        bias: Of ``normalized_shape``, of the weight's dtype; 0 by default.
        eps: Added to the variance.
        residual: Of ``x``'s shape and dtype; 0 by default.

    Returns:
        A dense tensor of ``x``'s shape and dtype.

    Raises:
        InvalidInputError: dtypes, shapes or devices that do not fit together.
    """
    return _norm("layer_norm", x, normalized_shape, weight, bias, eps, residual, want_sum=False)[0]


def rms_norm(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-6,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """h / sqrt(mean(h * h) + eps) * weight + bias over the last dimensions, with h = x + residual.

    Arguments, result and errors are those of ``layer_norm``; ``eps`` has the default that models use, not
    torch's.
    """
    return _norm("rms_norm", x, normalized_shape, weight, bias, eps, residual, want_sum=False)[0]


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``layer_norm`` of x + residual, and x + residual itself (rounded to the dtype), in one launch."""
    return _norm("add_layer_norm", x, normalized_shape, weight, bias, eps, residual, want_sum=True)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``rms_norm`` of x + residual, and x + residual itself (rounded to the dtype), in one launch."""
    return _norm("add_rms_norm", x, normalized_shape, weight, bias, eps, residual, want_sum=True)


def _norm(
    operation: str,
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
    want_sum: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    check_float(operation, "x", x)
    check_norm(operation, x, shape, weight, bias, residual)
    out = empty(x.shape, x.dtype, x.device)
    total = empty(x.shape, x.dtype, x.device) if want_sum else out
    if out.numel() == 0:
        return out, total
    view = as_rows(x, len(shape))
    added = as_rows(residual, len(shape)) if residual is not None else view
    check_size(operation, view.rows, view.columns)
    params = _Params(
        view.rows,
        view.columns,
        view.stride,
        added.stride,
        int(weight is not None),
        int(bias is not None),
        int(residual is not None),
        int(want_sum),
    )
    given = weight if weight is not None else bias
    types = (
        metal_type(x.dtype),
        metal_type(x.dtype if given is None else given.dtype),
        operation.endswith("rms_norm"),
    )
    team: tuning.RowTeam = tuning.pick(tuning.ROW_TEAMS, length=view.columns)
    if team.looped:
        variant = Variant("norms", "norm_row_looped", (*types, team.elements))
        group, groups = _MOST_THREADS, view.rows
    else:
        variant = Variant("norms", "norm_row", (*types, team.lanes, team.elements))
        if team.lanes:
            group, groups = GROUP, ceil_div(view.rows, GROUP // team.lanes)
        else:
            group, groups = round_up(ceil_div(view.columns, team.elements), SIMD_WIDTH), view.rows
    launch(
        variant,
        view.tensor,
        added.tensor,
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        out,
        total,
        list(astuple(params)),
        float(eps),
        threads=(groups * group,),
        group=(group,),
    )
    return out, total
