"""layer_norm and rms_norm with weight, bias and a residual that is added first; forward and backward."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from steelworks.errors import InvalidInputError

from . import _norms_kernels as kernels
from . import tuning
from ._launch import Launch, Options, Plans, cdiv, interpreted, power_of_two, processors, supports_pdl
from ._rows import as_rows, check
from ._rows import unsupported as _unsupported

_SUM_PARTS: Final = 32
_SUM_COLUMNS: Final = 64


@dataclass(frozen=True)
class NormResult:
    """What training needs of a norm.

    Attributes:
        y: The result, of ``x``'s shape and dtype.
        total: x + residual, rounded to the dtype; None without a residual.
        mean: Of each row, float32; None for rms_norm.
        rstd: 1 / sqrt(variance or mean square + eps) of each row, float32.
    """

    y: torch.Tensor
    total: torch.Tensor | None
    mean: torch.Tensor | None
    rstd: torch.Tensor


@dataclass(frozen=True)
class _Plan:
    launch: Launch | None
    dense: bool
    rows: int


@dataclass(frozen=True)
class _BackwardPlan:
    launch: Launch
    sums: Launch
    programs: int


_FORWARD: Plans[_Plan] = Plans()
_BACKWARD: Plans[_BackwardPlan] = Plans()


def unsupported(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> str | None:
    """Why the forward kernels can't run on these, or None if they can."""
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    for name, tensor in given.items():
        if tensor is None:
            continue
        reason = _unsupported(f"norm: {name}", tensor, interpreter=interpreted())
        if reason is None and tensor.get_device() != x.get_device():
            reason = f"norm: {name} is on {tensor.device} and x on {x.device}; one device is needed"
        if reason is not None:
            return reason
    return None


def backward_unsupported(normalized_shape: int | Sequence[int]) -> str | None:
    """Why the backward kernels can't run for rows of this shape, or None if they can."""
    shape = _shape(normalized_shape)
    length = torch.Size(shape).numel()
    if length > tuning.NORM_BACKWARD_MOST:
        return f"norm: rows of {length}; backward takes up to {tuning.NORM_BACKWARD_MOST} elements"
    return None


def layer_norm(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """(h - mean(h)) / sqrt(variance(h) + eps) * weight + bias over the last dimensions, with h = x + residual.

    All of it is in float32, and the variance is that of the distances from the mean (biased, as torch's). The result
    is rounded once; h is not rounded in between. One launch; rows up to 32,768 elements are read once.

    Args:
        x: ``(..., *normalized_shape)``; float32, float16 or bfloat16. Rows may be any distance apart; what else is not
            dense is copied.
        normalized_shape: The last dimensions of ``x``.
        weight: Of ``normalized_shape``; 1 by default. Any of the three dtypes.
        bias: Of ``normalized_shape``; 0 by default. Any of the three dtypes.
        eps: Added to the variance.
        residual: Of ``x``'s shape and dtype; 0 by default.

    Returns:
        A dense tensor of ``x``'s shape and dtype; with a residual also x + residual, rounded to the dtype.

    Raises:
        InvalidInputError: dtypes, shapes or devices that do not fit together.
    """
    y, total, _, _ = _forward(False, x, normalized_shape, weight, bias, eps, residual, False)
    return y if total is None else (y, total)


def rms_norm(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-6,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """h / sqrt(mean(h * h) + eps) * weight + bias over the last dimensions, with h = x + residual.

    Arguments, result and errors are those of ``layer_norm``; ``eps`` has the default that models use, not torch's.
    """
    y, total, _, _ = _forward(True, x, normalized_shape, weight, bias, eps, residual, False)
    return y if total is None else (y, total)


def layer_norm_forward(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: torch.Tensor | None = None,
) -> NormResult:
    """``layer_norm`` with what ``norm_backward`` needs."""
    y, total, mean, rstd = _forward(False, x, normalized_shape, weight, bias, eps, residual, True)
    assert rstd is not None
    return NormResult(y, total, mean, rstd)


def rms_norm_forward(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-6,
    *,
    residual: torch.Tensor | None = None,
) -> NormResult:
    """``rms_norm`` with what ``norm_backward`` needs."""
    y, total, _, rstd = _forward(True, x, normalized_shape, weight, bias, eps, residual, True)
    assert rstd is not None
    return NormResult(y, total, None, rstd)


def norm_backward(
    grad: torch.Tensor,
    h: torch.Tensor,
    weight: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor,
    *,
    normalized_shape: int | Sequence[int],
    weight_grad: bool = True,
    bias_dtype: torch.dtype | None = None,
    total_grad: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The gradients of a norm's input, weight and bias, in two launches.

    The weight's and bias's gradients are summed in float32 over each program's rows in registers, then over the few
    programs: the temporary is (programs, length), not (rows, length). The order is fixed: the same bits every time.

    Args:
        grad: Of ``y``.
        h: x + residual, or x where there was none; of ``grad``'s shape.
        weight: That of the forward call.
        mean: ``NormResult.mean``; None for rms_norm.
        rstd: ``NormResult.rstd``.
        normalized_shape: That of the forward call.
        weight_grad: Whether the weight's gradient is wanted.
        bias_dtype: The bias's dtype if its gradient is wanted.
        total_grad: Gradient of x + residual where that was used as well; is added.

    Returns:
        The gradient of x (and of the residual: the same), of the weight, of the bias; None for those not wanted.

    Raises:
        InvalidInputError: rows longer than 16,384 elements, or tensors that do not fit together.
    """
    shape = _shape(normalized_shape)
    weight_grad = weight_grad and weight is not None
    device = h.device
    dx = torch.empty(h.shape, dtype=h.dtype, device=device)
    dw = torch.empty(shape, dtype=weight.dtype, device=device) if weight is not None and weight_grad else None
    db = None if bias_dtype is None else torch.empty(shape, dtype=bias_dtype, device=device)
    if h.numel() == 0:
        return dx, None if dw is None else dw.zero_(), None if db is None else db.zero_()
    grad, h = as_rows(grad, len(shape)).tensor, as_rows(h, len(shape)).tensor
    extra = grad if total_grad is None else as_rows(total_grad, len(shape)).tensor
    weight = None if weight is None else weight.contiguous()
    key = (
        mean is None, shape, None if weight is None else weight.dtype, weight_grad, bias_dtype, total_grad is None,
        grad.dtype, grad.shape, grad.stride(), h.dtype, h.shape, h.stride(), extra.dtype, extra.stride(),
        h.get_device(),
    )  # fmt: skip
    plan = _BACKWARD.get(key)
    if plan is None:
        plan = _backward_plan(
            key, grad, h, weight, shape, mean is None, weight_grad, bias_dtype, total_grad, extra
        )
    length = dx.numel() // rstd.numel()
    parts = torch.empty(
        (int(dw is not None) + int(db is not None), plan.programs, length), dtype=torch.float32, device=device
    )
    dw_parts, db_parts = (parts[0], parts[-1]) if parts.shape[0] else (rstd, rstd)
    given = rstd if mean is None else mean
    plan.launch(grad, extra, h, h if weight is None else weight, given, rstd, dx, dw_parts, db_parts)
    if parts.shape[0]:
        first, last = (db if dw is None else dw), (dw if db is None else db)
        assert first is not None and last is not None
        plan.sums(dw_parts, db_parts, first, last)
    return dx, dw, db


def _shape(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    return (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)


def _signature(tensor: torch.Tensor | None) -> Hashable:
    return None if tensor is None else (tensor.dtype, tensor.shape, tensor.stride(), tensor.get_device())


_Four = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def _forward(
    rms: bool,
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
    stats: bool,
) -> _Four:
    if not isinstance(normalized_shape, int):
        normalized_shape = tuple(normalized_shape)
    key = (
        rms, stats, eps, normalized_shape, x.dtype, x.shape, x.stride(), x.get_device(),
        _signature(weight), _signature(bias), _signature(residual),
    )  # fmt: skip
    plan = _FORWARD.get(key)
    if plan is None:
        plan = _forward_plan(key, rms, x, _shape(normalized_shape), weight, bias, eps, residual, stats)
    if plan.dense:
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        weight = None if weight is None else weight.contiguous()
        bias = None if bias is None else bias.contiguous()
    y = torch.empty_like(x) if x.is_contiguous() else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = None if residual is None else torch.empty_like(y)
    mean = rstd = None
    if stats:
        rstd = torch.empty(plan.rows, dtype=torch.float32, device=x.device)
        mean = None if rms else torch.empty_like(rstd)
    if plan.launch is not None:
        plan.launch(
            x,
            x if residual is None else residual,
            x if weight is None else weight,
            x if bias is None else bias,
            y,
            y if total is None else total,
            y if mean is None else mean,
            y if rstd is None else rstd,
        )
    return y, total, mean, rstd


def _forward_plan(
    key: Hashable,
    rms: bool,
    x: torch.Tensor,
    shape: tuple[int, ...],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
    stats: bool,
) -> _Plan:
    _check(x, shape, weight, bias, residual)
    if x.numel() == 0:
        rows = x.shape[: x.dim() - len(shape)].numel()
        return _FORWARD.keep(key, _Plan(None, False, rows))
    view = as_rows(x, len(shape))
    added = view if residual is None else as_rows(residual, len(shape))
    dense = view.tensor is not x or (residual is not None and added.tensor is not residual)
    dense = dense or not all(t is None or t.is_contiguous() for t in (weight, bias))
    strides = (view.columns, view.columns) if dense else (view.stride, added.stride)
    pdl = supports_pdl(x.get_device())
    numbers = torch.empty(0, dtype=torch.float32, device=x.device) if stats else x
    tensors = (x, x, x if weight is None else weight, x if bias is None else bias, x, x, numbers, numbers)
    constants = {
        "RMS": rms, "RESIDUAL": residual is not None, "WEIGHT": weight is not None, "BIAS": bias is not None,
        "STATS": stats, "PDL": pdl,
    }  # fmt: skip
    block = power_of_two(view.columns)
    if block > tuning.ROW_MOST:
        long = tuning.NORMS_LONG
        launch = kernels.LONG_ROWS.bind(
            tensors,
            scalars=(view.columns, *strides, float(eps)),
            constants={**constants, "BLOCK": long.block},
            grid=(view.rows,),
            options=Options(num_warps=long.warps, pdl=pdl),
        )
        return _FORWARD.keep(key, _Plan(launch, dense, view.rows))
    tile = tuning.pick(
        tuning.NORMS, length=block, elements=x.numel(), rms=int(rms), residual=int(residual is not None)
    )
    rows = min(tile.rows, power_of_two(view.rows))
    launch = kernels.ROWS.bind(
        tensors,
        scalars=(view.rows, view.columns, *strides, float(eps)),
        constants={
            **constants, "ROWS": rows, "BLOCK": block,
            "EXACT": block == view.columns and view.rows % rows == 0, "STREAM": tile.stream,
            "EARLY": tile.early,
        },
        grid=(cdiv(view.rows, rows),),
        options=Options(num_warps=tile.warps, pdl=pdl),
    )  # fmt: skip
    return _FORWARD.keep(key, _Plan(launch, dense, view.rows))


def _backward_plan(
    key: Hashable,
    grad: torch.Tensor,
    h: torch.Tensor,
    weight: torch.Tensor | None,
    shape: tuple[int, ...],
    rms: bool,
    weight_grad: bool,
    bias_dtype: torch.dtype | None,
    total_grad: torch.Tensor | None,
    extra: torch.Tensor,
) -> _BackwardPlan:
    check(backward_unsupported(shape))
    _check(h, shape, weight, None, None)
    check(unsupported(grad, residual=total_grad))
    if grad.shape != h.shape or extra.shape != h.shape:
        raise InvalidInputError(
            f"norm_backward: gradients have shapes {tuple(grad.shape)} and {tuple(extra.shape)}, and h "
            f"{tuple(h.shape)}; they must be the same"
        )
    views = [as_rows(t, len(shape)) for t in (grad, extra, h)]
    rows, length = views[2].rows, views[2].columns
    block = power_of_two(length)
    tile = tuning.pick(tuning.NORM_BACKWARD, length=block)
    together = min(tile.rows, power_of_two(rows))
    programs = min(cdiv(rows, together), tile.resident * processors(h.get_device()))
    pdl = supports_pdl(h.get_device())
    numbers = torch.empty(0, dtype=torch.float32, device=h.device)
    w = h if weight is None else weight
    launch = kernels.BACKWARD.bind(
        (grad, extra, h, w, numbers, numbers, h, numbers, numbers),
        scalars=(rows, length, views[0].stride, views[1].stride, views[2].stride),
        constants={
            "RMS": rms, "WEIGHT": weight is not None, "DW": weight_grad, "DB": bias_dtype is not None,
            "DH": total_grad is not None, "ROWS": together, "BLOCK": block, "PDL": pdl,
        },
        grid=(programs,),
        options=Options(num_warps=tile.warps, pdl=pdl),
    )  # fmt: skip
    last = w.dtype if bias_dtype is None else bias_dtype
    outs = [torch.empty(0, dtype=d, device=h.device) for d in (w.dtype if weight_grad else last, last)]
    sums = kernels.SUM.bind(
        (numbers, numbers, *outs),
        scalars=(programs, length),
        constants={
            "DW": weight_grad, "DB": bias_dtype is not None, "PARTS": _SUM_PARTS, "COLUMNS": _SUM_COLUMNS,
            "PDL": pdl,
        },
        grid=(cdiv(length, _SUM_COLUMNS),),
        options=Options(num_warps=4, pdl=pdl),
    )  # fmt: skip
    return _BACKWARD.keep(key, _BackwardPlan(launch, sums, programs))


def _check(
    x: torch.Tensor,
    shape: tuple[int, ...],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> None:
    check(unsupported(x, weight, bias, residual))
    if not shape or tuple(x.shape[-len(shape) :]) != shape:
        raise InvalidInputError(
            f"norm: normalized_shape is {shape} and x has shape {tuple(x.shape)}; its last dimensions are needed, at "
            "least one"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise InvalidInputError(f"norm: {name} has shape {tuple(tensor.shape)}; {shape} is needed")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise InvalidInputError(
            f"norm: residual is {residual.dtype} of shape {tuple(residual.shape)} and x {x.dtype} of shape "
            f"{tuple(x.shape)}; they must be the same"
        )
