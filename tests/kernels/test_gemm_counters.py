"""Matrix product: what the counters say, the order of the tiles, and the tuning table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels.metal import _launch, tuning
from steelworks.kernels.metal import gemm as host
from steelworks.kernels.metal.tuning import GemmChoice, GemmTile, GemvColumns, GemvDot

TILES = tuple(row.choice for row in tuning.GEMM if isinstance(row.choice, GemmTile))
SQUARE = GemmTile(bm=64, bn=64, bk=16, wm=2, wn=2, stages=2)
SQUARE_ONE_STAGE = GemmTile(bm=64, bn=64, bk=16, wm=2, wn=2, stages=1)
F32, F16 = torch.float32, torch.float16
MMA = 8 * 8 * 8


def count(a: torch.Tensor, b: torch.Tensor, choice: GemmChoice, splits: int = 1) -> metalsim.Counters:
    """What a product does, in checking mode."""
    problem = host._problem(a, b, host._Options())
    with metalsim.options(check=True) as session:
        host._run(problem, choice, splits)
    assert not session.findings, session.report().text()
    assert torch.allclose(problem.out.double(), a.double() @ b.double(), rtol=2.0**-10, atol=1e-3)
    return session.counters


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(11)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    def variant(tile: GemmTile, kind: str) -> _launch.Variant:
        sizes = (tile.bm, tile.bn, tile.bk, tile.wm, tile.wn, tile.stages)
        return _launch.Variant("gemm", "gemm_tiled", (kind, kind, *sizes, False, False))

    with metalsim.options(check=True):
        _launch.prepare(*(variant(t, "float") for t in (*TILES, SQUARE_ONE_STAGE)), variant(SQUARE, "half"))


def step_bytes(tile: GemmTile, element: int) -> tuple[int, int]:
    """Threadgroup bytes written and read in one step of BK terms.

    By any scheme that loads a tile once through threadgroup memory and whose simdgroups each read the fragments of
    their block: each element of the tile is written once, and a simdgroup with FM x FN fragments reads FM + FN of
    them for 8 terms.
    """
    fm, fn = tile.bm // tile.wm // 8, tile.bn // tile.wn // 8
    written = (tile.bm + tile.bn) * tile.bk * element
    read = tile.wm * tile.wn * (tile.bk // 8) * (fm + fn) * 64 * element
    return written, read


def anchor(tile: GemmTile, element: int) -> tuple[float, float]:
    """Threadgroup bytes and barriers an MMA of the published scheme with this tile: one buffer, two barriers a step."""
    mmas = tile.bm * tile.bn * tile.bk // MMA
    return sum(step_bytes(tile, element)) / mmas, 2 / mmas


#: The published default: 64 x 64 x 16, 2 x 2 simdgroups, one buffer.
ANCHOR_BYTES, ANCHOR_BARRIERS = anchor(SQUARE, 4)


@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t.bm}x{t.bn}x{t.bk}s{t.stages}")
def test_a_tile_moves_and_waits_exactly_as_much_as_its_shape_says(tile: GemmTile) -> None:
    m, n, steps = 2 * tile.bm, 2 * tile.bn, 4
    k = steps * tile.bk
    counted = count(torch.randn(m, k), torch.randn(k, n), tile)
    written, read = step_bytes(tile, 4)
    assert counted.mmas == m * n * k // MMA
    assert counted.group_written == 4 * steps * written
    assert counted.group_read == 4 * steps * read
    assert counted.barriers == 4 * (steps if tile.stages == 2 else 2 * steps - 1)
    assert counted.device_read == 4 * 4 * (tile.bm + tile.bn) * k
    assert counted.device_written == 4 * m * n
    assert counted.atomics == counted.simdgroup_barriers == 0


@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t.bm}x{t.bn}x{t.bk}s{t.stages}")
def test_no_tile_has_more_traffic_or_barriers_an_mma_than_the_published_scheme(tile: GemmTile) -> None:
    k = 4 * tile.bk
    counted = count(torch.randn(tile.bm, k), torch.randn(k, tile.bn), tile)
    traffic = (counted.group_written + counted.group_read) / counted.mmas
    barriers = counted.barriers / counted.mmas
    same_tile = anchor(tile, 4)
    assert traffic <= same_tile[0]
    assert barriers <= (same_tile[1] / 2 if tile.stages == 2 else same_tile[1])


def test_the_published_default_needs_192_bytes_and_a_64th_of_a_barrier_an_mma() -> None:
    assert (ANCHOR_BYTES, ANCHOR_BARRIERS) == (192.0, 1 / 64)


def test_the_tiles_for_many_tiles_beat_the_published_default() -> None:
    figures = {}
    for tile in TILES:
        if tile.bm >= 64 and tile.bn >= 64:
            traffic = sum(step_bytes(tile, 4)) * MMA / (tile.bm * tile.bn * tile.bk)
            figures[tile.bm, tile.stages] = (traffic, (2 / tile.stages) * MMA / (tile.bm * tile.bn * tile.bk))
    assert figures == {(128, 2): (176.0, 1 / 256), (128, 1): (176.0, 1 / 128), (64, 2): (192.0, 1 / 128)}


def test_two_stages_halve_the_barriers_for_twice_the_threadgroup_memory() -> None:
    a, b = torch.randn(64, 256), torch.randn(256, 64)
    two, one = count(a, b, SQUARE), count(a, b, SQUARE_ONE_STAGE)
    assert (two.barriers, one.barriers) == (16, 31)
    assert (two.group_memory_bytes, one.group_memory_bytes) == (18944, 9472)
    assert (two.group_read, two.group_written) == (one.group_read, one.group_written)


def test_a_rest_of_terms_is_neither_read_twice_nor_read_beyond() -> None:
    for k in (1, 15, 17, 31):
        counted = count(torch.randn(64, k), torch.randn(k, 64), SQUARE)
        assert counted.device_read == 4 * (64 + 64) * k


def test_simdgroups_whose_block_is_outside_multiply_nothing() -> None:
    counted = count(torch.randn(65, 16), torch.randn(16, 64), SQUARE)
    assert counted.mmas == (64 * 64 * 16 + 32 * 64 * 16) // MMA


def test_half_operands_move_half_the_bytes() -> None:
    a, b = torch.randn(64, 64).half(), torch.randn(64, 64).half()
    short, full = count(a, b, SQUARE), count(a.float(), b.float(), SQUARE)
    for name in ("group_read", "group_written", "device_read", "device_written"):
        assert 2 * getattr(short, name) == getattr(full, name), name


def test_one_row_reads_the_matrix_once_and_the_row_once_for_four_columns() -> None:
    n, k = 96, 200
    counted = count(torch.randn(1, k), torch.randn(n, k).mT, GemvDot(1, 4, 1, 4))
    assert counted.device_read == 4 * (n * k + n // 4 * k)
    assert counted.device_written == 4 * n
    assert counted.barriers == 0


def test_one_row_times_contiguous_columns_reads_each_element_once_a_threadgroup() -> None:
    n, k = 256, 100
    counted = count(torch.randn(1, k), torch.randn(k, n), GemvColumns(1, 4, 8))
    assert counted.device_read == 4 * (n * k + 2 * k)
    assert counted.device_written == 4 * n
    assert counted.barriers == 2


def test_a_split_sum_writes_and_reads_each_partial_sum_once() -> None:
    m = n = 64
    whole = count(torch.randn(m, 128), torch.randn(128, n), SQUARE)
    split = count(torch.randn(m, 128), torch.randn(128, n), SQUARE, splits=4)
    partial = 4 * m * n * 4
    assert split.device_read == whole.device_read + partial
    assert split.device_written == whole.device_written + partial


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_every_tile_fits_in_threadgroup_memory_in_every_layout(dtype: torch.dtype) -> None:
    for tile, trans_a, trans_b in itertools.product(TILES, (False, True), (False, True)):
        used = group_bytes(tile, dtype.itemsize, trans_a, trans_b)
        assert used <= 32768, f"{tile} {trans_a} {trans_b}: {used}"


def group_bytes(tile: GemmTile, element: int, trans_a: bool, trans_b: bool) -> int:
    """Threadgroup memory: rows are 16 bytes longer than what they hold."""
    pad = 16 // element
    left = tile.bk * (tile.bm + pad) if trans_a else tile.bm * (tile.bk + pad)
    right = tile.bn * (tile.bk + pad) if trans_b else tile.bk * (tile.bn + pad)
    return tile.stages * (left + right) * element


def test_the_kernels_declare_the_threadgroup_memory_that_the_tiles_need() -> None:
    for tile in TILES:
        counted = count(torch.randn(8, 8), torch.randn(8, 8), tile)
        assert counted.group_memory_bytes == group_bytes(tile, 4, False, False), tile


# --- the order of the tiles -------------------------------------------------------------------------------------------

ORDER = """
kernel void order(device int* out [[buffer(0)]], constant int& tiles_m [[buffer(1)]],
                  constant int& tiles_n [[buffer(2)]], constant int& band [[buffer(3)]],
                  uint group [[thread_position_in_grid]]) {
  out[2 * group] = gemm_tile_row(int(group), tiles_m, tiles_n, band);
  out[2 * group + 1] = gemm_tile_column(int(group), tiles_m, tiles_n, band);
}
"""


@pytest.fixture(scope="module")
def order() -> Iterator[metalsim.MetalKernel]:
    index = (_launch.ROOT / "gemm" / "index.h").read_text()
    yield metalsim.compile_shader("#include <metal_stdlib>\nusing namespace metal;\n" + index + ORDER).order


def visited(order: metalsim.MetalKernel, tiles_m: int, tiles_n: int, band: int) -> list[tuple[int, int]]:
    """(tile row, tile column) by threadgroup, as the kernels' own index functions say."""
    out = torch.full((tiles_m * tiles_n, 2), -1, dtype=torch.int32)
    order(
        out, tiles_m, tiles_n, band, threads=tiles_m * tiles_n, arg_casts={1: "int32", 2: "int32", 3: "int32"}
    )
    return [(int(r), int(c)) for r, c in out.tolist()]


def test_every_tile_is_visited_exactly_once(order: metalsim.MetalKernel) -> None:
    for tiles_m, tiles_n, band in itertools.product((1, 2, 7, 8, 9, 17), (1, 2, 5, 16), (1, 3, 8)):
        every = sorted(itertools.product(range(tiles_m), range(tiles_n)))
        assert sorted(visited(order, tiles_m, tiles_n, band)) == every, (
            f"{tiles_m} x {tiles_n} in bands of {band}"
        )


def test_threadgroups_that_run_together_share_more_panels_in_bands(order: metalsim.MetalKernel) -> None:
    def panels(band: int) -> int:
        places = visited(order, 32, 32, band)
        waves = [places[i : i + 64] for i in range(0, len(places), 64)]
        return max(len({r for r, _ in wave}) + len({c for _, c in wave}) for wave in waves)

    assert (panels(1), panels(tuning.GEMM_BAND)) == (34, 16)


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_row_of_the_table_is_taken_by_some_product() -> None:
    taken = set()
    sizes = (1, 2, 4, 5, 8, 9, 16, 17, 64, 200, 1024, 4096)
    for m, n, size, inner in itertools.product(sizes, sizes, (2, 4), (0, 1)):
        if m > n and n <= 16:
            continue
        tiles = -(-m // 64) * -(-n // 64)
        taken.add(tuning.pick(tuning.GEMM, m=m, n=n, k=64, tiles=tiles, bytes=size, terms_inner=inner))
    assert taken == {row.choice for row in tuning.GEMM}


def test_every_row_has_a_reason() -> None:
    assert all(len(row.reason) > 40 for row in tuning.GEMM)


def test_a_table_without_a_row_for_a_size_says_so() -> None:
    with pytest.raises(InvalidInputError, match="no kernel variant"):
        tuning.pick((tuning.Row("x", "", {"m": (1, 2)}),), m=3)


def test_few_tiles_and_long_sums_are_split_and_others_are_not() -> None:
    rule = tuning.GEMM_SPLIT
    assert tuning.gemm_splits(rule, 1, 64, 64, 8192, 4) == 32
    assert tuning.gemm_splits(rule, 64, 512, 512, 8192, 4) == 1, "enough threadgroups"
    assert tuning.gemm_splits(rule, 1, 64, 64, 511, 4) == 1, "too few terms"
    assert tuning.gemm_splits(rule, 16, 256, 256, 1024, 4) == 1, (
        "partial sums would cost more than they bring"
    )


def test_partial_sums_cost_at_most_a_quarter_of_the_operands() -> None:
    for m, n, k, size in itertools.product((1, 16, 64, 300), (1, 64, 300), (256, 4096, 60000), (2, 4)):
        groups = -(-m // 32) * -(-n // 32)
        splits = tuning.gemm_splits(tuning.GEMM_SPLIT, groups, m, n, k, size)
        assert splits == 1 or 8 * splits * m * n <= size * k * (m + n) / 4, f"{m} {n} {k}"
