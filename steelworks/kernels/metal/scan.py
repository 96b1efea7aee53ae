"""Running sums, products, maxima and minima along any dimension."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch

from steelworks.errors import InvalidInputError

from . import tuning
from ._launch import METAL_TYPES, SIMD_WIDTH, Variant, empty, launch, metal_type
from ._lines import Lines, as_lines
from ._views import FLOATS, GROUP, ceil_div, round_up

_MOST_THREADS = 1024


@dataclass(frozen=True)
class _Params:
    """scan/params.h: the same fields in the same order."""

    rows: int
    length: int
    stride: int
    inner: int
    chunk: int
    chunks: int
    exclusive: int


@dataclass(frozen=True)
class _Partials:
    """Totals of chunks, or the offsets that they start from: dense ``(rows, chunks)``; places for extremes only."""

    values: torch.Tensor
    places: torch.Tensor | None


def cumsum(x: torch.Tensor, dim: int = -1, *, exclusive: bool = False) -> torch.Tensor:
    """The sums of all elements up to each one, along one dimension.

    Summed in float32, or int64 for integers (wrapping), in an order that depends on the shape alone: the same bits
    every time.

    Args:
        x: float32, float16, bfloat16, an integer dtype or bool. Lines along the last dimension may be any distance
            apart; what else is not dense is copied.
        dim: The dimension.
        exclusive: Each sum leaves its own element out: the first is 0.

    Returns:
        A dense tensor of ``x``'s shape; of int64 for integers and bool, as in torch, and otherwise of ``x``'s dtype.

    Raises:
        InvalidInputError: a dtype or dimension that there is not.
    """
    return _scan("cumsum", "ReduceSum<{}>", x, dim, exclusive)[0]


def cumprod(x: torch.Tensor, dim: int = -1, *, exclusive: bool = False) -> torch.Tensor:
    """The products of all elements up to each one, along one dimension; the first exclusive one is 1.

    Arguments, result and errors are those of ``cumsum``.
    """
    return _scan("cumprod", "ScanProduct<{}>", x, dim, exclusive)[0]


def cummax(x: torch.Tensor, dim: int = -1, *, exclusive: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of all elements up to each one, and where it is, along one dimension.

    As in torch, a NaN wins and stays, and of equal elements the last counts.

    Args:
        x: As for ``cumsum``.
        dim: The dimension.
        exclusive: Each result leaves its own element out: the first is -inf (or the least integer), at index -1.

    Returns:
        Dense tensors of ``x``'s shape: values of ``x``'s dtype, and int64 indices along ``dim``.

    Raises:
        InvalidInputError: a dtype or dimension that there is not.
    """
    return _extremes("cummax", "true", x, dim, exclusive)


def cummin(x: torch.Tensor, dim: int = -1, *, exclusive: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest of all elements up to each one, and where it is, along one dimension.

    The first exclusive one is +inf or the largest integer, at index -1.
    Arguments, result and errors are those of ``cummax``.
    """
    return _extremes("cummin", "false", x, dim, exclusive)


def _extremes(
    operation: str, largest: str, x: torch.Tensor, dim: int, exclusive: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = _scan(operation, f"ScanPlace<{{}}, {largest}>", x, dim, exclusive, places=True)
    assert indices is not None
    return values, indices


def _scan(
    operation: str, functor: str, x: torch.Tensor, dim: int, exclusive: bool, *, places: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if x.dtype not in METAL_TYPES:
        allowed = ", ".join(map(str, METAL_TYPES))
        raise InvalidInputError(
            f"{operation}: x is {x.dtype}; allowed are {allowed}: convert it with .to(...)"
        )
    lines = as_lines(operation, x, dim)
    out = empty(x.shape, x.dtype if places or x.dtype in FLOATS else torch.int64, x.device)
    indices = empty(x.shape, torch.int64, x.device) if places else None
    if out.numel() == 0:
        return out, indices
    groups = lines.lines if lines.inner == 1 else ceil_div(lines.lines, SIMD_WIDTH)
    split = tuning.SCAN_ROWS_SPLIT if lines.inner == 1 else tuning.SCAN_COLUMNS_SPLIT
    wanted = max(1, min(ceil_div(split.groups, groups), lines.length // split.least))
    chunk = lines.length if wanted == 1 else round_up(ceil_div(lines.length, wanted), tuning.SCAN_ELEMENTS)
    chunks = ceil_div(lines.length, chunk)
    params = _Params(lines.lines, lines.length, lines.stride, lines.inner, chunk, chunks, int(exclusive))
    op = f"steel::{functor.format(metal_type(x.dtype))}"
    offsets = None
    if chunks > 1:
        totals = _partials(params, x, places)
        offsets = _partials(params, x, places)
        _pass(op, lines, params, None, (None, None), totals)
        group = min(GROUP, round_up(lines.lines, SIMD_WIDTH))
        launch(
            Variant("scan", "scan_offsets", (op,)),
            totals.values,
            totals.places,
            offsets.values,
            offsets.places,
            list(astuple(params)),
            threads=(round_up(lines.lines, group),),
            group=(group,),
        )
    _pass(op, lines, params, offsets, (out, indices), None)
    return out, indices


def _partials(params: _Params, x: torch.Tensor, places: bool) -> _Partials:
    shape = (params.rows, params.chunks)
    dtype = torch.float32 if x.dtype in FLOATS else torch.int64
    return _Partials(empty(shape, dtype, x.device), empty(shape, torch.int32, x.device) if places else None)


def _pass(
    op: str,
    lines: Lines,
    params: _Params,
    offsets: _Partials | None,
    out: tuple[torch.Tensor | None, torch.Tensor | None],
    totals: _Partials | None,
) -> None:
    """All chunks: their totals, or their results."""
    arguments = (
        lines.tensor,
        offsets.values if offsets else None,
        offsets.places if offsets else None,
        *out,
        totals.values if totals else None,
        totals.places if totals else None,
        list(astuple(params)),
    )
    if lines.inner > 1:
        group = min(GROUP, round_up(params.rows, SIMD_WIDTH))
        variant = Variant("scan", "scan_columns", (op, totals is not None))
        threads = (round_up(params.rows, group), params.chunks)
        launch(variant, *arguments, threads=threads, group=(group, 1))
        return
    lanes: int = tuning.pick(tuning.SCAN_TEAMS, length=params.chunk)
    teams = params.rows * params.chunks
    if lanes:
        group = min(GROUP, round_up(teams * lanes, SIMD_WIDTH))
        groups = ceil_div(teams, group // lanes)
    else:
        group = min(_MOST_THREADS, round_up(ceil_div(params.chunk, tuning.SCAN_ELEMENTS), SIMD_WIDTH))
        groups = teams
    variant = Variant("scan", "scan_rows", (op, totals is not None, lanes, tuning.SCAN_ELEMENTS))
    launch(variant, *arguments, threads=(groups * group,), group=(group,))
