"""softmax and log_softmax over any dimension, of any length."""

from __future__ import annotations

import torch

from . import tuning
from ._launch import SIMD_WIDTH, Variant, empty, launch, metal_type
from ._views import GROUP, as_rows, ceil_div, check_float, check_size, one_dimension, round_up

_MOST_THREADS = 1024


def softmax(x: torch.Tensor, dim: int = -1, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """exp(x) over its sum along one dimension, computed in float32 with the maximum taken off first.

    As torch's: a row that is all -inf, or has a NaN or +inf, becomes NaN.

    Args:
        x: float32, float16 or bfloat16, of any shape. Rows along the last dimension may be any distance
            apart; what else is not dense is copied.
        dim: The dimension.
        dtype: Of the result (it is rounded once, to this); by default that of ``x``.

    Returns:
        A dense tensor of ``x``'s shape.

    Raises:
        InvalidInputError: a dtype that is not floating point, or no such dimension.
    """
    return _softmax("softmax", x, dim, dtype)


def log_softmax(x: torch.Tensor, dim: int = -1, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The logarithm of ``softmax``, without its underflow: x - maximum - log(sum of exp(x - maximum)).

    Arguments, result and errors are those of ``softmax``.
    """
    return _softmax("log_softmax", x, dim, dtype)


def _softmax(operation: str, x: torch.Tensor, dim: int, dtype: torch.dtype | None) -> torch.Tensor:
    check_float(operation, "x", x)
    dim = one_dimension(operation, dim, x.dim())
    out = empty(x.shape, x.dtype if dtype is None else dtype, x.device)
    check_float(operation, "the result", out)
    if out.numel() == 0:
        return out
    types = (metal_type(x.dtype), metal_type(out.dtype), operation == "log_softmax")
    shape = x.shape if x.dim() else torch.Size([1])
    length, inner = shape[dim], shape[dim + 1 :].numel()
    check_size(operation, x.numel() // length, length)
    if inner == 1:
        _rows(x.view(shape) if x.dim() == 0 else x.flatten(dim), out, types)
    else:
        _columns(x.contiguous(), out, types, length, inner)
    return out


def _rows(x: torch.Tensor, out: torch.Tensor, types: tuple[str, str, bool]) -> None:
    view = as_rows(x)
    team: tuning.RowTeam = tuning.pick(tuning.ROW_TEAMS, length=view.columns)
    params = [view.rows, view.columns, view.stride, 1]
    if team.looped:
        group, groups = _MOST_THREADS, view.rows
        variant = Variant("softmax", "softmax_row_looped", (*types, team.elements))
    else:
        variant = Variant("softmax", "softmax_row", (*types, team.lanes, team.elements))
        if team.lanes:
            group, groups = GROUP, ceil_div(view.rows, GROUP // team.lanes)
        else:
            group, groups = round_up(ceil_div(view.columns, team.elements), SIMD_WIDTH), view.rows
    launch(variant, view.tensor, out, params, threads=(groups * group,), group=(group,))


def _columns(
    x: torch.Tensor, out: torch.Tensor, types: tuple[str, str, bool], length: int, inner: int
) -> None:
    columns = x.numel() // length
    keep: int = tuning.pick(tuning.SOFTMAX_COLUMNS, length=length)
    group = SIMD_WIDTH * (ceil_div(length, keep) if keep else _MOST_THREADS // SIMD_WIDTH)
    launch(
        Variant("softmax", "softmax_column", (*types, keep)),
        x,
        out,
        [columns, length, 1, inner],
        threads=(ceil_div(columns, SIMD_WIDTH) * group,),
        group=(group,),
    )
