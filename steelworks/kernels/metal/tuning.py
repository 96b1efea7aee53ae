"""Which variant of a kernel runs when: the one table, as data, with the reason for each row.

A table is a tuple of ``Row``; ``pick`` takes the first whose limits hold for a problem's sizes. Figures in the reasons
are counted (metalsim's counters, held by the tests) or computed from sizes; nothing here was timed on an Apple GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from steelworks.kernels.table import Row as Row
from steelworks.kernels.table import pick as pick

# --- shared -----------------------------------------------------------------------------------------------------------

#: Numbers of SteelActivation in include/steel/epilogue.h.
ACTIVATIONS: Final[dict[str | None, int]] = {None: 0, "relu": 1, "gelu": 2, "silu": 3}

# --- attention ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionTile:
    """Tiled attention: queries and keys of a tile, the largest head size, simdgroups (8 queries each), and
    whether keys and values take turns in one buffer while queries wait in threadgroup memory."""

    queries: int
    keys: int
    head_size: int
    simdgroups: int
    share: bool = False


@dataclass(frozen=True)
class AttentionVector:
    """Vector form: query rows of a threadgroup, elements of a lane (the head size / 32), simdgroups."""

    rows: int
    elements: int
    simdgroups: int


ATTENTION_TILES: Final = (
    Row(
        AttentionTile(32, 32, 64, 4),
        "keys and values take 17,408 B in float32, queries stay in 16 registers a lane",
        {"head_size": (None, 64)},
    ),
    Row(
        AttentionTile(32, 32, 80, 4),
        "a tile of its own: padding 80 to 96 would add 20 % of products; 21,504 B in float32",
        {"head_size": (None, 80)},
    ),
    Row(
        AttentionTile(32, 32, 96, 4),
        "25,600 B in float32: the largest head size for which 32 keys fit",
        {"head_size": (None, 96)},
    ),
    Row(
        AttentionTile(32, 16, 128, 4),
        "16 keys: 16,896 B in float32, 32 would take 33,792 B",
        {"head_size": (None, 128)},
    ),
    Row(
        AttentionTile(32, 16, 256, 4, share=True),
        "queries in registers would take 32 of them beside 64 for the sums; 25,344 B as it is",
        {"head_size": (None, 256), "element_bytes": (None, 2)},
    ),
    Row(
        AttentionTile(16, 8, 256, 2, share=True),
        "the same in float32: 24,960 B; 32 queries alone would take 33,280 B",
        {"head_size": (None, 256)},
    ),
)

#: Queries up to which the vector form runs: a tile of 32 queries would be three quarters empty.
ATTENTION_VECTOR_QUERIES: Final = 8

#: By rows: queries times the query heads that share a key head.
ATTENTION_VECTORS: Final = (
    Row(AttentionVector(1, 2, 8), "one dot product a key", {"rows": (None, 1), "head_size": (None, 64)}),
    Row(AttentionVector(1, 4, 8), "the same", {"rows": (None, 1), "head_size": (None, 128)}),
    Row(AttentionVector(1, 8, 8), "the same", {"rows": (None, 1), "head_size": (None, 256)}),
    Row(AttentionVector(4, 2, 8), "a key and value is read once for four rows", {"head_size": (None, 64)}),
    Row(AttentionVector(4, 4, 8), "the same; 32 registers for queries and sums", {"head_size": (None, 128)}),
    Row(AttentionVector(4, 8, 8), "the same; 8 rows would take 128 registers", {"head_size": (None, 256)}),
)

#: Threadgroups that share the keys of a row in the vector form; more than one costs a second launch.
ATTENTION_SPLITS: Final = (
    Row(1, "a second launch costs more than it saves", {"keys": (None, 2047)}),
    Row(1, "there are threadgroups enough without", {"groups": (64, None)}),
    Row(4, "512 keys or more for each", {"keys": (None, 8191)}),
    Row(16, "512 keys or more for each, and 16 threadgroups for a single head"),
)


# --- rows in registers: softmax, norms --------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowTeam:
    """Who works on a row.

    Attributes:
        lanes: Neighbours of a simdgroup that share a row; 0: the whole threadgroup.
        elements: Elements that a thread holds; in the looped form, that it takes at a time.
        looped: The row does not fit into registers; it is read twice.
    """

    lanes: int
    elements: int
    looped: bool = False


ROW_TEAMS: Final = (
    Row(RowTeam(8, 4), "32 rows in a threadgroup of 256; three shuffles, no barrier", {"length": (None, 32)}),
    Row(RowTeam(32, 4), "8 rows in a threadgroup of 256; no barrier", {"length": (None, 128)}),
    Row(RowTeam(32, 16), "16 floats of registers a lane; still no barrier", {"length": (None, 512)}),
    Row(
        RowTeam(0, 4),
        "16 bytes of float a thread and row; one barrier; up to 1024 threads",
        {"length": (None, 4096)},
    ),
    Row(RowTeam(0, 16), "the row is read once up to here: 16 floats of registers", {"length": (None, 16384)}),
    Row(RowTeam(0, 4, looped=True), "beyond 1024 threads times 16 elements: read twice, whatever the length"),
)


# --- softmax ----------------------------------------------------------------------------------------------------------

#: Places of a column that a thread keeps in registers; 0: it reads the column twice.
SOFTMAX_COLUMNS: Final = (
    Row(
        8,
        "one simdgroup for every 8 places: 2 to 32 of them, and the column is read once",
        {"length": (None, 256)},
    ),
    Row(32, "32 simdgroups with 32 floats of registers a lane", {"length": (None, 1024)}),
    Row(0, "longer than 32 simdgroups can keep: read twice"),
)

# --- gemm -------------------------------------------------------------------------------------------------------------
# Threadgroup traffic, per 8x8x8 multiply-accumulate (MMA) of float: a simdgroup with FM x FN fragments reads
# 256 * (FM + FN) / (FM * FN) bytes, the loader writes 2048 * (BM + BN) / (BM * BN) bytes. The scheme described for the
# fastest published kernel, 64 x 64 x 16 with 2 x 2 simdgroups and one buffer: 128 + 64 bytes and 1/64 barrier an MMA.


@dataclass(frozen=True)
class GemmTile:
    """A tile of gemm_tiled.

    Attributes:
        bm: Rows of the result a threadgroup computes.
        bn: Columns of it.
        bk: Terms that go through threadgroup memory at a time.
        wm: Simdgroups along the rows.
        wn: Simdgroups along the columns.
        stages: Tiles in threadgroup memory: 2 need one barrier a step, 1 needs two.
    """

    bm: int
    bn: int
    bk: int
    wm: int
    wn: int
    stages: int

    @property
    def threads(self) -> int:
        """Of a threadgroup."""
        return self.wm * self.wn * 32


@dataclass(frozen=True)
class GemvDot:
    """gemv_dot: ``rows`` rows of a, ``columns`` columns a simdgroup, ``simds_k`` simdgroups share a sum."""

    rows: int
    columns: int
    simds_k: int
    simds_n: int

    @property
    def threads(self) -> int:
        """Of a threadgroup."""
        return self.simds_k * self.simds_n * 32


@dataclass(frozen=True)
class GemvColumns:
    """gemv_columns: ``rows`` rows of a, ``packet`` columns a lane, ``simds`` simdgroups share the sums."""

    rows: int
    packet: int
    simds: int

    @property
    def threads(self) -> int:
        """Of a threadgroup."""
        return self.simds * 32


GemmChoice = GemmTile | GemvDot | GemvColumns

#: Sizes: m, n, k; tiles: m * n in 64 x 64 tiles, rounded up, times the batch; bytes: of an element;
#: terms_inner: 1 if the terms of b are contiguous. m <= n wherever m <= 16: the host swaps the operands otherwise.
GEMM: Final[tuple[Row[GemmChoice], ...]] = (
    Row(
        GemvDot(rows=1, columns=4, simds_k=8, simds_n=1),
        "one row, few columns: 8 simdgroups share each sum, because simdgroups with columns of their own would be "
        "fewer than 256; each byte of b is read once",
        when={"m": (None, 1), "n": (None, 1023), "terms_inner": (1, 1)},
    ),
    Row(
        GemvDot(rows=1, columns=4, simds_k=1, simds_n=4),
        "one row: 4 columns a simdgroup, so that a is read once for 4 rows of b: 1.25 times the bytes of b instead "
        "of 2; no barrier at all",
        when={"m": (None, 1), "terms_inner": (1, 1)},
    ),
    Row(
        GemvDot(rows=2, columns=4, simds_k=4, simds_n=2),
        "two rows: b read once, straight to registers; 8 sums a lane",
        when={"m": (None, 2), "terms_inner": (1, 1)},
    ),
    Row(
        GemvDot(rows=4, columns=4, simds_k=4, simds_n=2),
        "three or four rows: b read once; 16 sums and 4 packets of a are 32 registers of float",
        when={"m": (None, 4), "terms_inner": (1, 1)},
    ),
    Row(
        GemvColumns(rows=1, packet=4, simds=8),
        "one row, columns contiguous: neighbours read neighbouring columns, 8 simdgroups share the terms; a read once "
        "a threadgroup, b once; one barrier a threadgroup",
        when={"m": (None, 1)},
    ),
    Row(
        GemvColumns(rows=4, packet=4, simds=4),
        "two to four rows: as above; 4 simdgroups keep the partial sums at 8 KiB of threadgroup memory",
        when={"m": (None, 4)},
    ),
    Row(
        GemmTile(bm=8, bn=64, bk=32, wm=1, wn=4, stages=1),
        "5 to 8 rows: b is read once, and each of its fragments is used once: bytes of b decide, not MMAs. BK 32 makes "
        "a row of b 128 bytes of float. A second stage would save one barrier of two, but take 19.25, not 9.6 KiB",
        when={"m": (None, 8)},
    ),
    Row(
        GemmTile(bm=16, bn=64, bk=32, wm=1, wn=4, stages=1),
        "9 to 16 rows: as above with two fragments of a for each of b",
        when={"m": (None, 16)},
    ),
    Row(
        GemmTile(bm=128, bn=64, bk=16, wm=4, wn=2, stages=2),
        "large, two bytes an element: writes 48 / 2 + reads 128 / 2 = 88 bytes of threadgroup memory an MMA (96 with "
        "64 x 64), and 1/256 barrier; two stages fit in 16.5 KiB",
        when={"tiles": (512, None), "m": (128, None), "bytes": (2, 2)},
    ),
    Row(
        GemmTile(bm=128, bn=64, bk=16, wm=4, wn=2, stages=1),
        "large, float: 48 + 128 = 176 bytes an MMA (192 with 64 x 64) and 2/256 barrier in 14.25 KiB; two stages would "
        "take 28.5 KiB, so that only one threadgroup fits where now two do",
        when={"tiles": (512, None), "m": (128, None)},
    ),
    Row(
        GemmTile(bm=64, bn=64, bk=16, wm=2, wn=2, stages=2),
        "enough 64 x 64 tiles to fill any GPU: 192 bytes an MMA and 1/128 barrier in 18.5 KiB of float; one stage "
        "would need twice the barriers",
        when={"tiles": (96, None)},
    ),
    Row(
        GemmTile(bm=64, bn=32, bk=16, wm=2, wn=2, stages=2),
        "fewer tiles: half the size gives twice the threadgroups; 96 + 192 = 288 bytes an MMA and 1/64 barrier",
        when={"tiles": (24, None), "m": (33, None)},
    ),
    Row(
        GemmTile(bm=32, bn=32, bk=16, wm=2, wn=2, stages=2),
        "few tiles: 32 x 32 gives 4 times the threadgroups of 64 x 64, for 128 + 256 = 384 bytes an MMA and 1/32 "
        "barrier instead of 2/32 with one stage",
    ),
)

#: Tile rows that are visited together. 64 threadgroups that run at once, in a product of 32 x 32 tiles, touch 34 panels
#: (2 of a, 32 of b) row by row, and 16 (8 and 8) in bands of 8: less to fetch into the cache. Counted by a test.
GEMM_BAND: Final = 8


@dataclass(frozen=True)
class GemmSplit:
    """When the terms of a sum are shared by several threadgroups, each with a partial sum in device memory.

    Attributes:
        threadgroups: With at least so many, nothing is split: the GPU is busy.
        least_terms: A split has at least so many.
        most: Splits.
        traffic: Partial sums are written and read once; their bytes may be at most 1 / traffic of the operands'.
    """

    threadgroups: int
    least_terms: int
    most: int
    traffic: int


#: 64 threadgroups are about two for each core of a large chip. With 256 terms and more, a split takes at least 8 steps.
#: The traffic limit holds the cost of the partial sums at a quarter of the bytes that must be read anyway.
GEMM_SPLIT: Final = GemmSplit(threadgroups=64, least_terms=256, most=32, traffic=4)


def gemm_splits(rule: GemmSplit, threadgroups: int, m: int, n: int, k: int, element_bytes: int) -> int:
    """How many threadgroups share a sum: 1 for no split."""
    if threadgroups == 0 or threadgroups >= rule.threadgroups:
        return 1
    wanted = -(-rule.threadgroups // threadgroups)
    by_traffic = element_bytes * k * (m + n) // (8 * m * n * rule.traffic)
    return max(1, min(wanted, k // rule.least_terms, rule.most, by_traffic))


# --- lora -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoraTile:
    """Tiled form: rows and columns of y in a tile, depth of a step, simdgroups (one below the other)."""

    rows: int
    columns: int
    depth: int
    simdgroups: int


@dataclass(frozen=True)
class LoraVector:
    """Vector form: rows of y in a threadgroup, columns of y in a simdgroup, simdgroups."""

    rows: int
    columns: int
    simdgroups: int


#: The rank is padded to one of these.
LORA_RANKS: Final = (8, 16, 32, 64)

#: Rows up to which the vector form runs: a tile of 32 rows would be three quarters empty.
LORA_VECTOR_ROWS: Final = 8

#: 64 columns a threadgroup: each threadgroup reads A, which for rank 8 adds an eighth to what it reads of the weight.
LORA_VECTORS: Final = (
    Row(LoraVector(1, 4, 16), "one row", {"rows": (None, 1)}),
    Row(LoraVector(4, 4, 16), "16 sums a lane", {"rows": (None, 4)}),
    Row(LoraVector(8, 4, 16), "32 sums a lane; the weight is read once", {"rows": (None, 8)}),
)

LORA_TILES: Final = (
    Row(LoraTile(32, 32, 16, 4), "a larger tile would be half empty", {"rows": (None, 32)}),
    Row(LoraTile(32, 32, 16, 4), "the same", {"columns": (None, 32)}),
    Row(
        LoraTile(64, 64, 16, 4),
        "x, the weight and A take 15,360 B for rank 64 in float32; 32 sums and up to 32 low-rank sums a lane",
    ),
)


# --- reduce -----------------------------------------------------------------------------------------------------------

#: Elements that a thread takes side by side: 16 bytes of float.
REDUCE_ELEMENTS: Final = 4

#: Lanes that share a row; 0: the whole threadgroup.
REDUCE_TEAMS: Final = (
    Row(8, "one packet a lane, 32 rows in a threadgroup of 256; no barrier", {"length": (None, 32)}),
    Row(32, "up to four packets a lane, 8 rows in a threadgroup of 256; no barrier", {"length": (None, 512)}),
    Row(0, "a threadgroup a row, a thread for every packet up to 1024; one barrier"),
)


@dataclass(frozen=True)
class ReduceSplit:
    """When several threadgroups share a result.

    Attributes:
        groups: As many threadgroups as that are made out of few results.
        least: But each has at least so many elements of a result.
    """

    groups: int
    least: int


#: The chunks depend on the shape alone, so that a sum has the same bits everywhere.
REDUCE_ROWS_SPLIT: Final = ReduceSplit(groups=64, least=8192)
REDUCE_COLUMNS_SPLIT: Final = ReduceSplit(groups=64, least=256)


# --- elementwise ------------------------------------------------------------------------------------------------------

#: Elements of a thread: 16 bytes of float.
ELEMENTWISE_PACKET: Final = 4

#: Strided form: threads of a threadgroup along the last dimension, of 256; the others take further rows.
ELEMENTWISE_GROUPS: Final = (
    Row(4, "a last dimension of up to 16 elements: 64 rows a threadgroup", {"across": (None, 4)}),
    Row(32, "up to 128 elements: a simdgroup a row", {"across": (None, 32)}),
    Row(256, "a row is longer than a simdgroup takes in one go: the threadgroup stays in it"),
)

# --- quantized --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuantizedTile:
    """Tiled form: rows and columns of y in a tile, depth of a step, simdgroups below and beside each other."""

    rows: int
    columns: int
    depth: int
    simdgroups_m: int
    simdgroups_n: int


@dataclass(frozen=True)
class QuantizedVector:
    """Vector form: rows of y in a threadgroup, columns of y in a simdgroup, simdgroups."""

    rows: int
    columns: int
    simdgroups: int


#: Rows up to which the vector form runs: a tile of 32 rows would be three quarters empty.
QUANTIZED_VECTOR_ROWS: Final = 8

QUANTIZED_VECTORS: Final = (
    Row(QuantizedVector(1, 4, 8), "8 values of x serve 4 columns", {"rows": (None, 1)}),
    Row(QuantizedVector(4, 4, 8), "16 sums and 32 values of x a lane", {"rows": (None, 4)}),
    Row(
        QuantizedVector(8, 2, 8),
        "16 sums and 64 values of x a lane; the weight is read once",
        {"rows": (None, 8)},
    ),
)

QUANTIZED_TILES: Final = (
    Row(QuantizedTile(32, 32, 32, 2, 2), "a larger tile would be half empty", {"rows": (None, 32)}),
    Row(QuantizedTile(32, 32, 32, 2, 2), "the same", {"columns": (None, 32)}),
    Row(QuantizedTile(64, 64, 32, 2, 2), "18,432 B in float32; the weight's tile is float always"),
)


# --- embedding, rope --------------------------------------------------------------------------------------------------

#: Elements of a row that a thread copies: 16 bytes of float. The threadgroup is shaped by ELEMENTWISE_GROUPS.
EMBEDDING_PACKET: Final = 4

#: Heads that share a sine and a cosine: their cost is spread over so many pairs, and 1 to 4 heads still fill a grid.
ROPE_HEADS: Final = 4

# --- conv2d -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conv2dTile:
    """Output pixels and channels of a tile, depth of a step, simdgroups below and beside each other."""

    pixels: int
    channels: int
    depth: int
    simdgroups_m: int
    simdgroups_n: int


#: Output channels of a group below which one thread computes one element.
CONV2D_DIRECT_CHANNELS: Final = 4

CONV2D_TILES: Final = (
    Row(Conv2dTile(32, 32, 16, 2, 2), "a larger tile would be half empty", {"pixels": (None, 32)}),
    Row(Conv2dTile(32, 32, 16, 2, 2), "the same", {"channels": (None, 32)}),
    Row(Conv2dTile(64, 64, 16, 2, 2), "10,240 B in float32; a gathered element serves 64 channels"),
)

# --- scan ---------------------------------------------------------------------------------------------------------

#: Elements that a thread takes side by side: 16 bytes of float.
SCAN_ELEMENTS: Final = 4

#: Lanes that share a row; 0: the whole threadgroup.
SCAN_TEAMS: Final = (
    Row(
        32,
        "up to four steps of a simdgroup, 8 rows in a threadgroup of 256; no barrier",
        {"length": (None, 512)},
    ),
    Row(0, "a threadgroup a row, a thread for every packet up to 1024; one barrier for each 4,096 elements"),
)

#: Several threadgroups share a row, or several threads a column, only where there are few: it is read twice then.
SCAN_ROWS_SPLIT: Final = ReduceSplit(groups=64, least=8192)
SCAN_COLUMNS_SPLIT: Final = ReduceSplit(groups=64, least=64)

# --- sort, topk ---------------------------------------------------------------------------------------------------

#: Threads of a sorting threadgroup, and pairs of a thread: a tile of 2,048 pairs takes 16 KiB, for int64 24 KiB.
SORT_THREADS: Final = 256
SORT_ELEMENTS: Final = 8

#: Elements of a thread, in registers: a line up to a chunk is read once.
TOPK_ELEMENTS: Final = 8
TOPK_CHUNK: Final = 8192
#: Long lines are cut in chunks that keep their k first, if that leaves at most one in so many.
TOPK_SHRINK: Final = 4

#: Winners that are sorted in threadgroup memory, by k.
TOPK_STAGES: Final = (
    Row(64, "512 B, for int64 768 B: leaves room for many threadgroups", {"k": (None, 64)}),
    Row(1024, "8 KiB, for int64 12 KiB", {"k": (None, 1024)}),
)
#: More are sorted by the kernels of sort.
TOPK_MOST_STAGED: Final = 1024
