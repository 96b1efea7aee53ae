"""softmax and log_softmax over any dimension, of any length; forward and backward."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from steelworks.errors import InvalidInputError

from . import _softmax_kernels as kernels
from . import tuning
from ._launch import Launch, Options, Plans, cdiv, interpreted, power_of_two, supports_pdl
from ._rows import FLOATS, as_rows, check, one_dimension
from ._rows import unsupported as _unsupported


@dataclass(frozen=True)
class _Plan:
    """A launch for one signature; ``dense``: the input must be copied first; ``like``: the result is as the input."""

    launch: Launch | None
    dense: bool
    like: bool
    dtype: torch.dtype


_FORWARD: Plans[_Plan] = Plans()
_BACKWARD: Plans[_Plan] = Plans()


def unsupported(x: torch.Tensor, dtype: torch.dtype | None = None) -> str | None:
    """Why the kernels can't run on ``x``, or None if they can."""
    if dtype is not None and dtype not in FLOATS:
        return f"softmax: a result of {dtype}; float32, float16 or bfloat16 are needed"
    return _unsupported("softmax", x, interpreter=interpreted())


def softmax(x: torch.Tensor, dim: int = -1, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """exp(x) over its sum along one dimension, computed in float32 with the maximum taken off first.

    As torch's: a row that is all -inf, or has a NaN or +inf, becomes NaN. Rows up to 32,768 elements are read once;
    longer ones twice.

    Args:
        x: float32, float16 or bfloat16, of any shape. Rows along the last dimension may be any distance apart; what
            else is not dense is copied.
        dim: The dimension.
        dtype: Of the result (it is rounded once, to this); by default that of ``x``.

    Returns:
        A dense tensor of ``x``'s shape.

    Raises:
        InvalidInputError: a dtype or device that the kernels don't take, or no such dimension.
    """
    key = (False, dim, dtype, x.dtype, x.shape, x.stride(), x.get_device())
    plan = _FORWARD.get(key)
    return _run(x, plan if plan is not None else _forward_plan(key, x, dim, dtype, log=False))


def log_softmax(x: torch.Tensor, dim: int = -1, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The logarithm of ``softmax``, without its underflow: x - maximum - log(sum of exp(x - maximum)).

    Arguments, result and errors are those of ``softmax``.
    """
    key = (True, dim, dtype, x.dtype, x.shape, x.stride(), x.get_device())
    plan = _FORWARD.get(key)
    return _run(x, plan if plan is not None else _forward_plan(key, x, dim, dtype, log=True))


def softmax_backward(
    grad: torch.Tensor, y: torch.Tensor, dim: int = -1, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The gradient of ``softmax``'s input: y * (grad - sum(grad * y)).

    Args:
        grad: Of the result; of ``y``'s shape.
        y: What ``softmax`` returned.
        dim: The dimension.
        dtype: Of the input of ``softmax``; by default that of ``y``.

    Returns:
        A dense tensor of ``y``'s shape.

    Raises:
        InvalidInputError: as ``softmax``, and where the shapes differ.
    """
    return _backward(grad, y, dim, dtype, log=False)


def log_softmax_backward(
    grad: torch.Tensor, y: torch.Tensor, dim: int = -1, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The gradient of ``log_softmax``'s input: grad - exp(y) * sum(grad). As ``softmax_backward`` otherwise."""
    return _backward(grad, y, dim, dtype, log=True)


def _run(x: torch.Tensor, plan: _Plan) -> torch.Tensor:
    if plan.dense:
        x = x.contiguous()
    out = torch.empty_like(x) if plan.like else torch.empty(x.shape, dtype=plan.dtype, device=x.device)
    if plan.launch is not None:
        plan.launch(x, out)
    return out


def _forward_plan(key: Hashable, x: torch.Tensor, dim: int, dtype: torch.dtype | None, *, log: bool) -> _Plan:
    """Prepares and keeps the plan of ``x``'s signature."""
    check(unsupported(x, dtype))
    dim = one_dimension("softmax", dim, x.dim())
    dtype = x.dtype if dtype is None else dtype
    shape = x.shape if x.dim() else torch.Size([1])
    length, inner = shape[dim], shape[dim + 1 :].numel()
    if x.numel() == 0:
        return _FORWARD.keep(key, _Plan(None, False, False, dtype))
    pdl = supports_pdl(x.get_device())
    out = torch.empty(0, dtype=dtype, device=x.device)
    if inner > 1:
        launch = _columns(x, out, length, inner, log, pdl)
        return _FORWARD.keep(key, _Plan(launch, not x.is_contiguous(), False, dtype))
    view = as_rows(x, x.dim() - dim)
    dense = view.tensor is not x
    # empty_like keeps strides, so only what is dense already has results like it.
    like = x.is_contiguous() and dtype == x.dtype
    tile_length = power_of_two(length)
    if tile_length > tuning.ROW_MOST:
        long = tuning.SOFTMAX_LONG
        launch = kernels.LONG_ROWS.bind(
            (x, out),
            scalars=(length, view.stride),
            constants={"LOG": log, "BLOCK": long.block, "PDL": pdl},
            grid=(view.rows,),
            options=Options(num_warps=long.warps, pdl=pdl),
        )
        return _FORWARD.keep(key, _Plan(launch, dense, like, dtype))
    tile = tuning.pick(tuning.SOFTMAX, length=tile_length, rows=view.rows, elements=x.numel())
    rows = min(tile.rows, power_of_two(view.rows))
    launch = kernels.ROWS.bind(
        (x, out),
        scalars=(view.rows, length, view.stride),
        constants={
            "LOG": log, "ROWS": rows, "BLOCK": tile_length,
            "EXACT": tile_length == length and view.rows % rows == 0, "STREAM": tile.stream,
            "PDL": pdl,
        },
        grid=(cdiv(view.rows, rows),),
        options=Options(num_warps=tile.warps, pdl=pdl),
    )  # fmt: skip
    return _FORWARD.keep(key, _Plan(launch, dense, like, dtype))


def _columns(x: torch.Tensor, out: torch.Tensor, length: int, inner: int, log: bool, pdl: bool) -> Launch:
    columns = min(tuning.SOFTMAX_COLUMNS, power_of_two(inner))
    block = min(tuning.SOFTMAX_COLUMN_TILE // columns, power_of_two(length))
    return kernels.COLUMNS.bind(
        (x, out),
        scalars=(length, inner),
        constants={"LOG": log, "BLOCK": block, "COLUMNS": columns, "ONCE": block >= length, "PDL": pdl},
        grid=(cdiv(inner, columns), x.numel() // (length * inner)),
        options=Options(num_warps=tuning.SOFTMAX_COLUMN_WARPS, pdl=pdl),
    )


def _backward(
    grad: torch.Tensor, y: torch.Tensor, dim: int, dtype: torch.dtype | None, *, log: bool
) -> torch.Tensor:
    key = (
        log, dim, dtype, y.dtype, grad.dtype, y.shape, grad.shape, y.stride(), grad.stride(), y.get_device(),
        grad.get_device(),
    )  # fmt: skip
    plan = _BACKWARD.get(key)
    if plan is None:
        plan = _backward_plan(key, grad, y, dim, dtype, log=log)
    if plan.dense:
        grad, y = grad.contiguous(), y.contiguous()
    dx = torch.empty(y.shape, dtype=plan.dtype, device=y.device)
    if plan.launch is not None:
        plan.launch(grad, y, dx)
    return dx


def _backward_plan(
    key: Hashable, grad: torch.Tensor, y: torch.Tensor, dim: int, dtype: torch.dtype | None, *, log: bool
) -> _Plan:
    check(unsupported(y, dtype))
    check(_unsupported("softmax's gradient", grad, interpreter=interpreted()))
    dim = one_dimension("softmax", dim, y.dim())
    dtype = y.dtype if dtype is None else dtype
    if grad.shape != y.shape or grad.get_device() != y.get_device():
        raise InvalidInputError(
            f"softmax's gradient has shape {tuple(grad.shape)} on {grad.device} and its result {tuple(y.shape)} on "
            f"{y.device}; they must be the same"
        )
    shape = y.shape if y.dim() else torch.Size([1])
    length, inner = shape[dim], shape[dim + 1 :].numel()
    if y.numel() == 0:
        return _BACKWARD.keep(key, _Plan(None, False, False, dtype))
    pdl = supports_pdl(y.get_device())
    dx = torch.empty(0, dtype=dtype, device=y.device)
    tile_length = power_of_two(length)
    if inner > 1 or tile_length > tuning.ROW_MOST // 2:  # two operands: half the length in registers
        columns = min(tuning.SOFTMAX_COLUMNS, power_of_two(inner))
        block = min(tuning.SOFTMAX_COLUMN_TILE // columns, tile_length)
        launch = kernels.LONG_BACKWARD.bind(
            (grad, y, dx),
            scalars=(length, inner),
            constants={"LOG": log, "BLOCK": block, "COLUMNS": columns, "PDL": pdl},
            grid=(cdiv(inner, columns), y.numel() // (length * inner)),
            options=Options(num_warps=tuning.SOFTMAX_COLUMN_WARPS, pdl=pdl),
        )
        dense = not (grad.is_contiguous() and y.is_contiguous())
        return _BACKWARD.keep(key, _Plan(launch, dense, False, dtype))
    views = [as_rows(t, y.dim() - dim) for t in (grad, y)]
    dense = views[0].tensor is not grad or views[1].tensor is not y
    strides = (length, length) if dense else (views[0].stride, views[1].stride)
    tile = tuning.pick(tuning.SOFTMAX, length=tile_length, rows=views[0].rows, elements=y.numel())
    rows = min(tile.rows, power_of_two(views[0].rows))
    launch = kernels.ROWS_BACKWARD.bind(
        (grad, y, dx),
        scalars=(views[0].rows, length, *strides),
        constants={"LOG": log, "ROWS": rows, "BLOCK": tile_length, "PDL": pdl},
        grid=(cdiv(views[0].rows, rows),),
        options=Options(num_warps=tile.warps, pdl=pdl),
    )
    return _BACKWARD.keep(key, _Plan(launch, dense, False, dtype))
