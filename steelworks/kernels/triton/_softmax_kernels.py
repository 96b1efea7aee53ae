"""Triton kernels of softmax: rows in registers, rows of any length, and columns; forward and backward."""

from __future__ import annotations

from ._launch import Arg, Kernel, constexpr, jit, tl, wait_for_previous


@jit
def _normalised(v: Arg, top: Arg, total: Arg, LOG: constexpr) -> Arg:
    """exp(v - top) / total, or its logarithm."""
    if LOG:
        result = v - top - tl.log(total)
    else:
        result = tl.exp(v - top) / total
    return result


@jit
def _rows_kernel(
    x_ptr: Arg, y_ptr: Arg, rows: Arg, length: Arg, stride: Arg,
    LOG: constexpr, ROWS: constexpr, BLOCK: constexpr, EXACT: constexpr, STREAM: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """A tile of whole rows, read once. EXACT: BLOCK is the length, and ROWS divides the rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < length)
    wait_for_previous(PDL)
    at = x_ptr + row.to(tl.int64) * stride + column
    if EXACT and STREAM:  # neither x nor y is wanted in the cache again
        v = tl.load(at, eviction_policy="evict_first").to(tl.float32)
    elif EXACT:
        v = tl.load(at).to(tl.float32)
    else:
        v = tl.load(at, mask, other=-float("inf")).to(tl.float32)
    top = tl.max(v, axis=1)[:, None]
    if LOG:
        result = v - top
        result -= tl.log(tl.sum(tl.exp(result), axis=1)[:, None])
    else:
        e = tl.exp(v - top)
        result = e * (1.0 / tl.sum(e, axis=1)[:, None])
    to = y_ptr + row.to(tl.int64) * length + column
    if EXACT and STREAM:
        tl.store(to, result.to(y_ptr.dtype.element_ty), cache_modifier=".cs")
    elif EXACT:
        tl.store(to, result.to(y_ptr.dtype.element_ty))
    else:
        tl.store(to, result.to(y_ptr.dtype.element_ty), mask)


@jit
def _add_block(v: Arg, top: Arg, total: Arg) -> Arg:
    """The running maximum, and the running sum of exp(value - maximum), lane by lane."""
    higher = tl.maximum(top, v)
    # While a lane has seen only -inf, -inf - -inf would make its sum NaN.
    base = tl.where(higher == -float("inf"), 0.0, higher)
    return higher, total * tl.exp(top - base) + tl.exp(v - base)


@jit
def _long_rows_kernel(
    x_ptr: Arg, y_ptr: Arg, length: Arg, stride: Arg,
    LOG: constexpr, BLOCK: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """A row of any length: maximum and sum online in a first pass, results in a second."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * stride
    y_ptr += row * length
    column = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    wait_for_previous(PDL)
    for begin in range(0, length, BLOCK):
        v = tl.load(x_ptr + begin + column, begin + column < length, other=-float("inf")).to(tl.float32)
        top, total = _add_block(v, top, total)
    highest = tl.max(top, axis=0)
    base = tl.where(highest == -float("inf"), 0.0, highest)
    total = tl.sum(total * tl.exp(top - base), axis=0)
    for begin in range(0, length, BLOCK):
        mask = begin + column < length
        v = tl.load(x_ptr + begin + column, mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + begin + column, _normalised(v, highest, total, LOG).to(y_ptr.dtype.element_ty), mask)


@jit
def _columns_kernel(
    x_ptr: Arg, y_ptr: Arg, length: Arg, inner: Arg,
    LOG: constexpr, BLOCK: constexpr, COLUMNS: constexpr, ONCE: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """Along the middle of dense (outer, length, inner): ``COLUMNS`` neighbours of inner at a time."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    place = tl.arange(0, BLOCK)[:, None]
    offset = tl.program_id(1).to(tl.int64) * length * inner
    x_ptr += offset
    y_ptr += offset
    top = tl.full([BLOCK, COLUMNS], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK, COLUMNS], tl.float32)
    wait_for_previous(PDL)
    if ONCE:
        mask = (place < length) & (column < inner)
        at = place.to(tl.int64) * inner + column
        v = tl.load(x_ptr + at, mask, other=-float("inf")).to(tl.float32)
        highest = tl.max(v, axis=0)[None, :]
        base = tl.where(highest == -float("inf"), 0.0, highest)
        sums = tl.sum(tl.exp(v - base), axis=0)[None, :]
        tl.store(y_ptr + at, _normalised(v, highest, sums, LOG).to(y_ptr.dtype.element_ty), mask)
    else:
        for begin in range(0, length, BLOCK):
            mask = (begin + place < length) & (column < inner)
            at = (begin + place).to(tl.int64) * inner + column
            v = tl.load(x_ptr + at, mask, other=-float("inf")).to(tl.float32)
            top, total = _add_block(v, top, total)
        highest = tl.max(top, axis=0)[None, :]
        base = tl.where(highest == -float("inf"), 0.0, highest)
        sums = tl.sum(total * tl.exp(top - base), axis=0)[None, :]
        for begin in range(0, length, BLOCK):
            mask = (begin + place < length) & (column < inner)
            at = (begin + place).to(tl.int64) * inner + column
            v = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32)
            tl.store(y_ptr + at, _normalised(v, highest, sums, LOG).to(y_ptr.dtype.element_ty), mask)


@jit
def _term(grad: Arg, y: Arg, LOG: constexpr) -> Arg:
    """What the sum of backward is over: g for log_softmax, g * y for softmax."""
    if LOG:
        term = grad
    else:
        term = grad * y
    return term


@jit
def _gradient(grad: Arg, y: Arg, total: Arg, LOG: constexpr) -> Arg:
    if LOG:
        result = grad - tl.exp(y) * total
    else:
        result = y * (grad - total)
    return result


@jit
def _rows_backward_kernel(
    grad_ptr: Arg, y_ptr: Arg, dx_ptr: Arg, rows: Arg, length: Arg, grad_stride: Arg, stride: Arg,
    LOG: constexpr, ROWS: constexpr, BLOCK: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < length)
    row = row.to(tl.int64)
    wait_for_previous(PDL)
    grad = tl.load(grad_ptr + row * grad_stride + column, mask, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + row * stride + column, mask, other=0.0).to(tl.float32)
    total = tl.sum(_term(grad, y, LOG), axis=1)[:, None]
    result = _gradient(grad, y, total, LOG)
    tl.store(dx_ptr + row * length + column, result.to(dx_ptr.dtype.element_ty), mask)


@jit
def _long_backward_kernel(
    grad_ptr: Arg, y_ptr: Arg, dx_ptr: Arg, length: Arg, inner: Arg,
    LOG: constexpr, BLOCK: constexpr, COLUMNS: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """Along the middle of dense (outer, length, inner); inner and COLUMNS are 1 for rows that are too long."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    place = tl.arange(0, BLOCK)[:, None]
    offset = tl.program_id(1).to(tl.int64) * length * inner
    grad_ptr += offset
    y_ptr += offset
    dx_ptr += offset
    sums = tl.zeros([BLOCK, COLUMNS], tl.float32)
    wait_for_previous(PDL)
    for begin in range(0, length, BLOCK):
        mask = (begin + place < length) & (column < inner)
        at = (begin + place).to(tl.int64) * inner + column
        grad = tl.load(grad_ptr + at, mask, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + at, mask, other=0.0).to(tl.float32)
        sums += _term(grad, y, LOG)
    total = tl.sum(sums, axis=0)[None, :]
    for begin in range(0, length, BLOCK):
        mask = (begin + place < length) & (column < inner)
        at = (begin + place).to(tl.int64) * inner + column
        grad = tl.load(grad_ptr + at, mask, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + at, mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, _gradient(grad, y, total, LOG).to(dx_ptr.dtype.element_ty), mask)


ROWS = Kernel(_rows_kernel, pointers=2, plain=("rows",))
LONG_ROWS = Kernel(_long_rows_kernel, pointers=2)
COLUMNS = Kernel(_columns_kernel, pointers=2)
ROWS_BACKWARD = Kernel(_rows_backward_kernel, pointers=3, plain=("rows",))
LONG_BACKWARD = Kernel(_long_backward_kernel, pointers=3)
