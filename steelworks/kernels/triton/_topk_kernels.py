"""Triton kernels of top_k: maxima of groups of 32, and the choice that goes down from them.

An element among the first k of a row lies in one of the k groups with the largest maxima (of equal maxima, those
first in the row): each of k other groups would else hold an element that comes before it. So the row is read once,
for the maxima; then, of the maxima, those from the k-th on are found, and only the elements of their groups are
looked at again. With a third level, the maxima themselves are grouped in the same way.

Elements are compared by integer keys: in the order of the values, NaN above all (below all else for the smallest),
-0 equal to 0.
"""

from __future__ import annotations

from typing import Final

from ._launch import Arg, Kernel, constexpr, jit, tl, wait_for_previous

#: Elements of a group.
FAN: Final = 32

_LOWEST: Final = constexpr(-(2**31))
_NAN: Final = constexpr(0x7FC00000)


@jit
def _keys(v: Arg, LARGEST: constexpr, SHIFT: constexpr) -> Arg:
    """Order as int32: the bits of a float32, negative numbers turned around. SHIFT: low bits that the dtype lacks."""
    v = v.to(tl.float32)
    bits = v.to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    bits = tl.where(v == 0.0, 0, bits)
    bits = tl.where(v != v, _NAN, bits)
    if not LARGEST:
        bits = ~bits
    return bits >> SHIFT


@jit
def _larger(a: Arg, b: Arg) -> Arg:
    """The larger one, NaN if either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@jit
def _maxima_kernel(
    x_ptr: Arg, scratch_ptr: Arg, length: Arg, stride: Arg, groups: Arg, source: Arg, target: Arg,
    LARGEST: constexpr, SHIFT: constexpr, ARE_KEYS: constexpr, GROUPS: constexpr, WIDTH: constexpr,
    SLOW_REDUCE: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """The largest key of each group of WIDTH elements; the lowest of all keys for groups beyond the row's end.

    ``source`` and ``target`` are where the rows begin in x and in the scratch tensor. SLOW_REDUCE: for the
    interpreter, which calls a combining function of ours once for each element.
    """
    row = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    at = group[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    from_ptr = x_ptr + source + row * stride
    wait_for_previous(PDL)
    if ARE_KEYS:
        best = tl.max(tl.load(from_ptr + at, at < length, other=_LOWEST), axis=1)
    else:
        # The maximum of the values first, then its key: a key costs eight instructions, a maximum one.
        if LARGEST:
            v = tl.load(from_ptr + at, at < length, other=-float("inf")).to(tl.float32)
            if SLOW_REDUCE:
                v = tl.where(tl.max((v != v).to(tl.int32), axis=1) > 0, float("nan"), tl.max(v, axis=1))
            else:
                v = tl.reduce(v, 1, _larger)
        else:
            # A minimum passes over NaN, which is the last choice here: so are places beyond the row's end.
            v = tl.min(tl.load(from_ptr + at, at < length, other=float("nan")).to(tl.float32), axis=1)
        best = tl.where(group * WIDTH < length, _keys(v, LARGEST, SHIFT), _LOWEST)
    tl.store(scratch_ptr + target + row * groups + group, best, group < groups)


@jit
def _narrow(keys: Arg, k: Arg, low: Arg, high: Arg, count: Arg, SLOTS: constexpr) -> Arg:
    """A key that k to SLOTS of ``keys`` reach, and how many do; or the k-th largest where too many are equal.

    At least k reach ``low``, ``count`` of them if that is at most SLOTS; fewer than k reach ``high``. Each step
    counts at four keys between the two: the sums travel in the four quarters of one int64.
    """
    while (count > SLOTS) & (low + 1 < high):
        step = tl.maximum((high.to(tl.int64) - low) // 5, 1).to(tl.int32)
        a = low + step
        b = tl.minimum(a + step, high - 1)
        c = tl.minimum(b + step, high - 1)
        d = tl.minimum(c + step, high - 1)
        reach = (keys >= a).to(tl.int64) + ((keys >= b).to(tl.int64) << 16)
        reach += ((keys >= c).to(tl.int64) << 32) + ((keys >= d).to(tl.int64) << 48)
        reach = tl.sum(reach, axis=0)
        reach_a = (reach & 0xFFFF).to(tl.int32)
        reach_b = ((reach >> 16) & 0xFFFF).to(tl.int32)
        reach_c = ((reach >> 32) & 0xFFFF).to(tl.int32)
        reach_d = ((reach >> 48) & 0xFFFF).to(tl.int32)
        if reach_d >= k:
            low = d
            count = reach_d
        elif reach_c >= k:
            low = c
            high = d
            count = reach_c
        elif reach_b >= k:
            low = b
            high = c
            count = reach_b
        elif reach_a >= k:
            low = a
            high = b
            count = reach_a
        else:
            high = a
            count = tl.maximum(count, SLOTS + 1)
    return low, count


@jit
def _choose(keys: Arg, k: Arg, low: Arg, count: Arg, SLOTS: constexpr) -> Arg:
    """Which keys are chosen, each one's place among them, and how many they are: at most SLOTS, at least k."""
    need = count
    chosen = count
    if count > SLOTS:  # many are equal to the k-th: the first of them are taken
        need = k - tl.sum((keys > low).to(tl.int32), axis=0)
        chosen = k
    above = (keys > low).to(tl.int32)
    equal = (keys == low).to(tl.int32)
    running = tl.cumsum((above << 16) + equal, axis=0)
    equal_so_far = running & 0xFFFF
    place = (running >> 16) + tl.minimum(equal_so_far, need) - 1
    mask = (above > 0) | ((equal > 0) & (equal_so_far <= need))
    return mask, place, chosen


@jit
def _below(found: Arg, chosen: Arg, length: Arg, SLOTS: constexpr, WIDTH: constexpr) -> Arg:
    """Where the elements of the chosen groups are, and whether there are such."""
    place = tl.arange(0, SLOTS * WIDTH)
    slot = place // WIDTH
    group = tl.load(found + slot, slot < chosen, other=0)
    # Neighbours in a group are neighbours in memory: the compiler can't see that through the load.
    at = tl.max_contiguous(tl.multiple_of(group * WIDTH + place % WIDTH, 8), 8)
    return at, (slot < chosen) & (at < length)


@jit
def _select_kernel(
    x_ptr: Arg, scratch_ptr: Arg, values_ptr: Arg, indices_ptr: Arg,
    length: Arg, stride: Arg, firsts: Arg, seconds: Arg, first_at: Arg, second_at: Arg, k: Arg,
    LARGEST: constexpr, SHIFT: constexpr, SORTED: constexpr, LEVELS: constexpr, TOP: constexpr, SLOTS: constexpr,
    WIDTH: constexpr, PART: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """The k first of a row: LEVELS times from maxima down to the elements of their groups.

    The scratch tensor begins with (rows, 2, SLOTS) of what a program's threads hand to each other: places, and values.
    The maxima begin at ``first_at`` and, of groups of maxima, at ``second_at``.
    """
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * stride
    first_ptr = scratch_ptr + first_at + row * firsts
    second_ptr = scratch_ptr + second_at + row * seconds
    found_ptr = scratch_ptr + row * (2 * SLOTS)
    at = tl.arange(0, TOP)
    v = tl.zeros([TOP], tl.float32)
    wait_for_previous(PDL)
    if LEVELS == 0:
        known = at < length
        v = tl.load(x_ptr + at, known, other=0.0).to(tl.float32)
        keys = tl.where(known, _keys(v, LARGEST, SHIFT), _LOWEST)
        there = length
    elif LEVELS == 1:
        keys = tl.load(first_ptr + at, at < firsts, other=_LOWEST)
        there = firsts
    else:
        keys = tl.load(second_ptr + at, at < seconds, other=_LOWEST)
        there = seconds
    # Of SLOTS sets of keys, those that are not empty each have a key that reaches the least of their maxima.
    SET: constexpr = TOP // SLOTS
    tops = tl.max(tl.reshape(keys, [SLOTS, SET]), axis=1)
    full = tl.arange(0, SLOTS) * SET < there
    low = tl.min(tl.where(full, tops, 2147483647), axis=0)
    high = tl.max(tops, axis=0) + 1  # of all levels: no element is larger than the largest maximum
    if tl.cdiv(there, SET) < k:
        low = low * 0 + _LOWEST
    low, count = _narrow(keys, k, low, high, low * 0 + TOP, SLOTS)
    if TOP <= SLOTS:
        count = tl.sum((keys >= low).to(tl.int32), axis=0)
    mask, place, chosen = _choose(keys, k, low, count, SLOTS)
    if LEVELS == 2:
        tl.store(found_ptr + place, at, mask)
        tl.debug_barrier()
        at, known = _below(found_ptr, chosen, firsts, SLOTS, WIDTH)
        keys = tl.load(first_ptr + at, known, other=_LOWEST)
        count = tl.sum((keys >= low).to(tl.int32), axis=0)
        low, count = _narrow(keys, k, low, high, count, SLOTS)
        mask, place, chosen = _choose(keys, k, low, count, SLOTS)
        tl.debug_barrier()
    if LEVELS >= 1:
        tl.store(found_ptr + place, at, mask)
        tl.debug_barrier()
        at, known = _below(found_ptr, chosen, length, SLOTS, WIDTH)
        v = tl.load(x_ptr + at, known, other=0.0).to(tl.float32)
        keys = tl.where(known, _keys(v, LARGEST, SHIFT), _LOWEST)
        count = tl.sum((keys >= low).to(tl.int32), axis=0)
        low, count = _narrow(keys, k, low, high, count, SLOTS)
        mask, place, chosen = _choose(keys, k, low, count, SLOTS)
        tl.debug_barrier()
    tl.store(found_ptr + place, at, mask)
    tl.store(found_ptr + SLOTS + place, v.to(tl.int32, bitcast=True), mask)
    tl.debug_barrier()
    slot = tl.arange(0, SLOTS)
    index = tl.load(found_ptr + slot, slot < chosen, other=0)
    value = tl.load(found_ptr + SLOTS + slot, slot < chosen, other=0).to(tl.float32, bitcast=True)
    known = (slot < chosen) & (index < length)
    mine = tl.where(known, _keys(value, LARGEST, SHIFT), _LOWEST)
    rank = tl.zeros([SLOTS], tl.int32)
    for begin in tl.static_range(0, SLOTS, PART):
        other = begin + tl.arange(0, PART)
        theirs = tl.load(found_ptr + SLOTS + other, other < chosen, other=0).to(tl.float32, bitcast=True)
        theirs = tl.where(other < chosen, _keys(theirs, LARGEST, SHIFT), _LOWEST)[None, :]
        before = (theirs > mine[:, None]) | ((theirs == mine[:, None]) & (other[None, :] < slot[:, None]))
        rank += tl.sum(before.to(tl.int32), axis=1)
    mask = known & (rank < k)
    if SORTED:
        target = row * k + rank
    else:  # the k that are best, in the order of their indices
        target = row * k + tl.cumsum(mask.to(tl.int32), axis=0) - 1
    tl.store(values_ptr + target, value.to(values_ptr.dtype.element_ty), mask)
    tl.store(indices_ptr + target, index.to(tl.int64), mask)


MAXIMA = Kernel(_maxima_kernel, pointers=2)
SELECT = Kernel(_select_kernel, pointers=4, plain=("k",))
