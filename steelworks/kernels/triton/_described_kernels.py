"""The kernels of linear layers whose operands come through tensor descriptors (TMA), with an adapter or without.

A block of x and a block of W arrive by one instruction each, written to shared memory by the copy engine, several steps
ahead of the matrix product: about as fast as cuBLAS where the tiles fill the GPU's multiprocessors evenly.
"""

from __future__ import annotations

from ._launch import Arg, Kernel, constexpr, jit, tl, wait_for_previous
from ._linear_kernels import _activated, _dot


@jit
def _place(m: Arg, n: Arg, BM: constexpr, BN: constexpr, GROUP: constexpr) -> Arg:
    """First row and column of a program's tile; those at work together share rows of x and of W in the L2 cache."""
    number = tl.program_id(0)
    tiles_n = tl.cdiv(n, BN)
    in_group = GROUP * tiles_n
    first = number // in_group * GROUP
    height = tl.maximum(
        1, min(tl.cdiv(m, BM) - first, GROUP)
    )  # behind the last tile of a smaller layer: no rows
    return (first + number % in_group % height) * BM, number % in_group // height * BN


@jit
def _product(
    x: Arg, w: Arg, top: Arg, left: Arg, k: Arg, BM: constexpr, BN: constexpr, BK: constexpr, TRANSPOSED: constexpr,
    WIDE: constexpr,
) -> Arg:  # fmt: skip
    """x W^T for one tile. TRANSPOSED: W is read as its transpose lies in memory."""
    acc = tl.zeros((BM, BN), tl.float32)
    for step in tl.range(0, tl.cdiv(k, BK)):
        x_tile = x.load([top, step * BK])
        if TRANSPOSED:
            acc = _dot(x_tile, w.load([step * BK, left]), acc, WIDE)
        else:
            acc = _dot(x_tile, w.load([left, step * BK]).T, acc, WIDE)
    return acc


@jit
def _adapted_kernel(
    x: Arg, w: Arg, bias: Arg, scaled: Arg, b: Arg, out: Arg, m: Arg, n: Arg, k: Arg, r: Arg, b_row: Arg,
    BM: constexpr, BN: constexpr, BK: constexpr, GROUP: constexpr, RANK: constexpr, TRANSPOSED: constexpr,
    HAS_BIAS: constexpr, WIDE: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """out = x W^T + scaled B^T + bias for one tile.

    The launch before this one is ``_low_kernel``, which has waited for what came before it: x, W, B and bias are read
    while it still runs, and ``scaled``, (m, r) in float32, which it writes, after the product. (It is converted here:
    from registers, the compiler lets this small product follow the large one. With an operand in shared memory it
    made every step of the large one wait for its end, 34 us instead of 25.)
    TRANSPOSED: W and B are read as their transposes lie in memory.
    """
    top, left = _place(m, n, BM, BN, GROUP)
    acc = _product(x, w, top, left, k, BM, BN, BK, TRANSPOSED, WIDE)
    rows = top + tl.arange(0, BM)
    columns = left + tl.arange(0, BN)
    ranks = tl.arange(0, RANK)
    row_known = rows < m
    column_known = columns < n
    rank_known = ranks < r
    if TRANSPOSED:
        b_at = b + ranks[:, None] * b_row + columns[None, :]
    else:
        b_at = b + columns[None, :] * b_row + ranks[:, None]
    b_tile = tl.load(b_at, mask=rank_known[:, None] & column_known[None, :], other=0.0)
    wait_for_previous(PDL)
    scaled_at = scaled + rows[:, None].to(tl.int64) * r + ranks[None, :]
    low = tl.load(scaled_at, mask=row_known[:, None] & rank_known[None, :], other=0.0)
    acc = _dot(low.to(out.dtype.element_ty), b_tile, acc, WIDE)
    if HAS_BIAS:
        acc += tl.load(bias + columns, mask=column_known, other=0.0).to(tl.float32)[None, :]
    places = rows[:, None].to(tl.int64) * n + columns[None, :]
    tl.store(out + places, acc.to(out.dtype.element_ty), mask=row_known[:, None] & column_known[None, :])


@jit
def _layer_kernel(
    x: Arg, w: Arg, bias: Arg, residual: Arg, out: Arg, m: Arg, n: Arg, k: Arg,
    BM: constexpr, BN: constexpr, BK: constexpr, GROUP: constexpr, HAS_BIAS: constexpr, HAS_RESIDUAL: constexpr,
    ACTIVATION: constexpr, WIDE: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """out = activation(x W^T + bias + residual) for one tile."""
    wait_for_previous(PDL)
    top, left = _place(m, n, BM, BN, GROUP)
    acc = _product(x, w, top, left, k, BM, BN, BK, False, WIDE)
    rows = top + tl.arange(0, BM)
    columns = left + tl.arange(0, BN)
    column_known = columns < n
    if HAS_BIAS:
        acc += tl.load(bias + columns, mask=column_known, other=0.0).to(tl.float32)[None, :]
    places = rows[:, None].to(tl.int64) * n + columns[None, :]
    inside = (rows < m)[:, None] & column_known[None, :]
    if HAS_RESIDUAL:
        acc += tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + places, _activated(acc, ACTIVATION).to(out.dtype.element_ty), mask=inside)


ADAPTED = Kernel(_adapted_kernel, pointers=6, plain=("m",), described=2)
LAYER = Kernel(_layer_kernel, pointers=5, plain=("m",), described=2)
