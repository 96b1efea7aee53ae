"""Which configuration a kernel runs with: tables as data, with the reason for each row.

A table is a tuple of ``Row``; ``pick`` takes the first whose limits hold for a problem's sizes. Times are device
times inside a CUDA graph on one H200 (132 multiprocessors, torch 2.11, Triton 3.6), bfloat16 unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from steelworks.kernels.table import Row as Row
from steelworks.kernels.table import pick as pick

# --- rows: softmax and norms ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowTile:
    """How rows that fit in registers are shared out, one tile a program.

    Attributes:
        rows: Rows of a tile.
        warps: Warps of a program.
        stream: Loads and stores are marked as not used again.
        early: A norm's weight and bias are read before the rows, not after their sums.
    """

    rows: int
    warps: int
    stream: bool = False
    early: bool = False


@dataclass(frozen=True)
class RowLoop:
    """How rows are shared out where a program goes through many: rows of a tile, warps, programs a multiprocessor."""

    rows: int
    warps: int
    resident: int


@dataclass(frozen=True)
class LongRows:
    """How rows are read that don't fit in registers: blocks of so many columns, by so many warps."""

    block: int
    warps: int


#: The longest row that is read once and stays in registers: 1024 threads hold 32 elements each.
ROW_MOST: Final = 32768

#: length: the row's, rounded up to a power of two; rows: how many there are; elements: of all rows.
#: Results that fit in the L2 cache (60 MiB on an H200) are not marked as unused: what comes next reads them there.
_STREAMED: Final = 2**23

SOFTMAX: Final[tuple[Row[RowTile], ...]] = (
    Row(
        RowTile(16, 4),
        "16 short rows make a tile of up to 1,024 elements, 8 a thread",
        {"length": (None, 64)},
    ),
    Row(RowTile(4, 4), "4 rows make a tile of up to 1,024 elements", {"length": (None, 256)}),
    Row(
        RowTile(1, 4),
        "up to 16 elements a thread: two loads of 16 bytes; 1x1024 0.99 us (2 warps 1.02, 8 warps 1.02)",
        {"length": (None, 2048)},
    ),
    Row(
        RowTile(2, 16),
        "32768x4096 128.8 us; a row of 8 warps 130.8 (copy 128.0). At 4096x4096 it loses: 18.5, not 17.8",
        {"length": (4096, 4096), "rows": (16384, None)},
    ),
    Row(
        RowTile(1, 8, stream=True),
        "4096x4096 17.75 us (copy 17.76, 4 warps 17.66, 16 warps 22.5)",
        {"length": (None, 4096), "elements": (_STREAMED, None)},
    ),
    Row(RowTile(1, 8), "the same for what may stay in the cache", {"length": (None, 4096)}),
    Row(RowTile(1, 16), "up to 32 elements a thread", {"length": (None, 16384)}),
    Row(RowTile(1, 32), "32 elements for each of the 1,024 threads that a program may have"),
)

SOFTMAX_LONG: Final = LongRows(block=8192, warps=16)

#: Columns of a tile, its elements, and warps: softmax along a dimension that is not the last.
SOFTMAX_COLUMNS: Final = 32
SOFTMAX_COLUMN_TILE: Final = 8192
SOFTMAX_COLUMN_WARPS: Final = 8

#: As above; rms and residual: 1 where they hold.
NORMS: Final[tuple[Row[RowTile], ...]] = (
    Row(
        RowTile(16, 4),
        "16 short rows make a tile of up to 1,024 elements, 8 a thread",
        {"length": (None, 64)},
    ),
    Row(RowTile(4, 4, early=True), "4 rows make a tile of up to 1,024 elements", {"length": (None, 256)}),
    Row(
        RowTile(2, 1, early=True),
        "layer_norm in float16: 4096x384 2.9 us, with a residual 3.1 (one row of 4 warps 5.6 and 5.6); 512x384 1.4",
        {"length": (None, 512)},
    ),
    Row(
        RowTile(2, 4),
        "layer_norm in float16: 4096x768 3.9 us, with a residual 4.9 (one row, early: 5.7 and 6.4); 4096x1024 4.2, 6.9",
        {"length": (None, 1024), "elements": (2**19, None)},
    ),
    Row(
        RowTile(1, 4, early=True),
        "up to 16 elements a thread: 1x1024 0.83 us, layer_norm 1.05; with weights read late 1.01 and 1.18",
        {"length": (None, 2048)},
    ),
    Row(
        RowTile(2, 4, stream=True),
        "rms_norm with a residual: 4096x4096 34.5 us, 32768x4096 259.2 (one row of 8 warps 34.6 and 261.4)",
        {"length": (4096, 4096), "elements": (_STREAMED, None), "rms": (1, 1), "residual": (1, 1)},
    ),
    Row(
        RowTile(2, 8, stream=True),
        "layer_norm: two rows share weight and bias; 4096x4096 18.4 us, 32768x4096 129.2 (one row 132, early 152)",
        {"length": (4096, 4096), "elements": (_STREAMED, None), "rms": (0, 0), "residual": (0, 0)},
    ),
    Row(
        RowTile(1, 8, stream=True),
        "rms_norm 4096x4096 17.7 us, 32768x4096 129.2 (4 warps 18.1 and 131.3); layer_norm with a residual 34.7, 261.2",
        {"length": (None, 4096), "elements": (_STREAMED, None)},
    ),
    Row(RowTile(1, 8), "the same for what may stay in the cache", {"length": (None, 4096)}),
    Row(RowTile(1, 16), "up to 32 elements a thread", {"length": (None, 16384)}),
    Row(RowTile(1, 32), "32 elements for each of the 1,024 threads that a program may have"),
)

NORMS_LONG: Final = LongRows(block=8192, warps=16)

#: Backward: programs a multiprocessor; each sums the weight's gradient over its rows in registers.
NORM_BACKWARD: Final[tuple[Row[RowLoop], ...]] = (
    Row(RowLoop(4, 4, resident=4), "short rows: 4 make a tile", {"length": (None, 256)}),
    Row(RowLoop(1, 4, resident=4), "16 elements a thread of x, gradient and two sums", {"length": (None, 2048)}),
    Row(RowLoop(1, 8, resident=2), "the same", {"length": (None, 4096)}),
    Row(RowLoop(1, 16, resident=1), "up to 32 elements a thread; more would spill", {"length": (None, 16384)}),
)  # fmt: skip

#: The longest row whose backward runs here.
NORM_BACKWARD_MOST: Final = 16384

# --- top_k ------------------------------------------------------------------------------------------------------

#: The largest k: a block holds 32 elements for each of its slots.
TOPK_MOST: Final = 256

#: Elements or maxima that one block chooses among without another level above them.
TOPK_TOP: Final = 4096

#: A choice may take k / TOPK_SPARE more than k, so that the search ends before it has found the k-th exactly.
TOPK_SPARE: Final = 8

#: Groups of 32 elements that one program finds the maxima of.
TOPK_GROUPS: Final[tuple[Row[int], ...]] = (
    Row(32, "few groups: 1,024 elements a program spread a row over 64 multiprocessors", {"groups": (None, 16384)}),
    Row(64, "64x32000 in float32: 8.7 us, with 128 groups 10.2 (the waiting blocks of the choice leave less room)"),
)  # fmt: skip
TOPK_MAXIMA_WARPS: Final = 4

#: Warps of the block that chooses, by the elements it holds.
TOPK_WARPS: Final[tuple[Row[int], ...]] = (
    Row(4, "up to 8 elements a thread; fewer warps make cheaper barriers", {"elements": (None, 1024)}),
    Row(
        8, "8 to 16 elements a thread; 1x65536 6.3 us (4 warps 7.2, 16 warps 6.4)", {"elements": (None, 4096)}
    ),
    Row(16, "16 elements a thread", {"elements": (None, 8192)}),
    Row(32, "16 elements a thread; with 16 warps 32, and most of them in local memory"),
)

#: Chosen elements that are ranked against each other at once: 64 x 64 comparisons fit in registers.
TOPK_PART: Final = 64


# --- linear layers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ThinTile:
    """How a linear layer of few rows is cut: each program reads all terms of its columns at once.

    Attributes:
        rows: Rows of a tile.
        columns: Columns of a tile.
        steps: Parts that the terms are read in, 4 at most; a part is a power of two.
        warps: Warps of a program.
        stages: 1: there is no loop whose loads could be under way.
    """

    rows: int
    columns: int
    steps: int
    warps: int
    stages: int = 1


@dataclass(frozen=True)
class LinearTile:
    """How a linear layer is cut: sides of a tile, terms of a step, warps, steps whose loads are under way.

    With ``described`` x and the weight, a single one, are read through tensor descriptors.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    described: bool = False


#: rows: of x; columns: of all layers of a launch; terms: of a sum; described: 1 where descriptors serve. Float16; in
#: brackets the time of cuBLAS (of three calls where there are three layers), without what comes after.
LINEAR: Final[tuple[Row[ThinTile | LinearTile], ...]] = (
    Row(
        ThinTile(16, 32, 1, 4),
        "32x384x384 with a residual: 1.6 us (3.0); 32x1024x1024: 2.3 us (3.9); 128x384x384: 1.8 us (3.2)",
        {"rows": (None, 128), "columns": (None, 1024), "terms": (None, 1024)},
    ),
    Row(
        ThinTile(16, 32, 4, 4),
        "32x384x384 three times: 1.7 us (8.8); 32x1536x384 with gelu: 1.9 us (3.1); 32x384x1536: 3.2 us (4.6)",
        {"rows": (None, 64), "columns": (None, 2304), "terms": (None, 2048)},
    ),
    Row(
        ThinTile(16, 32, 4, 4),
        "128x384x1536 with a residual: 4.4 us (4.7)",
        {"rows": (None, 128), "columns": (None, 512), "terms": (None, 2048)},
    ),
    Row(
        LinearTile(16, 64, 256, 4, 3),
        "32x3072x768 with gelu: 3.3 us (3.7); 32x4096x1024 with gelu: 3.9 us (4.1)",
        {"rows": (None, 64), "columns": (1025, None)},
    ),
    Row(LinearTile(16, 16, 256, 4, 3), "32x768x3072 with a residual: 5.9 us (6.8)", {"rows": (None, 64)}),
    Row(
        LinearTile(32, 64, 64, 4, 3),
        "128x384x384 three times: 2.4 us (9.3); 128x1536x384 with gelu: 3.3 us (3.3)",
        {"rows": (None, 128)},
    ),
    Row(
        LinearTile(64, 32, 128, 4, 4, described=True),
        "512x384x1536 with a residual: 4.6 us (4.9)",
        {"rows": (None, 1024), "columns": (None, 512), "terms": (768, None), "described": (1, 1)},
    ),
    Row(
        LinearTile(64, 64, 64, 4, 3),
        "512x384x384 three times: 3.9 us (10.0); 512x1536x384 with gelu: 4.6 us (4.2)",
        {"rows": (None, 1024), "terms": (None, 512)},
    ),
    Row(
        LinearTile(64, 64, 128, 4, 4, described=True),
        "512x768x3072 with a residual: 8.9 us (7.9); 512x768x768 with a residual: 4.2 us (4.2)",
        {"rows": (None, 1024), "columns": (None, 1024), "described": (1, 1)},
    ),
    Row(
        LinearTile(64, 64, 64, 4, 4, described=True),
        "512x3072x768 with gelu: 8.6 us (6.6)",
        {"rows": (None, 1024), "terms": (None, 1024), "described": (1, 1)},
    ),
    Row(
        LinearTile(128, 128, 64, 8, 5, described=True),
        "512x4096x4096: 26.1 us (24.6)",
        {"rows": (None, 1024), "described": (1, 1)},
    ),
    Row(LinearTile(64, 64, 64, 4, 3), "what no descriptor takes", {"rows": (None, 1024)}),
    Row(
        LinearTile(64, 128, 64, 4, 4),
        "4096x384x384 with a residual: 5.4 us (5.6)",
        {"columns": (None, 512), "terms": (None, 512)},
    ),
    Row(
        LinearTile(128, 128, 64, 8, 4, described=True),
        "4096x384x1536 with a residual: 11.5 us (9.6)",
        {"columns": (None, 512), "described": (1, 1)},
    ),
    Row(LinearTile(64, 128, 64, 4, 4), "what no descriptor takes", {"columns": (None, 512)}),
    Row(
        LinearTile(64, 128, 64, 4, 3, described=True),
        "4096x768x768 with a residual: 10.9 us (10.1); 4096x768x3072: 33.2 us (28.0)",
        {"columns": (None, 1152), "described": (1, 1)},
    ),
    Row(
        LinearTile(128, 128, 64, 8, 3, described=True),
        "4096x1536x384 with gelu: 18.8 us (11.4); 4096x3072x768 with gelu: 47.5 us (32.9)",
        {"terms": (None, 2047), "described": (1, 1)},
    ),
    Row(
        LinearTile(128, 256, 64, 8, 3, described=True),
        "2048x4096x4096 with gelu: 104.8 us (90.8)",
        {"described": (1, 1)},
    ),
    Row(LinearTile(64, 64, 64, 4, 2), "what no descriptor takes"),
)


# --- attention over few keys --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionTile:
    """Queries of a program, and its warps."""

    rows: int
    warps: int


#: heads: of all sequences; keys: rounded up to a power of two. Float16; in brackets the time of PyTorch's attention
#: without a mask, which with a mask takes at least twice as long.
ATTENTION: Final[tuple[Row[AttentionTile], ...]] = (
    Row(
        AttentionTile(32, 2),
        "32 keys of size 32, 12 heads: 1.7 us (5.9); 1536 heads: 5.5 us (30.2)",
        {"keys": (None, 32)},
    ),
    Row(AttentionTile(64, 4), "64 keys of size 64, 512 heads: 5.7 us (13.5)", {"keys": (None, 64)}),
    Row(AttentionTile(16, 4), "128 keys of size 64, 12 heads: 2.6 us (5.8)", {"heads": (None, 16)}),
    Row(AttentionTile(32, 4), "128 keys of size 128, 32 heads: 4.3 us (6.9)", {"heads": (None, 48)}),
    Row(AttentionTile(64, 4), "128 keys of size 64, 96 heads: 4.6 us (6.7)", {"heads": (None, 512)}),
    Row(AttentionTile(128, 8), "128 keys of size 64, 1536 heads: 40 us (30)"),
)
