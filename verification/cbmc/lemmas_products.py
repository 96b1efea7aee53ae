"""Lemmas about gemm, attention, lora, quantized and conv2d."""

from __future__ import annotations

import z3  # type: ignore[import-untyped]

from .lemma import EXTENT, INT, Proof, lemma

_HOST = "steelworks/kernels/metal"


@lemma(
    "steel", "steel_element is -1 exactly outside; inside it is row * stride + column, below rows * stride"
)
def _steel_element(p: Proof) -> None:
    rows, columns = p.size("rows", 0, INT), p.size("columns", 0, INT)
    stride = p.size("stride", 0, INT)
    row, column = p.size("row", 0, INT), p.size("column", 0, INT)
    p.given(columns <= stride, f"{_HOST}/_views.py as_rows: rows do not overlap")
    at = p.call("steel_element", row, column, rows, columns, stride)
    inside = z3.And(row < rows, column < columns)
    p.within(row, column, rows, stride)
    p.product(row, stride, INT, INT)
    p.goal("-1 exactly outside", (at == -1) == z3.Not(inside))
    p.goal("the offset", z3.Implies(inside, at == row * stride + column))
    p.goal("below rows * stride", z3.Implies(inside, z3.And(at >= 0, at < rows * stride)))
    p.goal("the place", z3.Implies(inside, p.call("steel_place", row, column, stride) == at))


@lemma("steel", "steel_element_strided is -1 exactly outside, and the offset inside, for any two strides")
def _steel_element_strided(p: Proof) -> None:
    rows, columns = p.size("rows", 0, INT), p.size("columns", 0, INT)
    row, column = p.size("row", 0, INT), p.size("column", 0, INT)
    down, across = p.size("down", 0, INT), p.size("across", 0, INT)
    at = p.call("steel_element_strided", row, column, rows, columns, down, across)
    inside = z3.And(row < rows, column < columns)
    p.product(row, down, INT, INT)
    p.product(column, across, INT, INT)
    p.goal("-1 exactly outside", (at == -1) == z3.Not(inside))
    p.goal("the offset", z3.Implies(inside, at == row * down + column * across))
    place = p.call("steel_place_strided", row, column, down, across)
    p.goal("the place", z3.Implies(inside, place == at))


@lemma("steel", "steel_line_element is below the tensor's end, and different elements have different places")
def _steel_line_element(p: Proof) -> None:
    outer, length, inner = p.size("outer", 1, INT), p.size("length"), p.size("inner")
    stride = p.size("stride", 1, INT)
    p.given(stride >= length * inner, f"{_HOST}/_lines.py as_lines: entries do not overlap")
    places = []
    for name in ("", "_2"):
        entry, within = p.below(f"entry{name}", outer), p.below(f"within{name}", inner)
        at = p.below(f"at{name}", length)
        line = entry * inner + within
        p.given(line <= INT, f"{_HOST}/_lines.py as_lines: check_size(lines)")
        p.divides(line, inner, entry, within)
        p.within(at, within, length, inner)
        p.within(entry, at * inner + within, outer, stride)
        p.product(entry, stride, INT, INT)
        p.product(at, inner, EXTENT, EXTENT)
        got = p.call("steel_line_element", line, at, stride, inner)
        p.goal(f"the place{name}", got == entry * stride + at * inner + within)
        p.goal(f"inside{name}", z3.And(got >= 0, got < outer * stride))
        places.append((entry, at, within, got))
    (entry, at, within, one), (entry_2, at_2, within_2, two) = places
    p.unique(entry, at * inner + within, entry_2, at_2 * inner + within_2, stride)
    p.unique(at, within, at_2, within_2, inner)
    same = z3.And(entry == entry_2, at == at_2, within == within_2)
    p.goal("different elements, different places", z3.Implies(one == two, same))


# --- gemm -------------------------------------------------------------------------------------------------------------


@lemma(
    "gemm", "each tile is given by exactly one threadgroup: the map has an inverse, and both stay in range"
)
def _gemm_tiles(p: Proof) -> None:
    tiles_m, tiles_n, band = p.size("tiles_m"), p.size("tiles_n"), p.size("band", 1, 8)
    bands = z3.Int("bands")
    rest = z3.Int("rest")
    p.given(z3.And(bands >= 0, rest >= 0, rest < band), "names for the parts of a tile row")
    row, column = bands * band + rest, p.below("column", tiles_n)
    p.given(row < tiles_m, "a tile that there is")
    p.given(tiles_m * tiles_n <= INT - EXTENT, f"{_HOST}/gemm.py _run: groups are a grid's extent")
    p.given(
        band * tiles_n <= INT, f"{_HOST}/gemm.py _tiles: tiles have 8 columns or more; tuning.GEMM_BAND is 8"
    )
    rows = z3.If(tiles_m - bands * band < band, tiles_m - bands * band, band)
    group = bands * band * tiles_n + column * rows + rest
    p.within(column, rest, tiles_n, rows)  # place in the band
    p.product(rows, tiles_n, band, tiles_n)
    p.product(bands * band + rows, tiles_n, tiles_m, tiles_n)
    p.divides(group, band * tiles_n, bands, column * rows + rest)
    p.divides(column * rows + rest, rows, column, rest)
    p.goal("the threadgroup is in the grid", z3.And(group >= 0, group < tiles_m * tiles_n))
    p.goal("its tile row", p.call("gemm_tile_row", group, tiles_m, tiles_n, band) == row)
    p.goal("its tile column", p.call("gemm_tile_column", group, tiles_m, tiles_n, band) == column)


@lemma("gemm", "gemm_batch takes a batch number apart into the three indices that it was made of")
def _gemm_batch(p: Proof) -> None:
    size_1, size_2 = p.size("size_1"), p.size("size_2")
    outer, middle, inner = p.size("outer", 0, INT), p.below("middle", size_1), p.below("inner", size_2)
    strides = [p.size(f"stride_{i}", 0, INT) for i in range(3)]
    batch = (outer * size_1 + middle) * size_2 + inner
    p.given(batch <= INT, f"{_HOST}/gemm.py _launch_product: batches are a grid's extent")
    p.divides(batch, size_2, outer * size_1 + middle, inner)
    p.divides(outer * size_1 + middle, size_1, outer, middle)
    p.product(outer, strides[0], INT, INT)
    p.product(middle, strides[1], EXTENT, INT)
    p.product(inner, strides[2], EXTENT, INT)
    p.within(outer, middle, outer + 1, size_1)
    got = p.call("gemm_batch", batch, size_1, size_2, *strides)
    p.goal("the offset", got == outer * strides[0] + middle * strides[1] + inner * strides[2])


@lemma(
    "gemm",
    "the splits cut the terms: each begins where the one before ends, the first at 0, the last ends at k",
)
def _gemm_splits(p: Proof) -> None:
    k, step = p.size("k", 0), p.size("step", 1, EXTENT)
    splits = z3.If(k == 0, 1, (k + step - 1) / step)  # gemm.py _run: splits = max(1, ceil(k / split_k))
    split = p.size("split", 0, EXTENT)
    p.given(split < splits, f"{_HOST}/gemm.py _launch_product: splits are a grid's extent")
    p.divided(k + step - 1, step)
    p.product(split + 1, step, splits, step)
    p.product(splits - split - 1, step, EXTENT, EXTENT)
    begin = p.call("gemm_split_begin", split, step)
    end = p.call("gemm_split_end", split, step, k)
    p.goal("within the terms", z3.And(begin >= 0, begin <= end, end <= k))
    p.goal("not empty", z3.Implies(k > 0, begin < end))
    p.goal("the first begins at 0", z3.Implies(split == 0, begin == 0))
    p.goal("each begins where the last ends", z3.Implies(split + 1 < splits, end == (split + 1) * step))
    p.goal("the last ends at k", z3.Implies(split + 1 == splits, end == k))


@lemma(
    "gemm",
    "steps cut the terms: the first takes 1 to tile terms from 0 on, each later one a whole tile, to the end",
)
def _gemm_steps(p: Proof) -> None:
    terms, tile = p.size("terms", 0), p.size("tile", 2, 256)
    step = p.size("step", 1, EXTENT)
    p.divided(terms + tile - 1, tile)
    p.divided(terms - 1, tile)
    steps = p.call("gemm_steps", terms, tile)
    first = p.call("gemm_first_step", terms, tile)
    p.given(step < steps, f"{_HOST}/gemm/gemm.h run: only if there is one more step")
    p.product(step, tile, EXTENT, tile)
    p.product(steps - 1 - step, tile, EXTENT, tile)
    begin = p.call("gemm_step_begin", step, terms, tile)
    p.goal("the first step", z3.And(first >= 1, first <= tile))
    p.goal("the next begins there", z3.Implies(step == 1, begin == first))
    p.goal("each later one has a tile", z3.And(begin >= 0, begin + tile <= terms))
    p.goal("the last ends with the terms", z3.Implies(step == steps - 1, begin + tile == terms))


@lemma("gemm", "of no terms there is no step, and nothing is read")
def _gemm_no_terms(p: Proof) -> None:
    tile = p.size("tile", 2, 256)
    p.goal("no step", p.call("gemm_steps", 0, tile) == 0)
    p.goal("no term", p.call("gemm_first_step", 0, tile) == 0)


@lemma("gemm", "an operand's element is inside what the operand stores, by rows, and places differ")
def _gemm_operand(p: Proof) -> None:
    _operand(p, 0)


@lemma("gemm", "an operand's element is inside what the operand stores, transposed, and places differ")
def _gemm_operand_transposed(p: Proof) -> None:
    _operand(p, 1)


def _operand(p: Proof, transposed: int) -> None:
    rows, terms, stride = p.size("rows"), p.size("terms"), p.size("stride", 1, INT)
    stored, length = (terms, rows) if transposed else (rows, terms)
    p.given(stride >= length, f"{_HOST}/_operands.py operand: stored rows do not overlap")
    places = []
    for name in ("", "_2"):
        row, term = p.below(f"row{name}", rows), p.below(f"term{name}", terms)
        outer, inner = (term, row) if transposed else (row, term)
        p.product(outer, stride, EXTENT, INT)
        p.within(outer, inner, stored, stride)
        got = p.call("gemm_operand", row, term, stride, transposed)
        p.goal(f"inside{name}", z3.And(got == outer * stride + inner, got >= 0, got < stored * stride))
        places.append((outer, inner, got))
    (outer, inner, one), (outer_2, inner_2, two) = places
    p.unique(outer, inner, outer_2, inner_2, stride)
    p.goal("places differ", z3.Implies(one == two, z3.And(outer == outer_2, inner == inner_2)))


@lemma(
    "gemm",
    "results: matrix * m * n + place is inside the output, and different results have different places",
)
def _gemm_result(p: Proof) -> None:
    m, n, matrices = p.size("m"), p.size("n"), p.size("matrices", 1, INT)
    p.given(matrices * m * n < 2**62, f"{_HOST}/gemm.py _problem: the output is allocated")
    for swapped in (False, True):
        places = []
        for name in ("", "_2"):
            tag = f"{'s' if swapped else ''}{name}"
            matrix, row, column = (
                p.below(f"matrix{tag}", matrices),
                p.below(f"row{tag}", m),
                p.below(f"column{tag}", n),
            )
            # gemm.py _params: (1, m) if swapped else (n, 1)
            down, across = (1, m) if swapped else (n, 1)
            got = p.call("gemm_matrix", matrix, m, n) + p.call("gemm_place", row, column, down, across)
            major, minor, most, width = (column, row, n, m) if swapped else (row, column, m, n)
            p.within(major, minor, most, width)
            p.within(matrix, major * width + minor, matrices, m * n)
            p.product(matrix, m, matrices, m)
            p.product(matrix * m, n, matrices * m, n)
            p.product(major, width, EXTENT, EXTENT)
            p.product(matrices, m, INT, EXTENT)
            p.goal(f"inside {tag}", z3.And(got >= 0, got < matrices * m * n))
            places.append((matrix, major, minor, got))
        (matrix, major, minor, one), (matrix_2, major_2, minor_2, two) = places
        p.unique(matrix, major * width + minor, matrix_2, major_2 * width + minor_2, m * n)
        p.unique(major, minor, major_2, minor_2, width)
        same = z3.And(matrix == matrix_2, major == major_2, minor == minor_2)
        p.goal(f"places differ {swapped}", z3.Implies(one == two, same))


@lemma(
    "gemm", "partial sums: place at < m * n of a matrix is inside, and different ones have different places"
)
def _gemm_partial(p: Proof) -> None:
    m, n, matrices = p.size("m"), p.size("n"), p.size("matrices", 1, INT)
    p.given(matrices * m * n < 2**62, f"{_HOST}/gemm.py _run: the partial sums are allocated")
    found = []
    for name in ("", "_2"):
        matrix, at = p.below(f"matrix{name}", matrices), p.below(f"at{name}", m * n)
        p.within(matrix, at, matrices, m * n)
        p.product(matrix, m, matrices, m)
        p.product(matrix * m, n, matrices * m, n)
        p.product(matrices, m, INT, EXTENT)
        got = p.call("gemm_partial", matrix, type(p.reader._given(at))(at, "long"), m, n)
        p.goal(f"inside{name}", z3.And(got >= 0, got < matrices * m * n))
        found.append((matrix, at, got))
    one, two = found
    p.unique(one[0], one[1], two[0], two[1], m * n)
    p.goal("places differ", z3.Implies(one[2] == two[2], z3.And(one[0] == two[0], one[1] == two[1])))


# --- attention --------------------------------------------------------------------------------------------------------


@lemma("attention", "an element of a head is -1 exactly outside, and the offset inside; 64 bits are enough")
def _attention_element(p: Proof) -> None:
    batch, head = p.size("batch", 0, INT), p.size("head", 0, INT)
    strides = [p.size(f"stride_{i}", 0, INT) for i in range(3)]
    rows, columns = p.size("rows", 0, INT), p.size("columns", 0, INT)
    row, column = p.size("row", 0, INT), p.size("column", 0, INT)
    p.product(batch, strides[0], INT, INT)
    p.product(head, strides[1], INT, INT)
    p.product(row, strides[2], INT, INT)
    span = batch * strides[0] + head * strides[1] + row * strides[2] + column
    p.given(span < 2**62, f"{_HOST}/attention.py: the tensor is in memory")
    begin = p.reader._given(p.call("attention_head", batch, head, strides[0], strides[1]))
    long_begin = type(begin)(begin.term, "long")
    got = p.call("attention_element", long_begin, row, column, rows, columns, strides[2])
    inside = z3.And(row < rows, column < columns)
    p.goal("-1 exactly outside", (got == -1) == z3.Not(inside))
    p.goal("the offset", z3.Implies(inside, got == span))
    p.goal("from a row on", p.call("attention_row", row, strides[2]) == row * strides[2])
    key = p.call("attention_key_element", long_begin, row, column, columns, strides[2])
    p.goal("key: -1 exactly outside", (key == -1) == z3.Not(column < columns))
    p.goal("key: the offset", z3.Implies(column < columns, key == span))
    step = p.size("mask_key", 0, INT)
    p.product(column, step, INT, INT)
    p.given(column * step + span < 2**62, f"{_HOST}/attention.py _check_mask: the mask is in memory")
    mask = p.call("attention_mask", long_begin, row, column, strides[2], step)
    p.goal("the mask", mask == batch * strides[0] + head * strides[1] + row * strides[2] + column * step)


@lemma(
    "attention",
    "no query sees a key that there is not, the last sees all, and a block ends with its last query's keys",
)
def _attention_limits(p: Proof) -> None:
    q_len, k_len, count = p.size("q_len"), p.size("k_len", 0), p.size("count", 1, 64)
    row, first = p.size("row", 0, EXTENT + 64), p.below("first", q_len)
    causal = p.size("causal", 0, 1)
    limit = p.call("attention_key_limit", row, q_len, k_len, causal)
    p.goal("no key that there is not", limit <= k_len)
    p.goal("a row that there is not sees none", z3.Implies(row >= q_len, limit <= 0))
    p.goal("the last query sees all", z3.Implies(row == q_len - 1, limit == k_len))
    p.goal("without causal, all", z3.Implies(z3.And(row < q_len, causal == 0), limit == k_len))
    p.goal(
        "causal: one more each row",
        z3.Implies(z3.And(row < q_len, causal == 1), limit == row + 1 + k_len - q_len),
    )
    end = p.call("attention_block_limit", first, count, q_len, k_len, causal)
    in_block = z3.And(row >= first, row < first + count)
    p.goal("a block reaches its rows' keys", z3.Implies(z3.And(in_block, row < q_len), limit <= end))
    p.goal("a block ends within the keys", end <= k_len)


@lemma(
    "attention",
    "the output's elements are inside, and different (batch, head, row, column) have different places",
)
def _attention_output(p: Proof) -> None:
    batches, heads = p.size("batches", 1, INT), p.size("heads", 1, INT)
    q_len, dv = p.size("q_len"), p.size("dv", 1, 256)
    p.given(batches * heads * q_len <= INT, f"{_HOST}/attention.py: params.rows is checked for int32")
    found = []
    for name in ("", "_2"):
        batch, head = p.below(f"batch{name}", batches), p.below(f"head{name}", heads)
        row, column = p.below(f"row{name}", q_len), p.below(f"column{name}", dv)
        got = p.call("attention_output", batch, head, row, column, heads, q_len, dv)
        of_head = batch * heads + head
        p.within(batch, head, batches, heads)
        p.within(of_head, row, batches * heads, q_len)
        p.within(of_head * q_len + row, column, batches * heads * q_len, dv)
        p.product(batches * heads * q_len, dv, INT, 256)
        p.goal(f"inside{name}", z3.And(got >= 0, got < batches * heads * q_len * dv))
        found.append((batch, head, row, column, got))
    one, two = found
    p.unique(one[0] * heads + one[1], one[2], two[0] * heads + two[1], two[2], q_len)
    p.unique(
        (one[0] * heads + one[1]) * q_len + one[2],
        one[3],
        (two[0] * heads + two[1]) * q_len + two[2],
        two[3],
        dv,
    )
    p.unique(one[0], one[1], two[0], two[1], heads)
    p.goal(
        "places differ",
        z3.Implies(one[4] == two[4], z3.And(*(a == b for a, b in zip(one, two, strict=True)))),
    )


@lemma("attention", "combined results are inside the output, each where attention_output has it")
def _attention_combined(p: Proof) -> None:
    batches, heads = p.size("batches", 1, INT), p.size("heads", 1, INT)
    q_len, dv = p.size("q_len"), p.size("dv", 1, 256)
    p.given(batches * heads * q_len <= INT, f"{_HOST}/attention.py: params.rows is checked for int32")
    batch, head = p.below("batch", batches), p.below("head", heads)
    query, column = p.below("query", q_len), p.below("column", dv)
    of_head = batch * heads + head
    row = of_head * q_len + query
    p.within(batch, head, batches, heads)
    p.within(of_head, query, batches * heads, q_len)
    p.within(row, column, batches * heads * q_len, dv)
    p.product(batches * heads * q_len, dv, INT, 256)
    p.product(row, dv, INT, 256)
    got = p.call("attention_combined", type(p.reader._given(row))(row, "long"), column, dv)
    p.goal("inside", z3.And(got >= 0, got < batches * heads * q_len * dv))
    p.goal("the place", got == p.call("attention_output", batch, head, query, column, heads, q_len, dv))


@lemma("attention", "partial results are inside their buffer, and no two of them share a place")
def _attention_partial(p: Proof) -> None:
    splits, rows, dv = p.size("splits", 1, 16), p.size("rows", 1, INT), p.size("dv", 1, 256)
    found = []
    for name in ("", "_2"):
        split, row = p.below(f"split{name}", splits), p.below(f"row{name}", rows)
        column = p.below(f"column{name}", dv + 2)
        long_row = type(p.reader._given(row))(row, "long")
        got = p.call("attention_partial", split, rows, long_row, column, dv)
        p.within(split, row, splits, rows)
        p.within(split * rows + row, column, splits * rows, dv + 2)
        p.product(splits, rows, 16, INT)
        p.product(splits * rows, dv + 2, 16 * INT, 258)
        p.goal(f"inside{name}", z3.And(got >= 0, got < splits * rows * (dv + 2)))
        found.append((split, row, column, got))
    one, two = found
    p.unique(one[0], one[1], two[0], two[1], rows)
    p.unique(one[0] * rows + one[1], one[2], two[0] * rows + two[1], two[2], dv + 2)
    p.goal(
        "places differ",
        z3.Implies(one[3] == two[3], z3.And(*(a == b for a, b in zip(one, two, strict=True)))),
    )


@lemma(
    "attention",
    "vector form: each (query head, query) of a key head is exactly one row, and each row is one of them",
)
def _attention_vector_rows(p: Proof) -> None:
    group, q_len, key_heads = p.size("group", 1, 4096), p.size("q_len", 1, 8), p.size("key_heads", 1, 4096)
    key_head, of_group, query = (
        p.below("key_head", key_heads),
        p.below("of_group", group),
        p.below("query", q_len),
    )
    row = of_group * q_len + query
    rows = p.call("attention_vector_rows", group, q_len)
    p.divides(row, q_len, of_group, query)
    p.within(of_group, query, group, q_len)
    p.within(key_head, of_group, key_heads, group)
    p.product(key_heads, group, 4096, 4096)
    p.product(group, q_len, 4096, 8)
    head = p.call("attention_vector_head", key_head, row, group, q_len)
    p.divides(head, group, key_head, of_group)
    p.goal("a row that there is", z3.And(row >= 0, row < rows))
    p.goal("its query", p.call("attention_vector_query", row, q_len) == query)
    p.goal("its head", head == key_head * group + of_group)
    p.goal("its key head", p.call("attention_key_head", head, group) == key_head)


@lemma("attention", "the splits of the keys cover all keys, each once")
def _attention_splits(p: Proof) -> None:
    k_len, splits = p.size("k_len", 0), p.size("splits", 1, 16)
    each = z3.If(k_len == 0, 1, (k_len + splits - 1) / splits)  # attention.py: max(1, ceil(k_len / splits))
    p.divided(k_len + splits - 1, splits)
    split, key = p.below("split", splits), p.below("key", k_len)
    p.product(split + 1, each, splits, each)
    p.product(splits, each, 16, EXTENT)
    begin, end = (
        p.call("attention_split_begin", split, each),
        p.call("attention_split_begin", split + 1, each),
    )
    p.goal("the first begins at 0", z3.Implies(split == 0, begin == 0))
    p.goal("none ends before it begins", begin < end)
    p.goal("the last ends behind the keys", p.call("attention_split_begin", splits, each) >= k_len)
    own = key / each
    p.divided(key, each)
    p.product(own, each, splits, each)
    mine = z3.And(begin <= key, key < end)
    p.divides(key, each, split, key - split * each)
    p.goal("a key is in its split only", z3.Implies(mine, split == own))
    p.goal("and in that", z3.And(own * each <= key, key < (own + 1) * each))


# --- lora, quantized --------------------------------------------------------------------------------------------------


@lemma(
    "lora", "elements of x, w, A, B and y: -1 exactly outside, the offset inside, stacks of adapters apart"
)
def _lora_elements(p: Proof) -> None:
    rows, columns, ld = p.size("rows"), p.size("columns"), p.size("ld", 0, INT)
    row, column = p.size("row", 0, INT), p.size("column", 0, INT)
    p.given(ld >= columns, f"{_HOST}/lora.py _rows: rows do not overlap")
    p.product(row, ld, INT, INT)
    p.within(row, column, rows, ld)
    got = p.call("lora_element", row, column, rows, columns, ld)
    inside = z3.And(row < rows, column < columns)
    p.goal("-1 exactly outside", (got == -1) == z3.Not(inside))
    p.goal("inside", z3.Implies(inside, z3.And(got == row * ld + column, got < rows * ld)))
    narrow = p.call("lora_row_element", row, column, rows, ld)
    p.goal("row: -1 exactly outside", (narrow == -1) == z3.Not(row < rows))
    p.goal("row: inside", z3.Implies(inside, narrow == row * ld + column))
    adapters, r, k, n = p.size("adapters"), p.size("r", 1, 64), p.size("k"), p.size("n")
    adapter, rank, term, out = (
        p.below("adapter", adapters),
        p.below("rank", r),
        p.below("term", k),
        p.below("out", n),
    )
    at_a = p.call("lora_a", adapter, r, k) + p.call("lora_place", rank, term, k)
    at_b = p.call("lora_b", adapter, n, r) + p.call("lora_place", out, rank, r)
    for part, whole in ((r, k), (n, r)):
        major, minor = (rank, term) if part is r else (out, rank)
        p.within(major, minor, part, whole)
        p.within(adapter, major * whole + minor, adapters, part * whole)
        p.product(major, whole, EXTENT, EXTENT)
        p.product(adapter, part, EXTENT, part)
        p.product(adapter * part, whole, EXTENT * 64 if part is r else EXTENT * EXTENT, whole)
        p.product(adapters * part, whole, EXTENT * EXTENT, EXTENT)
    p.given(adapters * n * r < 2**62, f"{_HOST}/lora.py: B is in memory")
    p.given(adapters * r * k < 2**62, f"{_HOST}/lora.py: A is in memory")
    p.goal("A: inside", z3.And(at_a >= 0, at_a < adapters * r * k))
    p.goal("B: inside", z3.And(at_b >= 0, at_b < adapters * n * r))


@lemma("lora", "an adapter is one that there is, or negative")
def _lora_adapter(p: Proof) -> None:
    adapters, given = p.size("adapters", 0, INT), p.size("given", -(2**31), INT)
    got = p.call("lora_adapter", given, adapters)
    p.goal("there is such an adapter", got < z3.If(adapters > 0, adapters, 1))
    p.goal("kept where there is one", z3.Implies(z3.And(given >= 0, given < adapters), got == given))
    p.goal("none otherwise", z3.Implies(z3.Or(given < 0, given >= adapters), got < 0))


@lemma("lora", "vector form: each column of y belongs to exactly one simdgroup")
def _lora_vector_columns(p: Proof) -> None:
    _vector_columns(p, "lora_vector_column")


@lemma("quantized", "vector form: each column of y belongs to exactly one simdgroup")
def _quantized_vector_columns(p: Proof) -> None:
    _vector_columns(p, "quantized_vector_column")


def _vector_columns(p: Proof, function: str) -> None:
    simds, columns = p.size("simds", 1, 32), p.size("columns", 1, 8)
    group, simd, at = p.size("group", 0, EXTENT // 256), p.below("simd", simds), p.below("at", columns)
    column = p.call(function, group, simd, simds, columns) + at
    p.divides(column, columns, group * simds + simd, at)
    p.divides(group * simds + simd, simds, group, simd)
    p.product(group, simds, EXTENT // 256, 32)
    p.product(group * simds + simd, columns, EXTENT // 8 + 32, 8)
    p.goal("the simdgroup", column / columns / simds == group)
    p.goal("of it", column / columns - column / columns / simds * simds == simd)
    p.goal("the column", column - column / columns * columns == at)


@lemma("quantized", "elements of x and y are -1 exactly outside, and the offset inside")
def _quantized_element(p: Proof) -> None:
    rows, columns, ld = p.size("rows"), p.size("columns", 0), p.size("ld", 0, INT)
    row, column = p.size("row", 0, INT), p.size("column", 0, INT)
    p.given(ld >= columns, f"{_HOST}/quantized.py quantized_linear: rows of x do not overlap")
    p.product(row, ld, INT, INT)
    p.within(row, column, rows, ld)
    got = p.call("quantized_element", row, column, rows, columns, ld)
    inside = z3.And(row < rows, column < columns)
    p.goal("-1 exactly outside", (got == -1) == z3.Not(inside))
    p.goal("inside", z3.Implies(inside, z3.And(got == row * ld + column, got < rows * ld)))


@lemma(
    "quantized",
    "a chunk of 8 columns that begins inside has all its bytes inside the packed row, for 8 and 4 bits",
)
def _quantized_bytes(p: Proof) -> None:
    rows, columns, chunk = p.size("rows"), p.size("columns"), p.size("chunk", 0, EXTENT // 8)
    row, column = p.size("row", 0, INT), 8 * chunk
    for bits, width in ((8, 8), (4, 32), (4, 64), (4, 128)):
        # quantized.py _check_weight: row_bytes = groups * width * bits / 8, groups = max(1, ceil(k / width))
        groups = (columns + width - 1) / width
        row_bytes = groups * width * bits / 8
        count = bits  # bytes of 8 columns
        p.product(row, row_bytes, INT, INT)
        p.within(row, column * bits / 8 + count - 1, rows, row_bytes)
        got = p.call("quantized_byte", row, column, rows, columns, row_bytes, bits)
        inside = z3.And(row < rows, column < columns)
        p.goal(f"-1 exactly outside ({bits}, {width})", (got == -1) == z3.Not(inside))
        p.goal(f"the byte ({bits}, {width})", z3.Implies(inside, got == row * row_bytes + column * bits / 8))
        p.goal(f"all bytes inside ({bits}, {width})", z3.Implies(inside, got + count <= rows * row_bytes))


# --- conv2d -----------------------------------------------------------------------------------------------------------


@lemma("conv2d", "a pixel number is taken apart into image, row and column that it was made of")
def _conv2d_pixels(p: Proof) -> None:
    batch, out_h, out_w = p.size("batch"), p.size("out_h"), p.size("out_w")
    image, row, column = p.below("image", batch), p.below("row", out_h), p.below("column", out_w)
    p.given(batch * out_h * out_w <= INT, f"{_HOST}/conv2d.py conv2d: _MOST_PIXELS")
    p.product(out_h, out_w, batch * out_h, out_w)
    p.product(1, out_h * out_w, batch, out_h * out_w)
    p.product(batch, out_h, batch, batch * out_h)
    p.product(1, batch * out_h, out_w, batch * out_h)
    pixel = (image * out_h + row) * out_w + column
    p.within(image, row, batch, out_h)
    p.within(image * out_h + row, column, batch * out_h, out_w)
    p.within(row, column, out_h, out_w)
    p.divides(pixel, out_w, image * out_h + row, column)
    p.divides(image * out_h + row, out_h, image, row)
    p.divides(pixel, out_h * out_w, image, row * out_w + column)
    last = p.size("last", 0, 1)
    p.goal("inside", z3.And(pixel >= 0, pixel < p.call("conv2d_pixels", batch, out_h, out_w, 1)))
    p.goal("of one image", row * out_w + column < p.call("conv2d_pixels", batch, out_h, out_w, 0))
    p.goal("its image", p.call("conv2d_pixel_batch", pixel, out_h, out_w) == image)
    p.goal("its row", p.call("conv2d_pixel_row", pixel, out_h, out_w) == row)
    p.goal("its column", p.call("conv2d_pixel_column", pixel, out_w) == column)
    assert last is not None


@lemma(
    "conv2d",
    "an inner index is taken apart into channel, tap row and tap column that it was made of, in both orders",
)
def _conv2d_inner(p: Proof) -> None:
    in_c, kernel_h, kernel_w = p.size("in_c"), p.size("kernel_h"), p.size("kernel_w")
    channel, row, column = p.below("channel", in_c), p.below("row", kernel_h), p.below("column", kernel_w)
    p.given(
        in_c * kernel_h * kernel_w <= INT, f"{_HOST}/conv2d.py conv2d: the weight's first stride fits int32"
    )
    p.given(in_c * kernel_h <= INT, "follows, as kernel_w >= 1")
    p.given(kernel_h * kernel_w <= INT, "follows, as in_c >= 1")
    # Channel last: ((row * kernel_w + column) * in_c + channel); first: (channel * kernel_h + row) * kernel_w + column.
    tap = row * kernel_w + column
    for last, inner in ((1, tap * in_c + channel), (0, (channel * kernel_h + row) * kernel_w + column)):
        p.within(row, column, kernel_h, kernel_w)
        p.within(tap, channel, kernel_h * kernel_w, in_c)
        p.within(channel, row, in_c, kernel_h)
        p.within(channel * kernel_h + row, column, in_c * kernel_h, kernel_w)
        p.divides(inner, in_c, tap, channel)
        p.divides(tap, kernel_w, row, column)
        p.divides(inner, kernel_h * kernel_w, channel, tap)
        p.divides(inner, kernel_w, channel * kernel_h + row, column)
        p.divides(channel * kernel_h + row, kernel_h, channel, row)
        size = p.call("conv2d_inner", in_c, kernel_h, kernel_w)
        p.goal(f"inside {last}", z3.And(inner >= 0, inner < size))
        p.goal(
            f"its channel {last}",
            p.call("conv2d_inner_channel", inner, in_c, kernel_h, kernel_w, last) == channel,
        )
        p.goal(f"its row {last}", p.call("conv2d_inner_row", inner, in_c, kernel_h, kernel_w, last) == row)
        p.goal(f"its column {last}", p.call("conv2d_inner_column", inner, in_c, kernel_w, last) == column)


@lemma("conv2d", "an input element is -1 exactly in the padding, and the offset inside")
def _conv2d_element(p: Proof) -> None:
    height, width = p.size("height"), p.size("width")
    row, column = p.size("row", -(2**31), INT), p.size("column", -(2**31), INT)
    image, channel = p.size("image", 0, INT), p.size("channel", 0, INT)
    strides = [p.size(f"stride_{i}", 0, INT) for i in range(4)]
    for index, stride in zip((image, channel, row, column), strides, strict=True):
        p.product(index, stride, INT, INT)
    span = image * strides[0] + channel * strides[1] + row * strides[2] + column * strides[3]
    inside = z3.And(row >= 0, row < height, column >= 0, column < width)
    p.given(z3.Implies(inside, span < 2**62), f"{_HOST}/conv2d.py: x is in memory")
    got = p.call("conv2d_element", image, channel, row, column, height, width, *strides)
    p.goal("-1 exactly in the padding", (got == -1) == z3.Not(inside))
    p.goal("the offset", z3.Implies(inside, got == span))


@lemma("conv2d", "the row of no pixel lies in the padding under every tap")
def _conv2d_no_row(p: Proof) -> None:
    taps, dilation, height = p.size("taps"), p.size("dilation"), p.size("height", 1, EXTENT - 1)
    tap = p.below("tap", taps)
    p.given(dilation * (taps - 1) < EXTENT, f"{_HOST}/conv2d.py _padding: the kernel fits into _MOST_EXTENT")
    p.product(tap, dilation, taps - 1, dilation)
    no_row = int(p.reader.header.macros["CONV2D_NO_ROW"].strip("()"), 0)
    p.goal("in the padding", no_row + tap * dilation < 0)
    p.goal("it fits an int", z3.And(no_row + tap * dilation > -(2**31), height > 0))


@lemma("conv2d", "a group's channels, their weights and biases are inside, and no two share a place")
def _conv2d_channels(p: Proof) -> None:
    groups, out_c, inner_size = p.size("groups"), p.size("out_c"), p.size("inner_size")
    p.given(groups * out_c <= INT, f"{_HOST}/conv2d.py conv2d: check_size(channels)")
    p.given(groups * out_c * inner_size < 2**62, f"{_HOST}/conv2d.py: the weight is in memory")
    found = []
    for name in ("", "_2"):
        group, channel = p.below(f"group{name}", groups), p.below(f"channel{name}", out_c)
        inner = p.below(f"inner{name}", inner_size)
        p.within(group, channel, groups, out_c)
        p.within(group * out_c + channel, inner, groups * out_c, inner_size)
        p.product(group, out_c, groups, out_c)
        p.product(group * out_c + channel, inner_size, groups * out_c, inner_size)
        full = p.call("conv2d_full_channel", group, channel, out_c)
        p.goal(f"the channel{name}", z3.And(full >= 0, full < groups * out_c))
        got = p.call("conv2d_weight", group, channel, inner, out_c, inner_size)
        p.goal(f"inside{name}", z3.And(got >= 0, got < groups * out_c * inner_size))
        p.goal(f"of the channel{name}", got == full * inner_size + inner)
        found.append((group, channel, inner, got))
    one, two = found
    p.unique(one[0] * out_c + one[1], one[2], two[0] * out_c + two[1], two[2], inner_size)
    p.unique(one[0], one[1], two[0], two[1], out_c)
    same = z3.And(*(a == b for a, b in zip(one[:3], two[:3], strict=True)))
    p.goal("places differ", z3.Implies(one[3] == two[3], same))


@lemma("conv2d", "a channel of a group is where all channels of the input have it")
def _conv2d_group(p: Proof) -> None:
    groups, in_c, stride = p.size("groups"), p.size("in_c"), p.size("stride", 0, INT)
    group, channel = p.below("group", groups), p.below("channel", in_c)
    p.given(groups * in_c <= INT, f"{_HOST}/conv2d.py conv2d: check_size(channels)")
    p.within(group, channel, groups, in_c)
    p.product(group, in_c, groups, in_c)
    p.product(group * in_c, stride, INT, INT)
    p.product(group * in_c + channel, stride, INT, INT)
    p.product(channel, stride, INT, INT)
    began = p.call("conv2d_group", group, in_c, stride)
    whole = p.call("conv2d_place", 0, group * in_c + channel, 0, 0, 0, stride, 0, 0)
    p.goal("the place", began + p.call("conv2d_place", 0, channel, 0, 0, 0, stride, 0, 0) == whole)


@lemma("conv2d", "each (group, image) is exactly one layer of the grid")
def _conv2d_layers(p: Proof) -> None:
    groups, batch = p.size("groups"), p.size("batch")
    group, image = p.below("group", groups), p.below("image", batch)
    p.given(groups * batch <= INT, f"{_HOST}/conv2d.py conv2d: layers are a grid's extent")
    layer = image * groups + group
    p.within(image, group, batch, groups)
    p.divides(layer, groups, image, group)
    p.goal("inside", z3.And(layer >= 0, layer < groups * batch))
    p.goal("its image", p.call("conv2d_layer_image", layer, groups, 0) == image)
    p.goal("its group", p.call("conv2d_layer_group", layer, groups, 0) == group)
    p.goal("channels last: the group", p.call("conv2d_layer_group", group, groups, 1) == group)
    p.goal("channels last: all images", p.call("conv2d_layer_image", group, groups, 1) == 0)


@lemma("conv2d", "a dense output's elements are inside, and no two share a place, in both memory formats")
def _conv2d_output(p: Proof) -> None:
    n, c, h, w = p.size("n"), p.size("c"), p.size("h"), p.size("w")
    for last in (0, 1):
        # conv2d.py conv2d: out is (n, c, h, w) dense, or (n, h, w, c) dense with channels last.
        sizes = (h, w, c) if last else (c, h, w)
        outer, middle, inner = sizes
        p.given(outer * middle * inner <= INT, f"{_HOST}/conv2d.py: the first stride fits int32")
        p.given(middle * inner <= INT, "follows")
        strides = (h * w * c, 1, w * c, c) if last else (c * h * w, h * w, w, 1)
        found = []
        for name in ("", "_2"):
            tag = f"{last}{name}"
            image, channel = p.below(f"image{tag}", n), p.below(f"channel{tag}", c)
            row, column = p.below(f"row{tag}", h), p.below(f"column{tag}", w)
            order = (row, column, channel) if last else (channel, row, column)
            pair = order[0] * middle + order[1]
            p.within(order[0], order[1], outer, middle)
            p.within(pair, order[2], outer * middle, inner)
            p.within(image, pair * inner + order[2], n, outer * middle * inner)
            for index, stride, most in zip((image, channel, row, column), strides, (INT,) * 4, strict=True):
                p.product(index, stride, EXTENT, most)
            got = p.call("conv2d_place", image, channel, row, column, *strides)
            p.goal(f"inside {tag}", z3.And(got >= 0, got < n * outer * middle * inner))
            found.append((image, pair, order, got))
        one, two = found
        p.unique(
            one[0], one[1] * inner + one[2][2], two[0], two[1] * inner + two[2][2], outer * middle * inner
        )
        p.unique(one[1], one[2][2], two[1], two[2][2], inner)
        p.unique(one[2][0], one[2][1], two[2][0], two[2][1], middle)
        same = z3.And(one[0] == two[0], *(a == b for a, b in zip(one[2], two[2], strict=True)))
        p.goal(f"places differ {last}", z3.Implies(one[3] == two[3], same))
