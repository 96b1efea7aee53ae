"""The constants of the harnesses: every row of the tuning table, as C macros that list the rows.

A kernel's template arguments and its threads come from ``tuning.py``; how many elements a packet has is the formula of
``TileLoader`` (include/steel/loader.h), for elements of 2 and of 4 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from steelworks.kernels.metal import tuning

#: Bytes of an element: half and bfloat, and float.
ELEMENTS: Final = (2, 4)

Numbers = tuple[int, ...]


def packet(element: int, rows: int, columns: int, threads: int) -> int:
    """Elements that a thread of a TileLoader moves in one go."""
    return min(16 // element, columns, max(rows * columns // threads, 1))


def every(table: Sequence[tuning.Row[Any]]) -> Sequence[tuning.Row[Any]]:
    """A table's rows, of whatever choices."""
    return table


def _unique(rows: Iterable[Numbers]) -> list[Numbers]:
    return list(dict.fromkeys(rows))


def _gemm() -> Iterator[tuple[tuning.GemmTile, int]]:
    for row in every(tuning.GEMM):
        if isinstance(row.choice, tuning.GemmTile):
            for element in ELEMENTS:
                if row.when.get("bytes", (element, element))[0] == element:
                    yield row.choice, element


def loaders() -> list[Numbers]:
    """Every TileLoader that a kernel has: rows, columns, elements of a packet, threads."""
    tiles: list[tuple[int, int, int, int]] = []  # element, rows, columns, threads
    for tile, element in _gemm():
        for side in (tile.bm, tile.bn):
            tiles += [(element, side, tile.bk, tile.threads), (element, tile.bk, side, tile.threads)]
    for element in ELEMENTS:
        for row in every(tuning.ATTENTION_TILES):
            a = row.choice
            tiles += [(element, side, a.head_size, a.simdgroups * 32) for side in (a.keys, a.queries)]
        for row in every(tuning.LORA_TILES):
            for side in (row.choice.rows, row.choice.columns, *tuning.LORA_RANKS):
                tiles.append((element, side, row.choice.depth, row.choice.simdgroups * 32))
        for row in every(tuning.QUANTIZED_TILES):
            q = row.choice
            tiles.append((element, q.rows, q.depth, q.simdgroups_m * q.simdgroups_n * 32))
        for row in every(tuning.CONV2D_TILES):
            c = row.choice
            tiles.append((element, c.channels, c.depth, c.simdgroups_m * c.simdgroups_n * 32))
    found = [
        (rows, columns, packet(e, rows, columns, threads), threads) for e, rows, columns, threads in tiles
    ]
    for row in every(tuning.QUANTIZED_TILES):  # the loader of packed weights moves chunks of 8
        q = row.choice
        found.append((q.columns, q.depth, 8, q.simdgroups_m * q.simdgroups_n * 32))
    return _unique(found)


def _attention_tiles() -> Iterator[Numbers]:
    for row in every(tuning.ATTENTION_TILES):
        t = row.choice
        for element in ELEMENTS:
            threads = t.simdgroups * 32
            packets = [packet(element, side, t.head_size, threads) for side in (t.queries, t.keys)]
            yield (t.queries, t.keys, t.head_size, t.simdgroups, *packets)


def _lora_tiles() -> Iterator[Numbers]:
    for row in every(tuning.LORA_TILES):
        t = row.choice
        for rank in tuning.LORA_RANKS:
            for element in ELEMENTS:
                packets = [
                    packet(element, side, t.depth, t.simdgroups * 32) for side in (t.rows, t.columns, rank)
                ]
                yield (t.rows, t.columns, t.depth, rank, t.simdgroups, *packets)


def _gemm_tiles() -> Iterator[Numbers]:
    for t, element in _gemm():
        packets = (packet(element, t.bm, t.bk, t.threads), packet(element, t.bk, t.bn, t.threads))
        yield (t.bm, t.bn, t.bk, t.wm, t.wn, t.stages, *packets)


def _quantized_tiles() -> Iterator[Numbers]:
    for row in every(tuning.QUANTIZED_TILES):
        t = row.choice
        for element in ELEMENTS:
            threads = t.simdgroups_m * t.simdgroups_n * 32
            sides = (t.simdgroups_m, t.simdgroups_n)
            yield (t.rows, t.columns, t.depth, *sides, packet(element, t.rows, t.depth, threads))


def _conv2d_tiles() -> Iterator[Numbers]:
    for row in every(tuning.CONV2D_TILES):
        t = row.choice
        threads = t.simdgroups_m * t.simdgroups_n * 32
        pixels = min(t.depth, max(t.pixels * t.depth // threads, 1))  # conv2d.h: PixelLoader
        for element in ELEMENTS:
            weights = packet(element, t.channels, t.depth, threads)
            yield (t.pixels, t.channels, t.depth, t.simdgroups_m, t.simdgroups_n, pixels, weights)


def _members() -> Iterator[Numbers]:
    """Elements of a packet and members of a team, for rows in registers, reductions and scans."""
    for row in every(tuning.ROW_TEAMS):
        for element in ELEMENTS:
            yield (min(16 // element, row.choice.elements), row.choice.lanes or 1024)
    for table, elements in (
        (tuning.REDUCE_TEAMS, tuning.REDUCE_ELEMENTS),
        (tuning.SCAN_TEAMS, tuning.SCAN_ELEMENTS),
    ):
        for team in every(table):
            yield (elements, team.choice or 1024)


def lists() -> dict[str, list[Numbers]]:
    """All lists of rows, by the name of their macro."""
    choices = [row.choice for row in every(tuning.GEMM)]
    vectors = [row.choice for row in every(tuning.ATTENTION_VECTORS)]
    return {
        "LOADER_ROWS": loaders(),
        "MEMBER_ROWS": _unique(_members()),
        "GEMM_TILE_ROWS": _unique(_gemm_tiles()),
        "GEMV_DOT_ROWS": _unique(
            (c.rows, c.columns, c.simds_k, c.simds_n) for c in choices if isinstance(c, tuning.GemvDot)
        ),
        "GEMV_COLUMNS_ROWS": _unique(
            (c.rows, c.packet, c.simds) for c in choices if isinstance(c, tuning.GemvColumns)
        ),
        "ATTENTION_TILE_ROWS": _unique(_attention_tiles()),
        "ATTENTION_VECTOR_ROWS": _unique((v.rows, v.elements, v.simdgroups) for v in vectors),
        "LORA_TILE_ROWS": _unique(_lora_tiles()),
        "LORA_VECTOR_ROWS": _unique(
            (row.choice.rows, row.choice.columns, row.choice.simdgroups) for row in every(tuning.LORA_VECTORS)
        ),
        "QUANTIZED_TILE_ROWS": _unique(_quantized_tiles()),
        "QUANTIZED_VECTOR_ROWS": _unique(
            (row.choice.rows, row.choice.columns, row.choice.simdgroups)
            for row in every(tuning.QUANTIZED_VECTORS)
        ),
        "CONV2D_TILE_ROWS": _unique(_conv2d_tiles()),
        "SOFTMAX_COLUMN_ROWS": _unique((row.choice,) for row in every(tuning.SOFTMAX_COLUMNS)),
        "GROUP_ROWS": _unique((row.choice,) for row in every(tuning.ELEMENTWISE_GROUPS)),
    }


def text() -> str:
    """The header ``rows.h`` that the harnesses include."""
    lines = ["/* Made by rows.py from the tuning table. */", "#pragma once"]
    for name, rows in lists().items():
        uses = " ".join(f"DO({', '.join(map(str, (i, *row)))})" for i, row in enumerate(rows))
        lines.append(f"#define {name}(DO) {uses}")
    numbers = {
        "ELEMENTWISE_PACKET": tuning.ELEMENTWISE_PACKET,
        "EMBEDDING_PACKET": tuning.EMBEDDING_PACKET,
        "ROPE_HEADS": tuning.ROPE_HEADS,
        "REDUCE_ELEMENTS": tuning.REDUCE_ELEMENTS,
        "SCAN_ELEMENTS": tuning.SCAN_ELEMENTS,
        "SORT_THREADS": tuning.SORT_THREADS,
        "SORT_ELEMENTS": tuning.SORT_ELEMENTS,
        "TOPK_ELEMENTS": tuning.TOPK_ELEMENTS,
        "TOPK_CHUNK": tuning.TOPK_CHUNK,
        "TOPK_MOST_STAGED": tuning.TOPK_MOST_STAGED,
    }
    lines += [f"#define {name} {value}" for name, value in numbers.items()]
    return "\n".join(lines) + "\n"
