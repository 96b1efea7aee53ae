"""Triton kernels of layer_norm and rms_norm: rows in registers, rows of any length, backward."""

from __future__ import annotations

from ._launch import Arg, Kernel, constexpr, jit, tl, wait_for_previous


@jit
def _load(at: Arg, mask: Arg, EXACT: constexpr, STREAM: constexpr) -> Arg:
    """Elements, 0 where there are none. EXACT: all are there. STREAM: they are not read again."""
    if EXACT and STREAM:
        v = tl.load(at, eviction_policy="evict_first")
    elif EXACT:
        v = tl.load(at)
    else:
        v = tl.load(at, mask, other=0.0)
    return v.to(tl.float32)


@jit
def _store(at: Arg, v: Arg, mask: Arg, EXACT: constexpr, STREAM: constexpr) -> None:
    v = v.to(at.dtype.element_ty)
    if EXACT and STREAM:
        tl.store(at, v, cache_modifier=".cs")
    elif EXACT:
        tl.store(at, v)
    else:
        tl.store(at, v, mask)


@jit
def _rows_kernel(
    x_ptr: Arg, r_ptr: Arg, w_ptr: Arg, b_ptr: Arg, y_ptr: Arg, h_ptr: Arg, mean_ptr: Arg, rstd_ptr: Arg,
    rows: Arg, length: Arg, x_stride: Arg, r_stride: Arg, eps: Arg,
    RMS: constexpr, RESIDUAL: constexpr, WEIGHT: constexpr, BIAS: constexpr, STATS: constexpr,
    ROWS: constexpr, BLOCK: constexpr, EXACT: constexpr, STREAM: constexpr, EARLY: constexpr,
    PDL: constexpr,
) -> None:  # fmt: skip
    """A tile of whole rows, read once. EXACT: BLOCK is the length, and ROWS divides the rows.

    EARLY: weight and bias are read before the rows, so that nothing waits for them. Else after the sums: held through
    both sums of a long row they would take 62 registers instead of 40, and half the rows in flight.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < length)
    wait_for_previous(PDL)
    if EARLY and WEIGHT:
        w = _load(w_ptr + column, column < length, EXACT, False)
    if EARLY and BIAS:
        b = _load(b_ptr + column, column < length, EXACT, False)
    v = _load(x_ptr + row * x_stride + column, mask, EXACT, STREAM)
    if RESIDUAL:
        v += _load(r_ptr + row * r_stride + column, mask, EXACT, STREAM)
        _store(h_ptr + row * length + column, v, mask, EXACT, STREAM)
    per_element = 1.0 / length
    if not RMS:
        mean = tl.sum(v, axis=1)[:, None] * per_element
        v -= mean
        if not EXACT:
            v = tl.where(mask, v, 0.0)
        if STATS:
            tl.store(mean_ptr + row, mean, row < rows)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(v * v, axis=1)[:, None] * per_element + eps)
    if STATS:
        tl.store(rstd_ptr + row, rstd, row < rows)
    v *= rstd
    if WEIGHT:
        if not EARLY:
            w = _load(w_ptr + column, column < length, EXACT, False)
        v *= w
    if BIAS:
        if not EARLY:
            b = _load(b_ptr + column, column < length, EXACT, False)
        v += b
    _store(y_ptr + row * length + column, v, mask, EXACT, STREAM)


@jit
def _long_rows_kernel(
    x_ptr: Arg, r_ptr: Arg, w_ptr: Arg, b_ptr: Arg, y_ptr: Arg, h_ptr: Arg, mean_ptr: Arg, rstd_ptr: Arg,
    length: Arg, x_stride: Arg, r_stride: Arg, eps: Arg,
    RMS: constexpr, RESIDUAL: constexpr, WEIGHT: constexpr, BIAS: constexpr, STATS: constexpr,
    BLOCK: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """A row of any length, read twice; mean and squares are merged block by block (Chan et al.)."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    r_ptr += row * r_stride
    y_ptr += row * length
    h_ptr += row * length
    column = tl.arange(0, BLOCK)
    mean = 0.0
    squares = 0.0
    wait_for_previous(PDL)
    for begin in range(0, length, BLOCK):
        mask = begin + column < length
        v = tl.load(x_ptr + begin + column, mask, other=0.0).to(tl.float32)
        if RESIDUAL:
            v += tl.load(r_ptr + begin + column, mask, other=0.0).to(tl.float32)
            tl.store(h_ptr + begin + column, v.to(h_ptr.dtype.element_ty), mask)
        if RMS:
            squares += tl.sum(v * v, axis=0)
        else:
            count = tl.minimum(length - begin, BLOCK).to(tl.float32)
            here = tl.sum(v, axis=0) / count
            centred = tl.where(mask, v - here, 0.0)
            away = here - mean
            share = count / (begin + count)
            mean += away * share
            squares += tl.sum(centred * centred, axis=0) + away * away * share * begin
    rstd = 1.0 / tl.sqrt_rn(squares / length + eps)
    if STATS:
        tl.store(rstd_ptr + row, rstd)
        if not RMS:
            tl.store(mean_ptr + row, mean)
    for begin in range(0, length, BLOCK):
        mask = begin + column < length
        v = tl.load(x_ptr + begin + column, mask, other=0.0).to(tl.float32)
        if RESIDUAL:
            v += tl.load(r_ptr + begin + column, mask, other=0.0).to(tl.float32)
        v = (v - mean) * rstd
        if WEIGHT:
            v *= tl.load(w_ptr + begin + column, mask, other=0.0).to(tl.float32)
        if BIAS:
            v += tl.load(b_ptr + begin + column, mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + begin + column, v.to(y_ptr.dtype.element_ty), mask)


@jit
def _backward_kernel(
    dy_ptr: Arg, dh_ptr: Arg, h_ptr: Arg, w_ptr: Arg, mean_ptr: Arg, rstd_ptr: Arg, dx_ptr: Arg, dw_ptr: Arg,
    db_ptr: Arg,
    rows: Arg, length: Arg, dy_stride: Arg, dh_stride: Arg, h_stride: Arg,
    RMS: constexpr, WEIGHT: constexpr, DW: constexpr, DB: constexpr, DH: constexpr,
    ROWS: constexpr, BLOCK: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """dx, and each program's sums over its rows for the gradients of weight and bias (float32, a row a program)."""
    column = tl.arange(0, BLOCK)[None, :]
    known = column < length
    per_element = 1.0 / length
    dw = tl.zeros([ROWS, BLOCK], tl.float32)
    db = tl.zeros([ROWS, BLOCK], tl.float32)
    wait_for_previous(PDL)
    if WEIGHT:
        w = tl.load(w_ptr + column, known, other=0.0).to(tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        mask = (row < rows) & known
        dy = tl.load(dy_ptr + row * dy_stride + column, mask, other=0.0).to(tl.float32)
        h = tl.load(h_ptr + row * h_stride + column, mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, row < rows, other=0.0)
        if not RMS:
            h -= tl.load(mean_ptr + row, row < rows, other=0.0)
        normal = tl.where(mask, h * rstd, 0.0)
        if DW:
            dw += dy * normal
        if DB:
            db += dy
        if WEIGHT:
            dy *= w
        dx = dy - normal * (tl.sum(dy * normal, axis=1)[:, None] * per_element)
        if not RMS:
            dx -= tl.sum(dy, axis=1)[:, None] * per_element
        dx *= rstd
        if DH:
            dx += tl.load(dh_ptr + row * dh_stride + column, mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + row * length + column, dx.to(dx_ptr.dtype.element_ty), mask)
    at = tl.program_id(0) * length + tl.arange(0, BLOCK)
    known_1d = tl.arange(0, BLOCK) < length
    if DW:
        tl.store(dw_ptr + at, tl.sum(dw, axis=0), known_1d)
    if DB:
        tl.store(db_ptr + at, tl.sum(db, axis=0), known_1d)


@jit
def _sum_kernel(
    dw_parts: Arg, db_parts: Arg, dw_ptr: Arg, db_ptr: Arg, parts: Arg, length: Arg,
    DW: constexpr, DB: constexpr, PARTS: constexpr, COLUMNS: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """The sums of the programs added up, in a fixed order."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    dw = tl.zeros([PARTS, COLUMNS], tl.float32)
    db = tl.zeros([PARTS, COLUMNS], tl.float32)
    wait_for_previous(PDL)
    for begin in range(0, parts, PARTS):
        part = begin + tl.arange(0, PARTS)[:, None]
        mask = (part < parts) & (column[None, :] < length)
        if DW:
            dw += tl.load(dw_parts + part * length + column[None, :], mask, other=0.0)
        if DB:
            db += tl.load(db_parts + part * length + column[None, :], mask, other=0.0)
    if DW:
        tl.store(dw_ptr + column, tl.sum(dw, axis=0).to(dw_ptr.dtype.element_ty), column < length)
    if DB:
        tl.store(db_ptr + column, tl.sum(db, axis=0).to(db_ptr.dtype.element_ty), column < length)


ROWS = Kernel(_rows_kernel, pointers=8, plain=("rows",))
LONG_ROWS = Kernel(_long_rows_kernel, pointers=8)
BACKWARD = Kernel(_backward_kernel, pointers=9, plain=("rows",))
SUM = Kernel(_sum_kernel, pointers=4, plain=("parts",))
