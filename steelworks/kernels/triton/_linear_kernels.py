"""The kernels of linear layers: bias, residual and activation are applied before the result is rounded.

One launch computes up to three layers of the same x (queries, keys and values): which one a program works for is its
place in the grid's second dimension.

Both kernels start while the kernel before them ends (``Options.pdl``). With ``EARLY`` weights and bias are read
before it has ended; who asks for that must know that the kernel before does not write them (``settled``).
"""

from __future__ import annotations

from ._launch import Arg, Kernel, constexpr, jit, tl, wait_for_previous


@jit
def _dot(left: Arg, right: Arg, acc: Arg, WIDE: constexpr) -> Arg:
    """acc + left right. WIDE: in float32, for the interpreter, which has no products of bfloat16."""
    if WIDE:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(left, right, acc)


@jit
def _activated(v: Arg, ACTIVATION: constexpr) -> Arg:
    if ACTIVATION == "gelu":
        return 0.5 * v * (1.0 + tl.math.erf(v * 0.7071067811865476))
    elif ACTIVATION == "silu":
        return v / (1.0 + tl.exp(-v))
    elif ACTIVATION == "relu":
        return tl.where(v < 0.0, 0.0, v)  # NaN stays
    else:
        return v


@jit
def _thin_tile(
    x: Arg, w: Arg, bias: Arg, residual: Arg, out: Arg, m: Arg, n: Arg, k: Arg, x_row: Arg, w_row: Arg,
    BM: constexpr, BN: constexpr, BK: constexpr, STEPS: constexpr, HAS_BIAS: constexpr, HAS_RESIDUAL: constexpr,
    ACTIVATION: constexpr, EARLY: constexpr, WIDE: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """One tile; all of its part of w is in registers before x is looked at."""
    rows = tl.program_id(2) * BM + tl.arange(0, BM)
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    deep = tl.arange(0, BK)
    row_known = rows < m
    column_known = columns < n
    x_at = x + tl.minimum(rows, m - 1)[:, None].to(tl.int64) * x_row + deep[None, :]
    w_at = w + tl.minimum(columns, n - 1)[None, :].to(tl.int64) * w_row + deep[:, None]
    if not EARLY:
        wait_for_previous(PDL)
    w0 = tl.load(w_at, mask=(deep < k)[:, None], other=0.0)
    w1, w2, w3 = w0, w0, w0
    if STEPS > 1:
        w1 = tl.load(w_at + BK, mask=(deep < k - BK)[:, None], other=0.0)
    if STEPS > 2:
        w2 = tl.load(w_at + 2 * BK, mask=(deep < k - 2 * BK)[:, None], other=0.0)
    if STEPS > 3:
        w3 = tl.load(w_at + 3 * BK, mask=(deep < k - 3 * BK)[:, None], other=0.0)
    added = tl.zeros((BN,), tl.float32)
    if HAS_BIAS:
        added = tl.load(bias + columns, mask=column_known, other=0.0).to(tl.float32)
    if EARLY:
        wait_for_previous(PDL)
    places = rows[:, None].to(tl.int64) * n + columns[None, :]
    known = row_known[:, None] & column_known[None, :]
    x0 = tl.load(x_at, mask=(deep < k)[None, :], other=0.0)
    x1, x2, x3 = x0, x0, x0
    if STEPS > 1:
        x1 = tl.load(x_at + BK, mask=(deep < k - BK)[None, :], other=0.0)
    if STEPS > 2:
        x2 = tl.load(x_at + 2 * BK, mask=(deep < k - 2 * BK)[None, :], other=0.0)
    if STEPS > 3:
        x3 = tl.load(x_at + 3 * BK, mask=(deep < k - 3 * BK)[None, :], other=0.0)
    beside = tl.zeros((BM, BN), tl.float32)
    if HAS_RESIDUAL:
        beside = tl.load(residual + places, mask=known, other=0.0).to(tl.float32)
    acc = _dot(x0, w0, tl.zeros((BM, BN), tl.float32), WIDE)
    if STEPS > 1:
        acc = _dot(x1, w1, acc, WIDE)
    if STEPS > 2:
        acc = _dot(x2, w2, acc, WIDE)
    if STEPS > 3:
        acc = _dot(x3, w3, acc, WIDE)
    total = acc + added[None, :] + beside
    tl.store(out + places, _activated(total, ACTIVATION).to(out.dtype.element_ty), mask=known)


@jit
def _thin_kernel(
    x: Arg, w0: Arg, w1: Arg, w2: Arg, b0: Arg, b1: Arg, b2: Arg, residual: Arg, out0: Arg, out1: Arg, out2: Arg,
    m: Arg, n0: Arg, n1: Arg, n2: Arg, k: Arg, x_row: Arg, row0: Arg, row1: Arg, row2: Arg,
    COUNT: constexpr, BM: constexpr, BN: constexpr, BK: constexpr, STEPS: constexpr, HAS_BIAS: constexpr,
    HAS_RESIDUAL: constexpr, ACTIVATION: constexpr, EARLY: constexpr, WIDE: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """For few rows and at most STEPS * BK terms."""
    which = tl.program_id(1)
    if COUNT == 1 or which == 0:
        _thin_tile(
            x, w0, b0, residual, out0, m, n0, k, x_row, row0, BM, BN, BK, STEPS, HAS_BIAS, HAS_RESIDUAL, ACTIVATION,
            EARLY, WIDE, PDL,
        )  # fmt: skip
    elif which == 1:
        _thin_tile(
            x, w1, b1, residual, out1, m, n1, k, x_row, row1, BM, BN, BK, STEPS, HAS_BIAS, HAS_RESIDUAL, ACTIVATION,
            EARLY, WIDE, PDL,
        )  # fmt: skip
    else:
        _thin_tile(
            x, w2, b2, residual, out2, m, n2, k, x_row, row2, BM, BN, BK, STEPS, HAS_BIAS, HAS_RESIDUAL, ACTIVATION,
            EARLY, WIDE, PDL,
        )  # fmt: skip


@jit
def _tile(
    x: Arg, w: Arg, bias: Arg, residual: Arg, out: Arg, m: Arg, n: Arg, k: Arg, x_row: Arg, w_row: Arg,
    BM: constexpr, BN: constexpr, BK: constexpr, GROUP: constexpr, HAS_BIAS: constexpr, HAS_RESIDUAL: constexpr,
    ACTIVATION: constexpr, EVEN: constexpr, EARLY: constexpr, WIDE: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """One tile. Tiles that run at the same time share rows of x and of w, so that the L2 cache serves both."""
    number = tl.program_id(0)
    tiles_m = tl.cdiv(m, BM)
    tiles_n = tl.cdiv(n, BN)
    in_group = GROUP * tiles_n
    first_m = number // in_group * GROUP
    height = tl.maximum(1, min(tiles_m - first_m, GROUP))  # behind the last tile of a smaller layer: no rows
    tile_m = first_m + number % in_group % height
    tile_n = number % in_group // height
    rows = tile_m * BM + tl.arange(0, BM)
    columns = tile_n * BN + tl.arange(0, BN)
    deep = tl.arange(0, BK)
    row_known = rows < m
    column_known = columns < n
    x_at = x + tl.minimum(rows, m - 1)[:, None].to(tl.int64) * x_row + deep[None, :]
    w_at = w + tl.minimum(columns, n - 1)[None, :].to(tl.int64) * w_row + deep[:, None]
    added = tl.zeros((BN,), tl.float32)
    if EARLY and HAS_BIAS:
        added = tl.load(bias + columns, mask=column_known, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    if HAS_BIAS and not EARLY:
        added = tl.load(bias + columns, mask=column_known, other=0.0).to(tl.float32)
    acc = tl.zeros((BM, BN), tl.float32)
    for step in tl.range(0, tl.cdiv(k, BK)):
        if EVEN:
            x_tile = tl.load(x_at)
            w_tile = tl.load(w_at)
        else:
            known = deep < k - step * BK
            x_tile = tl.load(x_at, mask=known[None, :], other=0.0)
            w_tile = tl.load(w_at, mask=known[:, None], other=0.0)
        acc = _dot(x_tile, w_tile, acc, WIDE)
        x_at += BK
        w_at += BK
    total = acc + added[None, :]
    places = rows[:, None].to(tl.int64) * n + columns[None, :]
    inside = row_known[:, None] & column_known[None, :]
    if HAS_RESIDUAL:
        total += tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + places, _activated(total, ACTIVATION).to(out.dtype.element_ty), mask=inside)


@jit
def _tiled_kernel(
    x: Arg, w0: Arg, w1: Arg, w2: Arg, b0: Arg, b1: Arg, b2: Arg, residual: Arg, out0: Arg, out1: Arg, out2: Arg,
    m: Arg, n0: Arg, n1: Arg, n2: Arg, k: Arg, x_row: Arg, row0: Arg, row1: Arg, row2: Arg,
    COUNT: constexpr, BM: constexpr, BN: constexpr, BK: constexpr, GROUP: constexpr, HAS_BIAS: constexpr,
    HAS_RESIDUAL: constexpr, ACTIVATION: constexpr, EVEN: constexpr, EARLY: constexpr, WIDE: constexpr,
    PDL: constexpr,
) -> None:  # fmt: skip
    """For any size."""
    which = tl.program_id(1)
    if COUNT == 1 or which == 0:
        _tile(
            x, w0, b0, residual, out0, m, n0, k, x_row, row0, BM, BN, BK, GROUP, HAS_BIAS, HAS_RESIDUAL, ACTIVATION,
            EVEN, EARLY, WIDE, PDL,
        )  # fmt: skip
    elif which == 1:
        _tile(
            x, w1, b1, residual, out1, m, n1, k, x_row, row1, BM, BN, BK, GROUP, HAS_BIAS, HAS_RESIDUAL, ACTIVATION,
            EVEN, EARLY, WIDE, PDL,
        )  # fmt: skip
    else:
        _tile(
            x, w2, b2, residual, out2, m, n2, k, x_row, row2, BM, BN, BK, GROUP, HAS_BIAS, HAS_RESIDUAL, ACTIVATION,
            EVEN, EARLY, WIDE, PDL,
        )  # fmt: skip


THIN = Kernel(_thin_kernel, pointers=11, plain=("m",))
TILED = Kernel(_tiled_kernel, pointers=11, plain=("m",))
