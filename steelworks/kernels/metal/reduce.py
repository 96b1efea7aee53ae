"""Reductions: sum, mean, maximum, minimum, where they are, any, all; over any dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

import torch

from steelworks.errors import InvalidInputError

from . import tuning
from ._launch import METAL_TYPES, SIMD_WIDTH, Variant, empty, launch, metal_type
from ._views import FLOATS, GROUP, as_rows, ceil_div, check_size, one_dimension, round_up

_MOST_THREADS = 1024


@dataclass(frozen=True)
class _Operation:
    """A row of the table of operations.

    Attributes:
        functor: Its name in reduce/ops.h.
        result: Dtype of the result; None: the input's (of a sum of integers: int64).
        empty: The result for no elements; None: there is none.
        only_floats: Integers are refused.
        places: The result is an index: partial results have one too.
    """

    functor: str
    result: torch.dtype | None
    empty: float | None
    only_floats: bool = False
    places: bool = False


_OPERATIONS = {
    "sum": _Operation("ReduceSum", None, 0.0),
    "mean": _Operation("ReduceMean", None, float("nan"), only_floats=True),
    "max": _Operation("ReduceMax", None, None),
    "min": _Operation("ReduceMin", None, None),
    "argmax": _Operation("ReduceArgmax", torch.int64, None, places=True),
    "argmin": _Operation("ReduceArgmin", torch.int64, None, places=True),
    "any": _Operation("ReduceAny", torch.bool, 0.0),
    "all": _Operation("ReduceAll", torch.bool, 1.0),
}
OPERATIONS = tuple(_OPERATIONS)


@dataclass(frozen=True)
class _Params:
    """reduce/params.h: the same fields in the same order."""

    rows: int
    length: int
    row_stride: int
    inner: int
    chunk: int
    chunks: int
    count: int


#: A pass: (functor, first, last), parameters, input and its places, output and its places.
_Pass = Callable[
    [tuple[str, bool, bool], _Params, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None],
    None,
]


def reduce(
    operation: str, x: torch.Tensor, dim: int | Sequence[int] | None = None, *, keepdim: bool = False
) -> torch.Tensor:
    """Combines all elements along some dimensions.

    Sums are in float32, or int64 for integers (wrapping), in an order that depends on the shape alone: the
    same bits every time. As in torch, max, min, argmax and argmin let a NaN win, argmax and argmin give the
    first index of several equal ones, and a NaN is true. any and all give bool for every dtype.

    Args:
        operation: "sum", "mean", "max", "min", "argmax", "argmin", "any" or "all".
        x: Of float32, float16, bfloat16, an integer dtype or bool. Its rows may be any distance apart; what
            else is not dense is copied.
        dim: The dimension or dimensions to combine; None: all. argmax and argmin take one, or None for the
            index in the flattened tensor.
        keepdim: The dimensions stay, with size 1.

    Returns:
        A dense tensor; the dtype of ``x``, but int64 for a sum of integers and for indices.

    Raises:
        InvalidInputError: an operation, dtype or dimension that there is not, or the maximum, minimum or
            place of nothing.
    """
    chosen = _OPERATIONS.get(operation)
    if chosen is None:
        raise InvalidInputError(f"operation is {operation!r}; allowed are {', '.join(OPERATIONS)}")
    if x.dtype not in METAL_TYPES or (chosen.only_floats and x.dtype not in FLOATS):
        allowed = FLOATS if chosen.only_floats else METAL_TYPES
        raise InvalidInputError(
            f"{operation}: x is {x.dtype}; allowed are {', '.join(map(str, allowed))}: convert it"
        )
    dims = _dimensions(operation, dim, x.dim(), chosen.places)
    kept = [d for d in range(x.dim()) if d not in dims]
    shape = [1 if d in dims else n for d, n in enumerate(x.shape)] if keepdim else [x.shape[d] for d in kept]
    out = empty(shape, _result(chosen, x.dtype), x.device)
    count = torch.Size([x.shape[d] for d in dims]).numel()
    if out.numel() == 0:
        return out
    if count == 0:
        if chosen.empty is None:
            raise InvalidInputError(
                f"{operation}: no elements along dim {dim} of a tensor of shape {tuple(x.shape)}"
            )
        return out.fill_(chosen.empty)
    check_size(operation, out.numel(), count)
    if dims and dims == list(range(dims[0], dims[0] + len(dims))) and dims[-1] != x.dim() - 1:
        inner = x.shape[dims[-1] + 1 :].numel()
        if inner > 1:
            _columns(chosen, x.contiguous(), out, count, inner)
            return out
    _rows(chosen, x.permute([*kept, *dims]), len(dims), out)
    return out


def _dimensions(operation: str, dim: int | Sequence[int] | None, dimensions: int, one: bool) -> list[int]:
    if dim is None:
        return list(range(dimensions))
    given = [dim] if isinstance(dim, int) else list(dim)
    if one and len(given) != 1:
        raise InvalidInputError(
            f"{operation}: dim is {dim}; one dimension, or None for the flattened tensor, is allowed"
        )
    found = sorted(one_dimension(operation, d, dimensions) for d in given)
    if len(set(found)) != len(found):
        raise InvalidInputError(f"{operation}: dim is {dim}; it names a dimension twice")
    if not given:
        return list(range(dimensions))  # as torch: no dimensions named means all
    return found if dimensions else []


def _result(chosen: _Operation, dtype: torch.dtype) -> torch.dtype:
    if chosen.result is not None:
        return chosen.result
    return torch.int64 if chosen.functor == "ReduceSum" and dtype not in FLOATS else dtype


def _chunks(split: tuning.ReduceSplit, groups: int, length: int) -> tuple[int, int]:
    """The size of a chunk, and how many there are, when ``groups`` threadgroups would have all to do."""
    wanted = min(ceil_div(split.groups, groups), length // split.least)
    if wanted <= 1:
        return length, 1
    chunk = round_up(ceil_div(length, wanted), tuning.REDUCE_ELEMENTS)
    return chunk, ceil_div(length, chunk)


def _rows(chosen: _Operation, x: torch.Tensor, trailing: int, out: torch.Tensor) -> None:
    view = as_rows(x, trailing)
    chunk, chunks = _chunks(tuning.REDUCE_ROWS_SPLIT, view.rows, view.columns)
    params = _Params(view.rows, view.columns, view.stride, 1, chunk, chunks, view.columns)
    _two_passes(chosen, view.tensor, out, params, _rows_launch)


def _columns(chosen: _Operation, x: torch.Tensor, out: torch.Tensor, length: int, inner: int) -> None:
    columns = out.numel()
    chunk, chunks = _chunks(tuning.REDUCE_COLUMNS_SPLIT, ceil_div(columns, SIMD_WIDTH), length)
    _two_passes(chosen, x, out, _Params(columns, length, 1, inner, chunk, chunks, length), _columns_launch)


def _two_passes(chosen: _Operation, x: torch.Tensor, out: torch.Tensor, params: _Params, run: _Pass) -> None:
    """One pass if there is one chunk; otherwise one that makes partial results, and one that combines these."""
    functor = f"steel::{chosen.functor}<{metal_type(x.dtype)}>"
    if params.chunks == 1:
        run((functor, True, True), params, x, None, out, None)
        return
    size = (params.rows * params.chunks,)
    partial = empty(size, _partial_dtype(chosen, x.dtype), x.device)
    places = empty(size, torch.int32, x.device) if chosen.places else None
    run((functor, True, False), params, x, None, partial, places)
    last = replace(
        params,
        length=params.chunks,
        row_stride=params.chunks,
        inner=params.rows,
        chunk=params.chunks,
        chunks=1,
    )
    run((functor, False, True), last, partial, places, out, None)


def _partial_dtype(chosen: _Operation, dtype: torch.dtype) -> torch.dtype:
    if chosen.result == torch.bool:
        return torch.int32
    return torch.float32 if dtype in FLOATS else torch.int64


def _rows_launch(
    types: tuple[str, bool, bool],
    params: _Params,
    x: torch.Tensor,
    places: torch.Tensor | None,
    out: torch.Tensor,
    out_places: torch.Tensor | None,
) -> None:
    elements = tuning.REDUCE_ELEMENTS
    lanes: int = tuning.pick(tuning.REDUCE_TEAMS, length=params.chunk)
    teams = params.rows * params.chunks
    if lanes:
        group, groups = GROUP, ceil_div(teams, GROUP // lanes)
    else:
        group, groups = min(_MOST_THREADS, round_up(ceil_div(params.chunk, elements), SIMD_WIDTH)), teams
    launch(
        Variant("reduce", "reduce_rows", (*types, lanes, elements)),
        x,
        places,
        out,
        out_places,
        list(astuple(params)),
        threads=(groups * group,),
        group=(group,),
    )


def _columns_launch(
    types: tuple[str, bool, bool],
    params: _Params,
    x: torch.Tensor,
    places: torch.Tensor | None,
    out: torch.Tensor,
    out_places: torch.Tensor | None,
) -> None:
    group = SIMD_WIDTH * min(_MOST_THREADS // SIMD_WIDTH, params.chunk)
    launch(
        Variant("reduce", "reduce_columns", types),
        x,
        places,
        out,
        out_places,
        list(astuple(params)),
        threads=(ceil_div(params.rows, SIMD_WIDTH) * group, params.chunks),
        group=(group, 1),
    )
