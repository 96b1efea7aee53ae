"""LoRA on CUDA: y = x W^T + bias + scale (x A^T) B^T, for one adapter or for one a row, and its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

from steelworks.kernels.lora_operands import check_adapters, check_operands, check_rank, rows_dense

from . import _counters
from ._described_kernels import ADAPTED
from ._launch import (
    Launch,
    Options,
    Plans,
    aligned,
    cdiv,
    describable,
    interpreted,
    power_of_two,
    processors,
    supports_descriptors,
    supports_pdl,
)
from ._lora_kernels import ADAPTER_GRADS, ADD, EXPAND_MIXED, LINEAR, LOW, LOW_MIXED
from ._lora_tiles import BESIDE, Described, Tile, pick_beside, pick_described, pick_tile

_DOT_LEAST: Final = 16  # least depth of a matrix product in Triton


@dataclass(frozen=True)
class _Plan:
    """What a call with these shapes launches, and the memory for it.

    Attributes:
        first: Before the last launch.
        second: Likewise.
        main: The last launch.
        whole: x A^T comes whole from the first launch, and the last does the rest; otherwise PyTorch multiplies.
        low: Elements of the low-rank product, or of its parts.
        partial: Elements of the parts of sums, or of delta.
        counters: How many counters.
    """

    first: Launch | None
    second: Launch | None
    main: Launch
    whole: bool = False
    low: int = 0
    partial: int = 0
    counters: int = 0


_plans: Plans[_Plan] = Plans()
_grad_plans: Plans[Launch] = Plans()


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float = 1.0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x W^T + bias + scale (x A^T) B^T``: a linear layer and its low-rank adapter; differentiable.

    Sums are in float32. ``x A^T`` is rounded to the dtype once before it meets B, as in PyTorch's composition; the
    result is rounded once. Few rows, and small layers, take one launch. For large ones a small launch makes x A^T
    while the next one, which does the rest, multiplies by W already. Where its tiles would leave multiprocessors
    without work, or operands do not suit it, PyTorch multiplies by W and rounds, and two small launches add the rest.

    Args:
        x: ``(..., k)``; float32, float16 or bfloat16.
        weight: W, ``(n, k)`` of the same dtype; rows may be apart.
        a: A, ``(r, k)``, r from 1 to 64.
        b: B, ``(n, r)``.
        scale: What the low-rank part is multiplied by, usually ``alpha / r``.
        bias: ``(n,)``.

    Returns:
        ``(..., n)``, dense.

    Raises:
        InvalidInputError: shapes or dtypes that do not fit together, or a rank that is not from 1 to 64.
    """
    if torch.is_grad_enabled() and (
        x.requires_grad
        or a.requires_grad
        or b.requires_grad
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
    ):
        result: torch.Tensor = _LoraLinear.apply(x, weight, a, b, scale, bias)  # type: ignore[no-untyped-call]
        return result
    return _forward(x, weight, a, b, float(scale), bias, False)[0]


def lora_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float = 1.0,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``lora_linear``, not differentiable, and ``x A^T`` ``(rows, r)``, which ``lora_backward`` takes."""
    return _forward(x, weight, a, b, float(scale), bias, True)


def lora_linear_multi(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scales: torch.Tensor,
    adapters: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``lora_linear`` with an adapter for each row, in three launches that overlap; not differentiable.

    Each row reads its adapter, so that 64 rows with 64 adapters read 64 A and 64 B.

    Args:
        x: ``(..., k)``; float32, float16 or bfloat16.
        weight: ``(n, k)`` of the same dtype; rows may be apart.
        a: All A, ``(count, r, k)``, r from 1 to 64.
        b: All B, ``(count, n, r)``.
        scales: ``(count,)``, float32.
        adapters: The adapter of each row, int32, of shape ``x.shape[:-1]``; -1 (and any number that names no
            adapter) is none.
        bias: ``(n,)``.

    Returns:
        ``(..., n)``, dense.

    Raises:
        InvalidInputError: shapes or dtypes that do not fit together, or a rank that is not from 1 to 64.
    """
    key = (
        x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.stride(), weight.dtype, a.shape, a.dtype,
        b.shape, b.dtype, scales.shape, scales.dtype, adapters.shape, adapters.dtype,
        bias if bias is None else (bias.shape, bias.dtype),
    )  # fmt: skip
    n, k = weight.shape[0], weight.shape[-1]
    plan = _plans.get(key)
    if plan is None:
        check_rank(a, 3, "(count, r, k)")
        check_adapters(x, a, scales, adapters)
        check_operands(x, weight, a, b, bias)
    out = torch.empty((*x.shape[:-1], n), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    m, count = out.numel() // n, a.shape[0]
    rows, weight = rows_dense(x.reshape(m, k)), rows_dense(weight)
    bias = out if bias is None else bias.contiguous()
    if count == 0:
        a, b, scales = (torch.zeros(1, *t.shape[1:], dtype=t.dtype, device=t.device) for t in (a, b, scales))
    a, b, scales, adapters = a.contiguous(), b.contiguous(), scales.contiguous(), adapters.contiguous()
    if plan is None:
        plan = _plans.keep(key, _make_mixed(rows, weight, a, b, adapters, scales, count, bias is not out))
    low = torch.empty(plan.low, dtype=torch.float32, device=x.device)
    delta = torch.empty((m, n), dtype=torch.float32, device=x.device)
    partial, counters = _scratch(plan, x)
    assert plan.first is not None and plan.second is not None
    plan.first(rows, a, adapters, low)
    plan.second(low, b, adapters, scales, delta)
    plan.main(rows, weight, bias, a, b, low, delta, out, partial, counters)
    return out


#: The name of the public operator.
multi_lora_linear = lora_linear_multi


def lora_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    low: torch.Tensor,
    scale: float,
    needs: tuple[bool, bool, bool, bool, bool],
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of ``lora_linear`` by x, weight, a, b and bias; those not in ``needs`` are None.

    Args:
        grad: By the result.
        x, weight, a, b, scale: As they were given.
        low: From ``lora_forward``.
        needs: Which gradients, in the order above.
    """
    n, k = weight.shape
    r = a.shape[0]
    m = low.shape[0]
    of_x = of_weight = of_a = of_b = of_bias = None
    rows, grads = rows_dense(x.reshape(m, k)), grad.reshape(m, n).contiguous()
    weight, a, b = rows_dense(weight), a.contiguous(), b.contiguous()
    if m == 0 or n == 0 or k == 0:
        makers = (x, weight, a, b, grads.new_empty(n))
        return tuple(torch.zeros_like(t) if needed else None for t, needed in zip(makers, needs, strict=True))
    grad_low = None
    if needs[0]:
        of_x, grad_low = _grad_x(grads, weight, a, b, scale)
        of_x = of_x.view(x.shape)
    if needs[2] or needs[3]:
        if grad_low is None:
            grad_low = grads @ b
        of_a, of_b = torch.empty_like(a), torch.empty_like(b)
        key = (m, n, k, r, rows.stride(0), x.dtype, x.device, scale)
        launch = _grad_plans.get(key)
        if launch is None:
            launch = _grad_plans.keep(key, _make_grads(grad_low, rows, low, grads, of_a, of_b, scale))
        launch(grad_low, rows, low, grads, of_a, of_b)
    if needs[1]:
        of_weight = grads.mT @ rows
    if needs[4]:
        of_bias = grads.sum(0)
    return of_x, of_weight, of_a if needs[2] else None, of_b if needs[3] else None, of_bias


class _LoraLinear(torch.autograd.Function):
    """``lora_linear`` for autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        out, low = _forward(x, weight, a, b, float(scale), bias, True)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = float(scale)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        need = ctx.needs_input_grad
        of_x, of_weight, of_a, of_b, of_bias = lora_backward(
            grad, x, weight, a, b, low, ctx.scale, (need[0], need[1], need[2], need[3], need[5])
        )
        return of_x, of_weight, of_a, of_b, None, of_bias


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None,
    keep_low: bool,
    tile: Tile | Described | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    key = (
        x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.stride(), weight.dtype, a.shape, a.dtype,
        b.shape, b.dtype, bias if bias is None else (bias.shape, bias.dtype), scale, keep_low, tile,
        aligned(x, weight),
    )  # fmt: skip
    plan = _plans.get(key)
    if plan is None:
        check_rank(a, 2, "(r, k)")
        check_operands(x, weight, a.unsqueeze(0), b.unsqueeze(0), bias)
    n, k = weight.shape
    m, r = x.shape[:-1].numel(), a.shape[0]
    if m * n == 0:
        return x.new_empty((*x.shape[:-1], n)), x.new_zeros((m, r))
    rows, weight = rows_dense(x.reshape(m, k)), rows_dense(weight)
    a, b = a.contiguous(), b.contiguous()
    if plan is None:
        plan = _plans.keep(
            key, _make(rows, weight, a, b, scale, keep_low, has_bias=bias is not None, tile=tile)
        )
    if plan.first is not None and not plan.whole:
        out = torch.nn.functional.linear(x, weight, bias)
        return out, _add(plan, rows, a, b, out, (m, r) if keep_low else None)
    out = torch.empty((*x.shape[:-1], n), dtype=x.dtype, device=x.device)
    if plan.whole:
        return out, _run_described(plan, rows, weight, a, b, bias, out, r, keep_low)
    low = torch.empty((m, r), dtype=x.dtype, device=x.device) if keep_low else out
    partial, counters = _scratch(plan, x)
    added = out if bias is None else bias.contiguous()
    plan.main(rows, weight, added, a, b, low, partial, out, partial, counters)
    return out, low


def _grad_x(
    grad: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """grad W + scale (grad B) A, and grad B. The kernels of forward, with W, A and B transposed."""
    m, n, k, r = grad.shape[0], *weight.shape, a.shape[0]
    key = ("x", m, n, k, r, weight.stride(0), grad.dtype, grad.device, scale, aligned(grad, weight))
    plan = _plans.get(key)
    if plan is None:
        plan = _plans.keep(key, _make(grad, weight, b, a, scale, True, has_bias=False, transposed=True))
    if plan.first is not None and not plan.whole:
        out = torch.mm(grad, weight)
        return out, _add(plan, grad, b, a, out, (m, r))
    out = torch.empty((m, k), dtype=grad.dtype, device=grad.device)
    if plan.whole:
        return out, _run_described(plan, grad, weight, b, a, None, out, r, True)
    low = torch.empty((m, r), dtype=grad.dtype, device=grad.device)
    partial, counters = _scratch(plan, grad)
    plan.main(grad, weight, out, b, a, low, partial, out, partial, counters)
    return out, low


def _add(
    plan: _Plan,
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    keep: tuple[int, int] | None,
) -> torch.Tensor:
    """Adds the adapter to what PyTorch computed; returns x A^T, or anything if it is not kept."""
    parts = torch.empty(plan.low, dtype=torch.float32, device=x.device)
    low = out if keep is None else torch.empty(keep, dtype=x.dtype, device=x.device)
    assert plan.first is not None
    plan.first(x, a, parts, parts, low, _nothing(x.device)[1])
    plan.main(parts, b, low, out)
    return low


def _run_described(
    plan: _Plan,
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    r: int,
    keep_low: bool,
) -> torch.Tensor:
    """Both launches; returns x A^T, or anything if it is not kept."""
    parts, counters = _scratch(plan, x)
    scaled = torch.empty((x.shape[0], r), dtype=torch.float32, device=x.device)
    low = torch.empty_like(scaled, dtype=x.dtype) if keep_low else out
    assert plan.first is not None
    plan.first(x, a, parts, scaled, low, counters)
    plan.main(x, weight, out if bias is None else bias.contiguous(), scaled, b, out)
    return low


def _make(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    keep_low: bool,
    *,
    has_bias: bool,
    transposed: bool = False,
    tile: Tile | Described | None = None,
) -> _Plan:
    m, k = x.shape
    n, r = (weight.shape[1], a.shape[1]) if transposed else (weight.shape[0], a.shape[0])
    tile = tile or pick_tile(m, n, k, r, mixed=False, training=keep_low)
    if tile == BESIDE:
        tile = _described(x, weight, m, n, r) or BESIDE
    if isinstance(tile, Described):
        return _make_described(x, weight, a, b, n, r, scale, keep_low, has_bias, transposed, tile)
    if tile == BESIDE:
        return _make_beside(x, a, b, n, r, scale, keep_low, transposed)
    pdl = supports_pdl(x.get_device())
    rank = max(_DOT_LEAST, power_of_two(r))
    split = 1 if keep_low else _parts(tile, m, n, k, x)
    partial, counters = _nothing(x.device)
    tiles = cdiv(m, tile.rows) * cdiv(n, tile.columns)
    main = LINEAR.bind(
        (x, weight, x, a, b, x, partial, x, partial, counters),
        scalars=(m, n, k, r, x.stride(0), weight.stride(0), a.stride(0), b.stride(0), scale),
        constants=_constants(tile, rank, split, k, x.dtype, pdl)
        | {"MIXED": False, "TRANSPOSED": transposed, "HAS_BIAS": has_bias, "KEEP_LOW": keep_low},
        grid=(tiles, split),
        options=Options(num_warps=tile.warps, num_stages=tile.stages, pdl=pdl),
    )
    needed = tiles * tile.rows * tile.columns * split if split > 1 else 0
    return _Plan(None, None, main, partial=needed, counters=tiles if split > 1 else 0)


def _described(x: torch.Tensor, weight: torch.Tensor, m: int, n: int, r: int) -> Described | None:
    """How descriptors serve a problem, or None where they can't or don't."""
    index = x.get_device()
    if (
        x.element_size() != 2
        or not supports_descriptors(index)
        or not (describable(x) and describable(weight))
    ):
        return None
    return pick_described(m, n, r, processors(index))


def _make_described(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    n: int,
    r: int,
    scale: float,
    keep_low: bool,
    has_bias: bool,
    transposed: bool,
    tile: Described,
) -> _Plan:
    m, k = x.shape
    pdl = supports_pdl(x.get_device())
    rank = max(_DOT_LEAST, power_of_two(r))
    split = _low_parts(tile.parts, k)
    float32 = _nothing(x.device)[0]
    first = _bind_low(
        x, a, r, scale, tile.low_rows, split, transposed=transposed, whole=True, keep_low=keep_low
    )
    block = (tile.depth, tile.columns) if transposed else (tile.columns, tile.depth)
    main = ADAPTED.bind(
        (x, weight, x, float32, b, x),
        scalars=(m, n, k, r, b.stride(0)),
        constants={
            "BM": tile.rows, "BN": tile.columns, "BK": tile.depth, "GROUP": 8, "RANK": rank,
            "TRANSPOSED": transposed, "HAS_BIAS": has_bias,
            "WIDE": interpreted() and x.dtype == torch.bfloat16, "PDL": pdl,
        },
        grid=(cdiv(m, tile.rows) * cdiv(n, tile.columns),),
        options=Options(num_warps=tile.warps, num_stages=tile.stages, pdl=pdl),
        blocks=((tile.rows, tile.depth), block),
    )  # fmt: skip
    return _Plan(
        first, None, main, whole=True,
        partial=split * m * r if split > 1 else 0, counters=cdiv(m, tile.low_rows) if split > 1 else 0,
    )  # fmt: skip


_LOW_DEPTH: Final = 128  # columns of x in a step of the small launch


def _low_parts(most: int, k: int) -> int:
    """In how many parts the sum over k of x A^T is cut: four steps or more in each."""
    split = 1
    while split < most and k >= 4 * split * _LOW_DEPTH:
        split *= 2
    return split


def _bind_low(
    x: torch.Tensor, a: torch.Tensor, r: int, scale: float, rows: int, split: int,
    *, transposed: bool, whole: bool, keep_low: bool,
) -> Launch:  # fmt: skip
    """The small launch, which makes x A^T."""
    m, k = x.shape
    pdl = supports_pdl(x.get_device())
    float32, counters = _nothing(x.device)
    return LOW.bind(
        (x, a, float32, float32, x, counters),
        scalars=(m, k, r, x.stride(0), a.stride(0), scale),
        constants={
            "BM": rows, "BK": _LOW_DEPTH, "RANK": max(_DOT_LEAST, power_of_two(r)), "SPLIT": split,
            "TRANSPOSED": transposed, "EVEN": k % (_LOW_DEPTH * split) == 0, "WHOLE": whole, "KEEP_LOW": keep_low,
            "PRECISION": _precision(x.dtype), "PDL": pdl,
        },
        grid=(cdiv(m, rows), split),
        options=Options(num_warps=4, num_stages=4, pdl=pdl),
    )  # fmt: skip


def _make_beside(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    n: int,
    r: int,
    scale: float,
    keep_low: bool,
    transposed: bool,
) -> _Plan:
    m, k = x.shape
    pdl = supports_pdl(x.get_device())
    rank = max(_DOT_LEAST, power_of_two(r))
    beside = pick_beside(m, n, k, r)
    columns = beside.columns
    split = _low_parts(beside.parts, k)
    float32 = _nothing(x.device)[0]
    first = _bind_low(
        x, a, r, scale, beside.low_rows, split, transposed=transposed, whole=False, keep_low=False
    )
    main = ADD.bind(
        (float32, b, x, x),
        scalars=(m, n, r, b.stride(0), scale),
        constants={
            "BM": beside.rows, "BN": columns, "RANK": rank, "SPLIT": split, "TRANSPOSED": transposed,
            "KEEP_LOW": keep_low,
            "PRECISION": _precision(x.dtype), "PDL": pdl,
        },
        grid=(cdiv(n, columns), cdiv(m, beside.rows)),
        options=Options(num_warps=beside.warps, num_stages=1, pdl=pdl),
    )  # fmt: skip
    return _Plan(first, None, main, low=split * m * r)


def _make_mixed(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    adapters: torch.Tensor,
    scales: torch.Tensor,
    count: int,
    has_bias: bool,
) -> _Plan:
    m, k = x.shape
    n, r = weight.shape[0], a.shape[1]
    tile = pick_tile(m, n, k, r, mixed=True)
    pdl = supports_pdl(x.get_device())
    rank = power_of_two(r)
    split = _parts(tile, m, n, k, x)
    partial, counters = _nothing(x.device)
    low_ranks, depth = min(4, rank), min(2048, power_of_two(k))
    first = LOW_MIXED.bind(
        (x, a, adapters, partial),
        scalars=(k, r, x.stride(0), a.stride(1), count),
        constants={"BR": low_ranks, "BK": depth, "PDL": pdl},
        grid=(m, cdiv(r, low_ranks)),
        options=Options(num_warps=4, num_stages=1, pdl=pdl),
    )
    columns = max(64, min(power_of_two(n), 8192 // rank))  # 64 elements of B a thread
    second = EXPAND_MIXED.bind(
        (partial, b, adapters, scales, partial),
        scalars=(n, r, b.stride(1), count),
        constants={"BN": columns, "RANK": rank, "PDL": pdl},
        grid=(m, cdiv(n, columns)),
        options=Options(num_warps=4, num_stages=1, pdl=pdl),
    )
    tiles = cdiv(m, tile.rows) * cdiv(n, tile.columns)
    main = LINEAR.bind(
        (x, weight, x, a, b, partial, partial, x, partial, counters),
        scalars=(m, n, k, r, x.stride(0), weight.stride(0), a.stride(1), b.stride(1), 1.0),
        constants=_constants(tile, _DOT_LEAST, split, k, x.dtype, pdl)
        | {"MIXED": True, "TRANSPOSED": False, "HAS_BIAS": has_bias, "KEEP_LOW": False},
        grid=(tiles, split),
        options=Options(num_warps=tile.warps, num_stages=tile.stages, pdl=pdl),
    )
    needed = tiles * tile.rows * tile.columns * split if split > 1 else 0
    return _Plan(first, second, main, low=m * r, partial=needed, counters=tiles if split > 1 else 0)


def _make_grads(
    grad_low: torch.Tensor,
    x: torch.Tensor,
    low: torch.Tensor,
    grad: torch.Tensor,
    of_a: torch.Tensor,
    of_b: torch.Tensor,
    scale: float,
) -> Launch:
    (m, k), n, r = x.shape, grad.shape[1], low.shape[1]
    pdl = supports_pdl(x.get_device())
    columns = 64 if (k + n) >= 64 * processors(x.get_device()) else 32
    return ADAPTER_GRADS.bind(
        (grad_low, x, low, grad, of_a, of_b),
        scalars=(m, n, k, r, x.stride(0), scale),
        constants={
            "BM": 64, "BC": columns, "RANK": max(_DOT_LEAST, power_of_two(r)), "PRECISION": _precision(x.dtype),
            "PDL": pdl,
        },
        grid=(cdiv(k, columns) + cdiv(n, columns),),
        options=Options(num_warps=4, num_stages=4, pdl=pdl),
    )  # fmt: skip


def _constants(tile: Tile, rank: int, split: int, k: int, dtype: torch.dtype, pdl: bool) -> dict[str, Any]:
    return {
        "BM": tile.rows,
        "BN": tile.columns,
        "BK": tile.depth,
        "RANK": rank,
        "SPLIT": split,
        "EVEN": k % (tile.depth * split) == 0,
        "GROUP": 8,
        "PRECISION": _precision(dtype),
        "PDL": pdl,
    }


def _parts(tile: Tile, m: int, n: int, k: int, x: torch.Tensor) -> int:
    """In how many parts the sum over k is cut: as many as fill the GPU once, with four steps or more in each."""
    tiles = cdiv(m, tile.rows) * cdiv(n, tile.columns)
    split = 1
    while split * 2 <= min(tile.most_parts, processors(x.get_device()) // tiles, k // (4 * tile.depth)):
        split *= 2
    return split


def _precision(dtype: torch.dtype) -> str:
    """How operands of products are taken: float32 ones are not rounded to tf32."""
    if dtype == torch.bfloat16 and interpreted():
        return "wide"
    return "ieee" if dtype == torch.float32 else "tf32"


def _scratch(plan: _Plan, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where parts of sums go, and their counters; both may be empty, and are then not touched."""
    if not plan.counters:
        return _nothing(x.device)
    partial = torch.empty(plan.partial, dtype=torch.float32, device=x.device)
    return partial, _counters.zeros(plan.counters, x)


_nothings: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}


def _nothing(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    found = _nothings.get(device)
    if found is None:
        float32 = torch.empty(16, dtype=torch.float32, device=device)
        found = _nothings[device] = (float32, torch.empty(16, dtype=torch.int32, device=device))
    return found
