"""The kernels of linear layers with weights in 8 or 4 bits."""

from __future__ import annotations

from typing import Final

from ._launch import Arg, Kernel, constexpr, jit, tl, wait_for_previous

#: Columns of a block: 16 words of four columns.
BLOCK: Final = 64
#: Rows of a tile of the weight.
TILE: Final = 16

# How a 4-bit weight lies in memory: (blocks, tiles of 16 rows, 32 lanes, 8 words), in the order in which the
# lanes of a warp hold the left operand of a matrix product in Triton. Lane 4 g + t holds the words of row g + 8 rhi
# and place 4 t + 2 khi + klo as its words (khi, rhi, klo): 16 bytes, one load, no exchange between lanes. The word
# at place i holds the columns 2 i, 2 i + 1, 32 + 2 i, 33 + 2 i of its block, so that the same nibble of 16 words is
# one step of the instruction within one group of columns. Scales and zero points lie as (groups, tiles, 8 lanes g):
# for the rows g and g + 8, in 8 bytes. Reshapes and permutations below only name what a lane holds; where another
# version of Triton orders its operands otherwise, they cost exchanges, and the result is the same.
#
# A nibble goes under the exponent of 128 (bfloat16) or 1024 (float16), which gives 128 + q at no cost; the zero
# point, with the same number added, is subtracted exactly. Two words at a time: 11 instructions for 8 weights.
_UNPACK = """
{{
  .reg .b32 t;
  lop3.b32 $0, $4, 0x000F000F, {magic}, 0xEA;
  shr.u32 t, $4, 4;
  lop3.b32 $1, t, 0x000F000F, {magic}, 0xEA;
  shr.u32 t, $4, 8;
  lop3.b32 $2, t, 0x000F000F, {magic}, 0xEA;
  shr.u32 t, $4, 12;
  lop3.b32 $3, t, 0x000F000F, {magic}, 0xEA;
  sub.{type} $0, $0, $5;
  sub.{type} $1, $1, $5;
  sub.{type} $2, $2, $5;
  sub.{type} $3, $3, $5;
}}
"""
_BF16 = _UNPACK.format(magic="0x43004300", type="bf16x2")
_F16 = _UNPACK.format(magic="0x64006400", type="f16x2")
UNPACK_BF16 = tl.constexpr(_BF16) if tl is not None else _BF16
UNPACK_F16 = tl.constexpr(_F16) if tl is not None else _F16
BF16_FOUR = tl.constexpr((tl.bfloat16,) * 4) if tl is not None else None
F16_FOUR = tl.constexpr((tl.float16,) * 4) if tl is not None else None


@jit
def _unpack(words: Arg, offset: Arg, FAST: constexpr) -> Arg:
    """The four integers of each word, less the zero point; ``offset`` is the zero point plus 128 or 1024."""
    dtype: constexpr = offset.dtype
    if FAST and dtype == tl.bfloat16:
        parts = tl.inline_asm_elementwise(
            UNPACK_BF16, "=r,=r,=r,=r,r,r", [words, offset], dtype=BF16_FOUR, is_pure=True, pack=2
        )
    elif FAST and dtype == tl.float16:
        parts = tl.inline_asm_elementwise(
            UNPACK_F16, "=r,=r,=r,=r,r,r", [words, offset], dtype=F16_FOUR, is_pure=True, pack=2
        )
    else:
        wide = words.to(tl.int32)
        zero = offset.to(tl.float32) - (1024.0 if dtype == tl.float16 else 128.0)
        parts = (
            ((wide & 15).to(tl.float32) - zero).to(dtype),
            (((wide >> 4) & 15).to(tl.float32) - zero).to(dtype),
            (((wide >> 8) & 15).to(tl.float32) - zero).to(dtype),
            (((wide >> 12) & 15).to(tl.float32) - zero).to(dtype),
        )
    return parts


@jit
def _words(at: Arg, mask: Arg, EVEN: constexpr, SLICES: constexpr) -> Arg:
    """A tile of the weight: (slices, 16 rows, 16 places)."""
    if EVEN:
        raw = tl.load(at)
    else:
        raw = tl.load(at, mask=mask[:, None], other=0)
    raw = tl.permute(tl.reshape(raw, (SLICES, 8, 4, 2, 2, 2)), (0, 4, 1, 2, 3, 5))
    return tl.reshape(raw, (SLICES, 16, 16))


@jit
def _offsets(low: Arg, high: Arg, SLICES: constexpr) -> Arg:
    """What a lane has for its rows g and g + 8, for the places that it holds: (slices, 16, 16 places)."""
    both = tl.reshape(tl.join(low, high), (SLICES, 8, 4, 2, 1, 1))
    both = tl.permute(tl.broadcast_to(both, (SLICES, 8, 4, 2, 2, 2)), (0, 3, 1, 2, 4, 5))
    return tl.reshape(both, (SLICES, 16, 16))


@jit
def _scales(low: Arg, high: Arg, SLICES: constexpr, BM: constexpr) -> Arg:
    """The same for the results that it holds: (slices, 16, BM)."""
    both = tl.reshape(tl.join(low, high), (SLICES, 8, 4, 2, 1, 1))
    both = tl.permute(tl.broadcast_to(both, (SLICES, 8, 4, 2, BM // 8, 2)), (0, 3, 1, 4, 2, 5))
    return tl.reshape(both, (SLICES, 16, BM)).to(tl.float32)


@jit
def _half(pair: Arg, SHIFT: constexpr, dtype: constexpr) -> Arg:
    return ((pair >> SHIFT) & 0xFFFF).to(tl.uint16).to(dtype, bitcast=True)


@jit
def _times(w: Arg, x: Arg, acc: Arg, PRECISION: constexpr) -> Arg:
    if PRECISION == "wide":
        return tl.dot(w.to(tl.float32), x.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(w, x, acc, input_precision=PRECISION)


@jit
def _x_rows(at: Arg, mask: Arg, EVEN: constexpr, SLICES: constexpr) -> Arg:
    if EVEN:
        raw = tl.load(at)
    else:
        raw = tl.load(at, mask=mask, other=0.0)
    return tl.reshape(raw, (SLICES, 8, 32))


@jit
def _x_part(at: Arg, below: Arg, mask: Arg, EVEN: constexpr, SLICES: constexpr, BM: constexpr) -> Arg:
    """32 columns of x as right operands, the even ones and the odd ones: each (slices, 16 places, rows)."""
    raw = _x_rows(at, mask, EVEN, SLICES)
    if BM == 16:
        raw = tl.permute(tl.join(raw, _x_rows(at + below, mask, EVEN, SLICES)), (0, 3, 1, 2))
    even, odd = tl.split(tl.reshape(raw, (SLICES, BM, 16, 2)))
    return tl.permute(even, (0, 2, 1)), tl.permute(odd, (0, 2, 1))


@jit
def _add_tile(
    words: Arg, pair: Arg, later_pair: Arg, x0: Arg, x1: Arg, x2: Arg, x3: Arg, acc: Arg, dtype: constexpr,
    HALVES: constexpr, FAST: constexpr, PRECISION: constexpr, SLICES: constexpr, BM: constexpr,
) -> Arg:  # fmt: skip
    """acc + (16 rows and 64 columns of W) x^T."""
    nothing = tl.zeros((SLICES, 16, BM), tl.float32)
    offset = _offsets(_half(pair, 16, dtype), _half(pair, 48, dtype), SLICES)
    scale = _scales(_half(pair, 0, dtype), _half(pair, 32, dtype), SLICES, BM)
    w0, w1, w2, w3 = _unpack(words, offset, FAST)
    part = _times(w0, x0, nothing, PRECISION)
    part = _times(w1, x1, part, PRECISION)
    if HALVES:
        acc += part * scale
        offset = _offsets(_half(later_pair, 16, dtype), _half(later_pair, 48, dtype), SLICES)
        scale = _scales(_half(later_pair, 0, dtype), _half(later_pair, 32, dtype), SLICES, BM)
        _w0, _w1, w2, w3 = _unpack(words, offset, FAST)
        part = nothing
    part = _times(w2, x2, part, PRECISION)
    part = _times(w3, x3, part, PRECISION)
    return acc + part * scale


@jit
def _int4_kernel(
    x: Arg, words: Arg, pairs: Arg, bias: Arg, out: Arg,
    m: Arg, n: Arg, k: Arg, blocks: Arg, groups: Arg, tiles: Arg, x_row: Arg,
    BM: constexpr, TILES: constexpr, SLICES: constexpr, UNROLL: constexpr, GROUP: constexpr, HAS_BIAS: constexpr,
    EVEN: constexpr, FAST: constexpr, PRECISION: constexpr, PDL: constexpr, EARLY: constexpr,
) -> None:  # fmt: skip
    """out = x dequantize(W)^T + bias for TILES tiles of W and BM rows of x; each warp sums its own blocks."""
    dtype = x.dtype.element_ty
    halves: constexpr = GROUP < 64
    tile = tl.program_id(0) * TILES
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    slices = tl.arange(0, SLICES)
    # The words and pairs were complete before the kernel before this one was launched: they are read before the wait.
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    else:
        wait_for_previous(PDL)
    second = tl.minimum(tile + 1, tiles - 1)
    # In each of these, a warp has the indices of one slice: what is loaded is then where it is needed.
    place = tl.arange(0, 256)[None, :]
    lane = tl.arange(0, SLICES * 32)
    of_x = tl.arange(0, SLICES * 8)
    inner = tl.arange(0, 32)[None, :]
    row = tl.program_id(1) * BM + of_x % 8
    top = tl.minimum(row, m - 1).to(tl.int64) * x_row
    x_base = x + top[:, None] + inner
    below = (tl.minimum(row + 8, m - 1).to(tl.int64) * x_row - top)[:, None]
    acc0 = tl.zeros((SLICES, 16, BM), tl.float32)
    acc1 = tl.zeros((SLICES, 16, BM), tl.float32)
    for step in tl.range(0, tl.cdiv(blocks, SLICES * UNROLL)):
        raws = ()
        for turn in tl.static_range(0, UNROLL):
            block = (step * UNROLL + turn) * SLICES + slices
            known = block < blocks
            if EVEN:
                safe = block
            else:
                safe = tl.minimum(block, blocks - 1)
            at = words + (safe.to(tl.int64) * tiles * 256)[:, None] + place
            raw0 = _words(at + tile * 256, known, EVEN, SLICES)
            if TILES == 2:
                raw1 = _words(at + second * 256, known, EVEN, SLICES)
            else:
                raw1 = raw0
            lane_block = tl.minimum((step * UNROLL + turn) * SLICES + lane // 32, blocks - 1)
            group = lane_block * 64 // GROUP
            pair_at = pairs + group * (tiles * 8) + lane % 32 // 4
            later_at = pairs + tl.minimum(group + 1, groups - 1) * (tiles * 8) + lane % 32 // 4
            pair0 = tl.load(pair_at + tile * 8)
            pair1 = pair0
            if TILES == 2:
                pair1 = tl.load(pair_at + second * 8)
            later0 = pair0
            later1 = pair1
            if halves:
                later0 = tl.load(later_at + tile * 8)
                later1 = later0
                if TILES == 2:
                    later1 = tl.load(later_at + second * 8)
            raws = raws + ((raw0, raw1, pair0, pair1, later0, later1),)  # type: ignore[assignment]  # noqa: RUF005  (what Triton has)
        if EARLY:
            tl.extra.cuda.gdc_wait()
        for turn in tl.static_range(0, UNROLL):
            start = ((step * UNROLL + turn) * SLICES + of_x // 8) * 64
            x_at = x_base + start[:, None]
            left = k - start[:, None] - inner
            x0, x1 = _x_part(x_at, below, left > 0, EVEN, SLICES, BM)
            x2, x3 = _x_part(x_at + 32, below, left > 32, EVEN, SLICES, BM)
            raw0, raw1, pair0, pair1, later0, later1 = raws[turn]
            acc0 = _add_tile(
                raw0, pair0, later0, x0, x1, x2, x3, acc0, dtype, halves, FAST, PRECISION, SLICES, BM
            )
            if TILES == 2:
                acc1 = _add_tile(
                    raw1, pair1, later1, x0, x1, x2, x3, acc1, dtype, halves, FAST, PRECISION, SLICES, BM
                )
    if TILES == 2:
        both = tl.permute(tl.join(acc0, acc1), (0, 3, 1, 2))
        total = tl.sum(tl.reshape(both, (SLICES, 32, BM)), axis=0)
    else:
        total = tl.sum(acc0, axis=0)
    columns = tile * 16 + tl.arange(0, TILES * 16)
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)[:, None]
    out_at = out + rows[None, :].to(tl.int64) * n + columns[:, None]
    tl.store(out_at, total.to(dtype), mask=(rows < m)[None, :] & (columns < n)[:, None])


@jit
def _int8_kernel(
    x: Arg, integers: Arg, scales: Arg, zeros: Arg, bias: Arg, out: Arg,
    m: Arg, n: Arg, k: Arg, x_row: Arg, w_row: Arg,
    BM: constexpr, BN: constexpr, BK: constexpr, SLICES: constexpr, HAS_BIAS: constexpr, EVEN: constexpr,
    PRECISION: constexpr, PDL: constexpr, PREFETCH: constexpr,
) -> None:  # fmt: skip
    """The same for 8 bits with one scale a row of W: scale (integers x^T - zero sum(x)) + bias."""
    dtype = x.dtype.element_ty
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    slices = tl.arange(0, SLICES)
    inner = tl.arange(0, BK)
    if PREFETCH:
        lines = tl.cdiv(w_row, 128)
        line = tl.arange(0, SLICES * 32)
        begin = integers.to(tl.int64, bitcast=True) + tl.program_id(0).to(tl.int64) * (BN * w_row)
        for start in tl.range(0, BN * lines, SLICES * 32):
            at = begin + tl.minimum(start + line, BN * lines - 1).to(tl.int64) * 128
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
            )
    wait_for_previous(PDL)

    known_rows = rows < m
    safe = tl.minimum(columns, n - 1)
    places = (slices * BK)[:, None, None] + inner[None, None, :]
    w_at = integers + safe[None, :, None].to(tl.int64) * w_row + places
    x_at = x + tl.minimum(rows, m - 1)[None, :, None].to(tl.int64) * x_row + places
    acc = tl.zeros((SLICES, BN, BM), tl.float32)
    sums = tl.zeros((SLICES, BM), tl.float32)
    for step in tl.range(0, tl.cdiv(k, SLICES * BK)):
        left = k - step * (SLICES * BK) - places
        if EVEN:
            w_tile = tl.load(w_at)
            x_tile = tl.load(x_at)
        else:
            w_tile = tl.load(w_at, mask=left > 0, other=0)
            x_tile = tl.load(x_at, mask=left > 0, other=0.0)
        sums += tl.sum(x_tile.to(tl.float32), axis=2)
        across = tl.permute(x_tile, (0, 2, 1))
        if PRECISION == "wide":
            acc = tl.dot(w_tile.to(tl.float32), across.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(w_tile.to(dtype), across, acc, input_precision=PRECISION)
        w_at += SLICES * BK
        x_at += SLICES * BK
    scale = tl.load(scales + safe).to(tl.float32)
    zero = tl.load(zeros + safe).to(tl.float32)
    total = (tl.sum(acc, axis=0) - zero[:, None] * tl.sum(sums, axis=0)[None, :]) * scale[:, None]
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)[:, None]
    out_at = out + rows[None, :].to(tl.int64) * n + columns[:, None]
    tl.store(out_at, total.to(dtype), mask=known_rows[None, :] & (columns < n)[:, None])


@jit
def _dequantize_kernel(
    packed: Arg, scales: Arg, zeros: Arg, out: Arg, k: Arg, row_bytes: Arg, groups: Arg, group: Arg,
    BITS: constexpr, BYTES: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """A row of W, or a part of it, as numbers of the dtype of ``scales``."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    wait_for_previous(PDL)
    raw = tl.load(packed + row * row_bytes + at, mask=at < row_bytes, other=0)
    column = at * (8 // BITS)
    of = tl.minimum(column // group, groups - 1)
    scale = tl.load(scales + row * groups + of).to(tl.float32)
    zero = tl.load(zeros + row * groups + of).to(tl.float32)
    if BITS == 8:
        value = scale * (raw.to(tl.int8, bitcast=True).to(tl.float32) - zero)
        tl.store(out + row * k + column, value.to(out.dtype.element_ty), mask=column < k)
    else:
        low = scale * ((raw & 15).to(tl.float32) - zero)
        high = scale * ((raw >> 4).to(tl.float32) - zero)
        both = tl.interleave(low, high)
        place = tl.program_id(1) * (2 * BYTES) + tl.arange(0, 2 * BYTES)
        tl.store(out + row * k + place, both.to(out.dtype.element_ty), mask=place < k)


INT4 = Kernel(_int4_kernel, pointers=5, plain=("m",))
INT8 = Kernel(_int8_kernel, pointers=6, plain=("m",))
DEQUANTIZE = Kernel(_dequantize_kernel, pointers=4)
