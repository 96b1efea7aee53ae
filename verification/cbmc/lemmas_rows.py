"""Lemmas about softmax, reduce, scan, elementwise, embedding, rope, sort and topk."""

from __future__ import annotations

from typing import Any

import z3  # type: ignore[import-untyped]

from .lemma import EXTENT, INT, Proof, lemma

_HOST = "steelworks/kernels/metal"


def _columns(p: Proof, function: str) -> None:
    """Column forms: a dense (rows / inner, length, inner) tensor."""
    outer, length, inner = p.size("outer"), p.size("length"), p.size("inner")
    p.given(outer * inner <= EXTENT, f"{_HOST}/_views.py check_size: the columns")
    found = []
    for name in ("", "_2"):
        entry, within = p.below(f"entry{name}", outer), p.below(f"within{name}", inner)
        at = p.below(f"at{name}", length)
        column = entry * inner + within
        p.within(entry, within, outer, inner)
        p.divides(column, inner, entry, within)
        p.within(entry, at, outer, length)
        p.within(entry * length + at, within, outer * length, inner)
        p.product(outer, length, EXTENT, EXTENT)
        p.product(outer * inner, length, EXTENT, EXTENT)
        got = p.call(function, column, at, outer * inner, length, inner)
        p.goal(f"inside{name}", z3.And(got >= 0, got < outer * length * inner))
        found.append((entry, at, within, got))
    one, two = found
    p.unique(one[0] * length + one[1], one[2], two[0] * length + two[1], two[2], inner)
    p.unique(one[0], one[1], two[0], two[1], length)
    p.goal(
        "places differ",
        z3.Implies(one[3] == two[3], z3.And(*(a == b for a, b in zip(one, two, strict=True)))),
    )


@lemma("softmax", "column form: every element of a column is inside, and no two share a place")
def _softmax_column_element(p: Proof) -> None:
    _columns(p, "softmax_column_element")


@lemma("reduce", "column form: every element of a column is inside, and no two share a place")
def _reduce_column_element(p: Proof) -> None:
    _columns(p, "reduce_column_element")


@lemma("reduce", "each chunk of each result is exactly one work item")
def _reduce_items(p: Proof) -> None:
    rows, chunks = p.size("rows"), p.size("chunks")
    p.given(rows * chunks <= INT, f"{_HOST}/reduce.py _rows_launch: teams are a grid's extent")
    row, chunk = p.below("row", rows), p.below("chunk", chunks)
    p.within(row, chunk, rows, chunks)
    p.divides(row * chunks + chunk, chunks, row, chunk)
    item = row * chunks + chunk
    p.goal("inside", z3.And(item >= 0, item < rows * chunks))
    p.goal("its row", p.call("reduce_row", item, chunks) == row)
    p.goal("its chunk", p.call("reduce_chunk", item, chunks) == chunk)


def _cuts(p: Proof) -> tuple[Any, Any, Any, Any, Any]:
    """Chunks of ``size`` of ``length`` elements: length, size, chunks, and a chunk that there is."""
    length, size, chunks = p.size("length"), p.size("size"), p.size("chunks")
    p.given(
        z3.And((chunks - 1) * size < length, chunks * size >= length),
        f"{_HOST}/reduce.py _chunks, scan.py _scan, topk.py _select: chunks = ceil(length / chunk)",
    )
    chunk = p.below("chunk", chunks)
    p.product(chunk, size, chunks - 1, size)
    p.product(chunk + 1, size, chunks - 1, size)
    p.product(chunks - 1 - chunk, size, 0, size)
    return length, size, chunks, chunk, (chunk + 1) * size


@lemma(
    "reduce",
    "chunks cut a row: none is empty, each begins where the one before ends, the last ends with the row",
)
def _reduce_chunks(p: Proof) -> None:
    length, size, chunks, chunk, behind = _cuts(p)
    begin, end = p.call("reduce_begin", chunk, size), p.call("reduce_end", chunk, size, length)
    p.goal("none is empty", z3.And(begin >= 0, begin < end, end <= length))
    p.goal("the first begins at 0", z3.Implies(chunk == 0, begin == 0))
    p.goal("the next begins where it ends", z3.Implies(chunk + 1 < chunks, end == behind))
    p.goal("the last ends with the row", z3.Implies(chunk + 1 == chunks, end == length))


@lemma(
    "topk",
    "chunks cut a line: none is empty, each begins where the one before ends, the last ends with the line",
)
def _topk_chunks(p: Proof) -> None:
    length, size, chunks, chunk, behind = _cuts(p)
    begin = p.call("topk_begin", chunk, size)
    end = p.call("topk_end", begin, size, length)
    p.goal("none is empty", z3.And(begin >= 0, begin < end, end <= length))
    p.goal("the next begins where it ends", z3.Implies(chunk + 1 < chunks, end == behind))
    p.goal("the last ends with the line", z3.Implies(chunk + 1 == chunks, end == length))


def _dense(p: Proof, call: Any, rows: Any, columns: Any, guarded: bool) -> None:
    """(row, column) of a dense matrix: -1 exactly outside, inside otherwise, places apart."""
    found = []
    p.product(rows, columns, INT, INT)
    for name in ("", "_2"):
        row, column = p.size(f"row{name}", 0, INT), p.below(f"column{name}", columns)
        p.within(row, column, rows, columns)
        p.product(row, columns, INT, INT)
        got = call(row, column)
        inside = row < rows
        if guarded:
            p.goal(f"-1 exactly outside{name}", (got == -1) == z3.Not(inside))
        p.goal(f"inside{name}", z3.Implies(inside, z3.And(got >= 0, got < rows * columns)))
        found.append((row, column, got, inside))
    one, two = found
    p.unique(one[0], one[1], two[0], two[1], columns)
    both = z3.And(one[3], two[3], one[2] == two[2])
    p.goal("places differ", z3.Implies(both, z3.And(one[0] == two[0], one[1] == two[1])))


@lemma("reduce", "results of the row form are -1 exactly outside, inside otherwise, and no two share a place")
def _reduce_row_result(p: Proof) -> None:
    rows, chunks = p.size("rows", 1, INT), p.size("chunks", 1, INT)
    _dense(p, lambda row, chunk: p.call("reduce_row_result", row, chunk, rows, chunks), rows, chunks, True)


@lemma("reduce", "results of the column form are inside, and no two share a place")
def _reduce_column_result(p: Proof) -> None:
    rows, chunks = p.size("rows", 1, INT), p.size("chunks", 1, INT)
    _dense(p, lambda chunk, column: p.call("reduce_column_result", column, chunk, rows), chunks, rows, False)


@lemma("scan", "totals of chunks are -1 exactly outside, inside otherwise, and no two share a place")
def _scan_total(p: Proof) -> None:
    rows, chunks = p.size("rows", 1, INT), p.size("chunks", 1, INT)
    _dense(p, lambda row, chunk: p.call("scan_total", row, chunk, rows, chunks), rows, chunks, True)


@lemma(
    "embedding", "elements of the output are -1 exactly outside, inside otherwise, and no two share a place"
)
def _embedding_output(p: Proof) -> None:
    ids, width = p.size("ids", 1, INT), p.size("width", 1, INT)
    _dense(p, lambda at, column: p.call("embedding_output", at, column, ids, width), ids, width, True)


@lemma("embedding", "a row of the table is -1 exactly for an id that it does not have, and inside otherwise")
def _embedding_row(p: Proof) -> None:
    rows, stride = p.size("rows", 0, INT), p.size("stride", 1, INT)
    row = p.size("id", -(2**63), 2**63 - 1)
    known = z3.And(row >= 0, row < rows)
    p.product(row, stride, rows - 1, stride)
    p.product(rows - 1 - row, stride, INT, stride)
    p.product(rows, stride, INT, INT)
    got = p.call("embedding_row", type(p.reader._given(row))(row, "long"), rows, stride)
    p.goal("-1 exactly for others", (got == -1) == z3.Not(known))
    p.goal("inside", z3.Implies(known, z3.And(got >= 0, got + stride <= rows * stride)))
    column = p.size("column", 0, INT)
    p.given(z3.Implies(known, column < stride), f"{_HOST}/embedding.py embedding: rows do not overlap")
    p.given(rows * stride < 2**62, f"{_HOST}/embedding.py embedding: the table is in memory")
    begin = z3.If(known, got, 0)  # the kernel follows no other
    element = p.call("embedding_element", type(p.reader._given(row))(begin, "long"), column)
    p.goal("an element is inside", z3.Implies(known, z3.And(element >= got, element < rows * stride)))


@lemma("rope", "elements of the output are inside, and no two share a place")
def _rope_output(p: Proof) -> None:
    batches, heads, length, width = p.size("batches"), p.size("heads"), p.size("length"), p.size("width")
    p.given(batches * heads <= EXTENT, f"{_HOST}/rope.py rope: check_size(batches * heads)")
    p.given(batches * heads * length * width < 2**62, f"{_HOST}/rope.py rope: the output is allocated")
    found = []
    for name in ("", "_2"):
        batch, head = p.below(f"batch{name}", batches), p.below(f"head{name}", heads)
        row, column = p.below(f"row{name}", length), p.below(f"column{name}", width)
        of_head = batch * heads + head
        p.within(batch, head, batches, heads)
        p.within(of_head, row, batches * heads, length)
        p.within(of_head * length + row, column, batches * heads * length, width)
        p.product(batches * heads, length, EXTENT, EXTENT)
        p.product(1, of_head * length + row, width, of_head * length + row)
        got = p.call("rope_output", batch, head, row, column, heads, length, width)
        p.goal(f"inside{name}", z3.And(got >= 0, got < batches * heads * length * width))
        found.append((batch, head, row, column, got))
    one, two = found
    p.unique(one[0] * heads + one[1], one[2], two[0] * heads + two[1], two[2], length)
    p.unique(
        (one[0] * heads + one[1]) * length + one[2],
        one[3],
        (two[0] * heads + two[1]) * length + two[2],
        two[3],
        width,
    )
    p.unique(one[0], one[1], two[0], two[1], heads)
    p.goal(
        "places differ",
        z3.Implies(one[4] == two[4], z3.And(*(a == b for a, b in zip(one, two, strict=True)))),
    )


@lemma("sort", "pairs are inside, and no two share a place")
def _sort_pair(p: Proof) -> None:
    rows, length = p.size("rows", 1, INT), p.size("length")
    _dense(p, lambda row, at: p.call("sort_pair", row, at, length), rows, length, False)


@lemma("topk", "candidates are inside what was allocated, and no two share a place")
def _topk_candidate(p: Proof) -> None:
    rows, chunks, k, last = p.size("rows", 1, INT), p.size("chunks", 1, EXTENT), p.size("k"), p.size("last")
    kept = (chunks - 1) * k + last
    p.given(last <= k, f"{_HOST}/topk.py topk: the last chunk keeps min(k, what it has)")
    p.given(kept <= EXTENT, f"{_HOST}/topk.py topk: fewer are kept than there are")
    found = []
    for name in ("", "_2"):
        row, chunk, slot = (
            p.below(f"row{name}", rows),
            p.below(f"chunk{name}", chunks),
            p.below(f"slot{name}", k),
        )
        p.given(
            z3.Implies(chunk == chunks - 1, slot < last),
            f"{_HOST}/topk/topk.h: slots are counted up to the winners",
        )
        p.product(chunk, k, chunks - 1, k)
        p.product(chunk + 1, k, chunks - 1, k)
        p.product(chunks - 1 - chunk, k, 0, k)
        p.within(row, chunk * k + slot, rows, kept)
        p.product(row, kept, INT, EXTENT)
        got = p.call("topk_candidate", row, chunk, slot, k, kept)
        p.goal(f"in its row{name}", chunk * k + slot < kept)
        p.goal(f"inside{name}", z3.And(got >= 0, got < rows * kept))
        found.append((row, chunk, slot, got))
    one, two = found
    p.unique(one[0], one[1] * k + one[2], two[0], two[1] * k + two[2], kept)
    p.unique(one[1], one[2], two[1], two[2], k)
    p.goal(
        "places differ",
        z3.Implies(one[3] == two[3], z3.And(*(a == b for a, b in zip(one, two, strict=True)))),
    )
