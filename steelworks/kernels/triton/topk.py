"""The k largest or smallest along any dimension, without sorting what does not belong to them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from steelworks.errors import InvalidInputError

from . import _topk_kernels as kernels
from . import tuning
from ._launch import Launch, Options, Plans, cdiv, interpreted, power_of_two, supports_pdl
from ._rows import as_rows, check, one_dimension
from ._rows import unsupported as _unsupported

#: Low bits of a float32's order that the dtype leaves all equal: fewer steps to search.
_SHIFT = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}


@dataclass(frozen=True)
class _Plan:
    """Launches of one signature; ``scratch``: int32 elements; ``dense``: the rows must be copied first."""

    maxima: tuple[Launch, ...]
    select: Launch | None
    dim: int
    last: bool
    shape: tuple[int, ...]
    scratch: int
    dense: bool


_PLANS: Plans[_Plan] = Plans()


def unsupported(x: torch.Tensor, k: int, dim: int = -1) -> str | None:
    """Why the kernels can't run on these, or None if they can."""
    reason = _unsupported("top_k", x, interpreter=interpreted())
    if reason is not None:
        return reason
    length = x.shape[dim] if x.dim() else 1
    if k > tuning.TOPK_MOST:
        return f"top_k: k is {k}; up to {tuning.TOPK_MOST} are chosen here, more need a sort"
    if length > tuning.TOPK_TOP * kernels.FAN**2:
        return f"top_k: rows of {length}; up to {tuning.TOPK_TOP * kernels.FAN**2} elements are taken"
    return None


def top_k(
    x: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest (or smallest) elements along one dimension.

    As in torch, every NaN is larger than all else. -0 equals +0. Of equal elements those with the lowest index are
    taken, in the order of their indices, so that the result is the same every time (torch leaves this open). Values
    are copies of the elements: a zero keeps its sign.

    A row is read once by as many blocks as it fills; one block then chooses among maxima and sorts the k chosen.

    Args:
        x: float32, float16 or bfloat16, of any shape. Rows along the last dimension may be any distance apart; what
            else is not dense is copied. Up to 4,194,304 elements along ``dim``.
        k: How many: 0 to the size of the dimension, and at most 256.
        dim: The dimension.
        largest: The largest; otherwise the smallest.
        sorted: The best first; otherwise in the order of their indices.

    Returns:
        The values, and where each was along ``dim`` (int64); dense, ``dim`` having size k.

    Raises:
        InvalidInputError: a dtype, dimension, length or k that the kernels don't take.
    """
    key = (k, dim, largest, sorted, x.dtype, x.shape, x.stride(), x.get_device())
    plan = _PLANS.get(key)
    if plan is None:
        plan = _plan(key, x, k, dim, largest, sorted)
    values = torch.empty(plan.shape, dtype=x.dtype, device=x.device)
    indices = torch.empty(plan.shape, dtype=torch.int64, device=x.device)
    if plan.select is not None:
        rows = x if plan.last else x.movedim(plan.dim, -1)
        if plan.dense:
            rows = rows.contiguous()
        scratch = torch.empty(plan.scratch, dtype=torch.int32, device=x.device)
        source = rows
        for launch in plan.maxima:
            launch(source, scratch)
            source = scratch
        plan.select(rows, scratch, values, indices)
    if not plan.last:
        return values.movedim(-1, plan.dim).contiguous(), indices.movedim(-1, plan.dim).contiguous()
    return values, indices


def _plan(key: Hashable, x: torch.Tensor, k: int, dim: int, largest: bool, sorted: bool) -> _Plan:
    dim = one_dimension("top_k", dim, x.dim())
    length = x.shape[dim] if x.dim() else 1
    if not 0 <= k <= length:
        raise InvalidInputError(
            f"top_k: k is {k}; dim {dim} has {length} elements: 0 to {length} are allowed"
        )
    check(unsupported(x, k, dim))
    last = dim >= x.dim() - 1
    moved = x if last else x.movedim(dim, -1)
    shape: tuple[int, ...] = (*moved.shape[:-1], k) if x.dim() or not k else ()
    if 0 in shape:
        return _PLANS.keep(key, _Plan((), None, dim, last, shape, 0, False))
    view = as_rows(moved, 1 if x.dim() else 0)
    pdl = supports_pdl(x.get_device())
    slots = power_of_two(k + k // tuning.TOPK_SPARE + 4)
    groups: list[int] = []
    while (groups[-1] if groups else length) > tuning.TOPK_TOP:
        # Rounded up so that each row's maxima begin at 16 bytes and are loaded so.
        groups.append(cdiv(cdiv(groups[-1] if groups else length, kernels.FAN), 16) * 16)
    starts = [2 * slots * view.rows]  # where the levels begin in the scratch tensor
    for count in groups:
        starts.append(starts[-1] + count * view.rows)
    numbers = torch.empty(0, dtype=torch.int32, device=x.device)
    order = {"LARGEST": largest, "SHIFT": _SHIFT[x.dtype], "PDL": pdl}
    maxima = []
    for level, count in enumerate(groups):
        together = tuning.pick(tuning.TOPK_GROUPS, groups=count * view.rows)
        below, stride, source = (groups[0], groups[0], starts[0]) if level else (length, view.stride, 0)
        maxima.append(
            kernels.MAXIMA.bind(
                (numbers if level else x, numbers),
                scalars=(below, stride, count, source, starts[level]),
                constants={
                    **order,
                    "ARE_KEYS": level > 0,
                    "GROUPS": together,
                    "WIDTH": kernels.FAN,
                    "SLOW_REDUCE": interpreted(),
                },
                grid=(cdiv(count, together), view.rows),
                options=Options(num_warps=tuning.TOPK_MAXIMA_WARPS, pdl=pdl),
            )
        )
    top = max(power_of_two(groups[-1] if groups else length), slots)
    widest = max(top, slots * kernels.FAN if groups else 0)
    first, last_level = (groups[0], groups[-1]) if groups else (0, 0)
    select = kernels.SELECT.bind(
        (x, numbers, x, torch.empty(0, dtype=torch.int64, device=x.device)),
        scalars=(length, view.stride, first, last_level, starts[0], starts[max(len(groups) - 1, 0)], k),
        constants={
            **order, "SORTED": sorted, "LEVELS": len(groups), "TOP": top, "SLOTS": slots, "WIDTH": kernels.FAN,
            "PART": min(slots, tuning.TOPK_PART),
        },
        grid=(view.rows,),
        options=Options(num_warps=tuning.pick(tuning.TOPK_WARPS, elements=widest), pdl=pdl),
    )  # fmt: skip
    return _PLANS.keep(
        key, _Plan(tuple(maxima), select, dim, last, shape, starts[-1], view.tensor is not moved)
    )
