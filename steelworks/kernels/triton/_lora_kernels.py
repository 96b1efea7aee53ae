"""The kernels of the LoRA family: linear with its adapter, low-rank products, gradients of adapters.

How launches overlap (programmatic dependent launch). A kernel starts early, when each program of the kernel before it
has let it. Two rules keep that safe: nobody writes before ``gdc_wait``, which waits for all kernels before; and nobody
reads before it, except what was complete when the kernel *before* this one passed its own wait or started without
this kind of launch. Each kernel below says what it reads early.
"""

from __future__ import annotations

from ._launch import Arg, Kernel, constexpr, jit, tl, wait_for_previous


@jit
def _let_next_start(PDL: constexpr) -> None:
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@jit
def _wait(PDL: constexpr) -> None:
    if PDL:
        tl.extra.cuda.gdc_wait()


@jit
def _dot(left: Arg, right: Arg, acc: Arg, PRECISION: constexpr) -> Arg:
    """acc + left right. "wide": in float32, for the interpreter, which has no products of bfloat16."""
    if PRECISION == "wide":
        return tl.dot(left.to(tl.float32), right.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(left, right, acc, input_precision=PRECISION)


@jit
def _linear_kernel(
    x: Arg, w: Arg, bias: Arg, a: Arg, b: Arg, low: Arg, delta: Arg, out: Arg, partial: Arg, counters: Arg,
    m: Arg, n: Arg, k: Arg, r: Arg, x_row: Arg, w_row: Arg, a_row: Arg, b_row: Arg, scale: Arg,
    BM: constexpr, BN: constexpr, BK: constexpr, RANK: constexpr, SPLIT: constexpr, MIXED: constexpr,
    TRANSPOSED: constexpr, HAS_BIAS: constexpr, KEEP_LOW: constexpr, EVEN: constexpr, GROUP: constexpr,
    PRECISION: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """out = x W^T + bias + scale (x A^T) B^T for one tile, or for a part of its sum.

    Each program computes x A^T for its rows itself. MIXED: ``delta``, float32, is added instead; it comes from
    ``_expand_mixed_kernel``, and x and W are read early (they were complete when ``_low_mixed_kernel`` had waited).
    TRANSPOSED: W, A and B are read as their transposes lie in memory (for the gradient of x).
    """
    dtype = x.dtype.element_ty
    part = tl.program_id(1)
    tile = tl.program_id(0)
    tiles_m = tl.cdiv(m, BM)
    tiles_n = tl.cdiv(n, BN)
    # Tiles that run at the same time share rows of x and of W, so that the L2 cache serves both.
    in_group = GROUP * tiles_n
    first_m = tile // in_group * GROUP
    height = min(tiles_m - first_m, GROUP)
    tile_m = first_m + tile % in_group % height
    tile_n = tile % in_group // height

    rows = tile_m * BM + tl.arange(0, BM)
    columns = tile_n * BN + tl.arange(0, BN)
    ranks = tl.arange(0, RANK)
    deep = tl.arange(0, BK)
    row_known = rows < m
    column_known = columns < n
    rank_known = ranks < r
    steps = tl.cdiv(tl.cdiv(k, BK), SPLIT)
    first = part * steps * BK
    if MIXED:
        _let_next_start(PDL)
    else:
        wait_for_previous(PDL)

    x_at = x + tl.minimum(rows, m - 1)[:, None].to(tl.int64) * x_row + (first + deep)[None, :]
    if TRANSPOSED:
        w_at = w + (first + deep)[:, None].to(tl.int64) * w_row + columns[None, :]
        w_step = BK * w_row.to(tl.int64)
        a_at = a + (first + deep)[:, None] * a_row + ranks[None, :]
        a_step = BK * a_row
        b_at = b + ranks[:, None] * b_row + columns[None, :]
    else:
        w_at = w + tl.minimum(columns, n - 1)[None, :].to(tl.int64) * w_row + (first + deep)[:, None]
        w_step = BK
        a_at = a + tl.minimum(ranks, r - 1)[None, :] * a_row + (first + deep)[:, None]
        a_step = BK
        b_at = b + columns[None, :] * b_row + ranks[:, None]
    if not MIXED:
        b_tile = tl.load(b_at, mask=rank_known[:, None] & column_known[None, :], other=0.0)

    acc = tl.zeros((BM, BN), tl.float32)
    low_acc = tl.zeros((BM, RANK), tl.float32)
    for step in tl.range(0, steps):
        known = deep < k - first - step * BK
        if EVEN:
            x_tile = tl.load(x_at)
        else:
            x_tile = tl.load(x_at, mask=known[None, :], other=0.0)
        if TRANSPOSED:
            w_tile = tl.load(w_at, mask=known[:, None] & column_known[None, :], other=0.0)
        elif EVEN:
            w_tile = tl.load(w_at)
        else:
            w_tile = tl.load(w_at, mask=known[:, None], other=0.0)
        if not MIXED:
            if TRANSPOSED:
                a_tile = tl.load(a_at, mask=known[:, None] & rank_known[None, :], other=0.0)
            elif EVEN:
                a_tile = tl.load(a_at)
            else:
                a_tile = tl.load(a_at, mask=known[:, None], other=0.0)
            low_acc = _dot(x_tile, a_tile, low_acc, PRECISION)
            a_at += a_step
        acc = _dot(x_tile, w_tile, acc, PRECISION)
        x_at += BK
        w_at += w_step

    if MIXED:
        _wait(PDL)
    else:
        if KEEP_LOW and tile_n == 0:
            kept = rows[:, None] * r + ranks[None, :]
            tl.store(low + kept, low_acc.to(dtype), mask=row_known[:, None] & rank_known[None, :])
        low_tile = tl.where(rank_known[None, :], low_acc * scale, 0.0).to(dtype)
        acc = _dot(low_tile, b_tile, acc, PRECISION)

    out_places = rows[:, None].to(tl.int64) * n + columns[None, :]
    out_mask = row_known[:, None] & column_known[None, :]
    if SPLIT > 1:
        places = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
        base = partial + tile.to(tl.int64) * (BM * BN * SPLIT)
        tl.store(base + part * (BM * BN) + places, acc)
        tl.debug_barrier()
        last = tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu") == SPLIT - 1
        if last:
            acc = tl.load(base + places, cache_modifier=".cg")
            for other in tl.static_range(1, SPLIT):
                acc += tl.load(base + other * (BM * BN) + places, cache_modifier=".cg")
            if MIXED:
                acc += tl.load(delta + out_places, mask=out_mask, other=0.0)
            if HAS_BIAS:
                acc += tl.load(bias + columns, mask=column_known, other=0.0).to(tl.float32)[None, :]
            tl.store(out + out_places, acc.to(dtype), mask=out_mask)
            tl.store(counters + tile, 0)
    else:
        if MIXED:
            acc += tl.load(delta + out_places, mask=out_mask, other=0.0)
        if HAS_BIAS:
            acc += tl.load(bias + columns, mask=column_known, other=0.0).to(tl.float32)[None, :]
        tl.store(out + out_places, acc.to(dtype), mask=out_mask)


@jit
def _low_kernel(
    x: Arg, a: Arg, parts: Arg, scaled: Arg, low: Arg, counters: Arg,
    m: Arg, k: Arg, r: Arg, x_row: Arg, a_row: Arg, scale: Arg,
    BM: constexpr, BK: constexpr, RANK: constexpr, SPLIT: constexpr, TRANSPOSED: constexpr, EVEN: constexpr,
    WHOLE: constexpr, KEEP_LOW: constexpr, PRECISION: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """Parts of x A^T, (SPLIT, m, r), float32.

    WHOLE: the last program of some rows adds the parts up: ``scaled``, scale x A^T, float32, and if it is kept ``low``,
    x A^T in x's dtype.
    The kernel after this one then starts when all programs of this one have, and reads x and A early. Otherwise this
    one reads early, as it comes after PyTorch's product of the same x.
    """
    if WHOLE:
        wait_for_previous(PDL)
    part = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    ranks = tl.arange(0, RANK)
    deep = tl.arange(0, BK)
    rank_known = ranks < r
    steps = tl.cdiv(tl.cdiv(k, BK), SPLIT)
    first = part * steps * BK
    x_at = x + tl.minimum(rows, m - 1)[:, None].to(tl.int64) * x_row + (first + deep)[None, :]
    if TRANSPOSED:
        a_at = a + (first + deep)[:, None] * a_row + ranks[None, :]
        a_step = BK * a_row
    else:
        a_at = a + tl.minimum(ranks, r - 1)[None, :] * a_row + (first + deep)[:, None]
        a_step = BK
    acc = tl.zeros((BM, RANK), tl.float32)
    for step in tl.range(0, steps):
        known = deep < k - first - step * BK
        if EVEN:
            x_tile = tl.load(x_at)
        else:
            x_tile = tl.load(x_at, mask=known[None, :], other=0.0)
        if TRANSPOSED:
            a_tile = tl.load(a_at, mask=known[:, None] & rank_known[None, :], other=0.0)
        elif EVEN:
            a_tile = tl.load(a_at)
        else:
            a_tile = tl.load(a_at, mask=known[:, None], other=0.0)
        acc = _dot(x_tile, a_tile, acc, PRECISION)
        x_at += BK
        a_at += a_step
    if not WHOLE:
        wait_for_previous(PDL)
    mask = (rows < m)[:, None] & rank_known[None, :]
    places = rows[:, None].to(tl.int64) * r + ranks[None, :]
    if not WHOLE or SPLIT > 1:
        tl.store(parts + part * m.to(tl.int64) * r + places, acc, mask=mask)
    if WHOLE:
        last = True
        if SPLIT > 1:
            counter = counters + tl.program_id(0)
            tl.debug_barrier()
            last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == SPLIT - 1
            if last:
                acc = tl.load(parts + places, mask=mask, other=0.0, cache_modifier=".cg")
                for other in tl.static_range(1, SPLIT):
                    at = parts + other * m.to(tl.int64) * r + places
                    acc += tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
                tl.store(counter, 0)
        if last:
            tl.store(scaled + places, acc * scale, mask=mask)
            if KEEP_LOW:
                tl.store(low + places, acc.to(x.dtype.element_ty), mask=mask)


@jit
def _add_kernel(
    parts: Arg, b: Arg, low: Arg, out: Arg, m: Arg, n: Arg, r: Arg, b_row: Arg, scale: Arg,
    BM: constexpr, BN: constexpr, RANK: constexpr, SPLIT: constexpr, TRANSPOSED: constexpr, KEEP_LOW: constexpr,
    PRECISION: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """out += scale (x A^T) B^T. Reads out and B early: they were complete when ``_low_kernel`` had waited."""
    dtype = out.dtype.element_ty
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    ranks = tl.arange(0, RANK)
    row_known = rows < m
    column_known = columns < n
    low_mask = row_known[:, None] & (ranks < r)[None, :]
    if TRANSPOSED:
        b_at = b + ranks[:, None] * b_row + columns[None, :]
    else:
        b_at = b + columns[None, :] * b_row + ranks[:, None]
    b_tile = tl.load(b_at, mask=(ranks < r)[:, None] & column_known[None, :], other=0.0)
    out_at = out + rows[:, None].to(tl.int64) * n + columns[None, :]
    out_mask = row_known[:, None] & column_known[None, :]
    before = tl.load(out_at, mask=out_mask, other=0.0)
    wait_for_previous(PDL)
    places = rows[:, None].to(tl.int64) * r + ranks[None, :]
    total = tl.load(parts + places, mask=low_mask, other=0.0)
    for part in tl.static_range(1, SPLIT):
        total += tl.load(parts + part * m.to(tl.int64) * r + places, mask=low_mask, other=0.0)
    if KEEP_LOW and tl.program_id(0) == 0:
        tl.store(low + places, total.to(dtype), mask=low_mask)
    acc = _dot((total * scale).to(dtype), b_tile, tl.zeros((BM, BN), tl.float32), PRECISION)
    tl.store(out_at, (before.to(tl.float32) + acc).to(dtype), mask=out_mask)


@jit
def _low_mixed_kernel(
    x: Arg, a: Arg, index: Arg, low: Arg, k: Arg, r: Arg, x_row: Arg, a_row: Arg, adapters: Arg,
    BR: constexpr, BK: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """low = x A^T, float32, for one row and some ranks, with the adapter of that row."""
    row = tl.program_id(0)
    ranks = tl.program_id(1) * BR + tl.arange(0, BR)
    deep = tl.arange(0, BK)
    wait_for_previous(PDL)
    which = tl.load(index + row)
    if which >= 0 and which < adapters:
        number = which.to(tl.int64)
        a_at = a + number * (r * a_row) + tl.minimum(ranks, r - 1)[:, None] * a_row + deep[None, :]
        total = tl.zeros((BR,), tl.float32)
        for start in tl.range(0, k, BK):
            known = deep < k - start
            a_part = tl.load(a_at + start, mask=known[None, :], other=0.0)
            x_part = tl.load(x + row.to(tl.int64) * x_row + start + deep, mask=known, other=0.0)
            total += tl.sum(a_part.to(tl.float32) * x_part.to(tl.float32)[None, :], axis=1)
        tl.store(low + row * r + ranks, total, mask=ranks < r)


@jit
def _expand_mixed_kernel(
    low: Arg, b: Arg, index: Arg, scales: Arg, delta: Arg, n: Arg, r: Arg, b_row: Arg, adapters: Arg,
    BN: constexpr, RANK: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """delta = scale low B^T for one row, 0 for a row without an adapter.

    Reads the index, B and the scale early: they were complete when ``_low_mixed_kernel`` had waited.
    """
    row = tl.program_id(0)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    ranks = tl.arange(0, RANK)
    _let_next_start(PDL)
    which = tl.load(index + row)
    column_known = columns < n
    delta_at = delta + row.to(tl.int64) * n + columns
    if which >= 0 and which < adapters:
        number = which.to(tl.int64)
        b_tile = tl.load(
            b + number * (n * b_row) + columns[:, None] * b_row + ranks[None, :],
            mask=column_known[:, None] & (ranks < r)[None, :],
            other=0.0,
        )
        factor = tl.load(scales + number)
        _wait(PDL)
        lows = tl.load(low + row * r + ranks, mask=ranks < r, other=0.0) * factor
        tl.store(delta_at, tl.sum(b_tile.to(tl.float32) * lows[None, :], axis=1), mask=column_known)
    else:
        _wait(PDL)
        tl.store(delta_at, tl.zeros((BN,), tl.float32), mask=column_known)


@jit
def _strip(
    thin: Arg, wide: Arg, out: Arg, m: Arg, width: Arg, r: Arg, wide_row: Arg, scale: Arg, block: Arg,
    ACROSS: constexpr, BM: constexpr, BC: constexpr, RANK: constexpr, PRECISION: constexpr,
) -> None:  # fmt: skip
    """scale * thin^T wide for some columns of ``wide``; stored as (r, width), or ACROSS as (width, r)."""
    ranks = tl.arange(0, RANK)
    columns = block * BC + tl.arange(0, BC)
    column_known = columns < width
    rank_known = ranks < r
    some = tl.arange(0, BM)
    acc = tl.zeros((RANK, BC), tl.float32)
    for start in tl.range(0, m, BM):
        rows = start + some
        known = rows < m
        thin_tile = tl.load(
            thin + rows[None, :] * r + ranks[:, None], mask=known[None, :] & rank_known[:, None], other=0.0
        )
        wide_tile = tl.load(
            wide + rows[:, None].to(tl.int64) * wide_row + columns[None, :],
            mask=known[:, None] & column_known[None, :],
            other=0.0,
        )
        acc = _dot(thin_tile, wide_tile, acc, PRECISION)
    acc = (acc * scale).to(out.dtype.element_ty)
    mask = rank_known[:, None] & column_known[None, :]
    if ACROSS:
        tl.store(out + columns[None, :] * r + ranks[:, None], acc, mask=mask)
    else:
        tl.store(out + ranks[:, None] * width + columns[None, :], acc, mask=mask)


@jit
def _adapter_grads_kernel(
    grad_low: Arg, x: Arg, low: Arg, grad: Arg, grad_a: Arg, grad_b: Arg,
    m: Arg, n: Arg, k: Arg, r: Arg, x_row: Arg, scale: Arg,
    BM: constexpr, BC: constexpr, RANK: constexpr, PRECISION: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """grad_a = scale (grad B)^T x and grad_b = scale grad^T (x A^T), in one launch."""
    block = tl.program_id(0)
    blocks_a = tl.cdiv(k, BC)
    wait_for_previous(PDL)
    if block < blocks_a:
        _strip(grad_low, x, grad_a, m, k, r, x_row, scale, block, False, BM, BC, RANK, PRECISION)
    else:
        _strip(low, grad, grad_b, m, n, r, n, scale, block - blocks_a, True, BM, BC, RANK, PRECISION)


LINEAR = Kernel(_linear_kernel, pointers=10, plain=("m",))
LOW = Kernel(_low_kernel, pointers=6, plain=("m",))
ADD = Kernel(_add_kernel, pointers=4, plain=("m",))
LOW_MIXED = Kernel(_low_mixed_kernel, pointers=4)
EXPAND_MIXED = Kernel(_expand_mixed_kernel, pointers=5)
ADAPTER_GRADS = Kernel(_adapter_grads_kernel, pointers=6, plain=("m",))
