/* What a simdgroup writes of a tile of results, as fragments_store does it (include/steel/store.h): used by the families
 * whose results are fragments. A place is (row, column) of the whole result. */
#pragma once
#include "common.h"
#include "steel/index.h"

typedef struct {
  int tile_row, tile_column, simd, lane, i, j, e;
} TilePosition;

/* Of a tile of bm x bn by wm x wn simdgroups. In lora, simdgroups lie 8 rows apart and fragments 8 * simdgroups
 * (interleaved); otherwise a simdgroup's fragments are neighbours. */
typedef struct {
  int bm, bn, wm, wn, interleaved;
} TileShape;

static inline TilePosition tile_any(TileShape t, int m, int n) {
  TilePosition p;
  p.tile_row = any(0, (m - 1) / t.bm);
  p.tile_column = any(0, (n - 1) / t.bn);
  p.simd = any(0, t.wm * t.wn - 1);
  p.lane = any(0, 31);
  p.i = any(0, t.bm / t.wm / 8 - 1);
  p.j = any(0, t.bn / t.wn / 8 - 1);
  p.e = any(0, 1);
  return p;
}
/* The position that has to write (row, column). */
static inline TilePosition tile_of(TileShape t, int row, int column) {
  TilePosition p;
  int in_row = row % t.bm, in_column = column % t.bn;
  p.tile_row = row / t.bm;
  p.tile_column = column / t.bn;
  if (t.interleaved) {
    p.simd = in_row / 8 % t.wm;
    p.i = in_row / 8 / t.wm;
  } else {
    p.simd = in_row / (t.bm / t.wm) * t.wn + in_column / (t.bn / t.wn);
    p.i = in_row % (t.bm / t.wm) / 8;
  }
  p.j = in_column % (t.bn / t.wn) / 8;
  p.lane = lane_of(in_row % 8, in_column % 8);
  p.e = column % 2;
  return p;
}
/* Where a position writes: its row and column of the result, or -1 in `at`. */
typedef struct {
  int row, column;
  long at;
} TilePlace;

static inline TilePlace tile_place(TileShape t, TilePosition p, int m, int n, int row_stride) {
  int row_0 = p.tile_row * t.bm, column_0 = p.tile_column * t.bn;
  int block_row = t.interleaved ? p.simd * 8 : p.simd / t.wn * (t.bm / t.wm);
  int block_column = t.interleaved ? 0 : p.simd % t.wn * (t.bn / t.wn);
  int rows = steel_left(row_0, m, t.bm) - block_row, columns = steel_left(column_0, n, t.bn) - block_column;
  int row = p.i * (t.interleaved ? 8 * t.wm : 8) + steel_fragment_row(p.lane);
  int column = p.j * 8 + steel_fragment_column(p.lane) + p.e;
  TilePlace place;
  place.at = steel_element_strided(row, column, rows, columns, row_stride, 1);
  place.row = row_0 + block_row + row;
  place.column = column_0 + block_column + column;
  return place;
}

static inline void tile_once(TileShape t) {
  int m = any(1, MOST), n = any(1, MOST);
  TilePosition p = tile_any(t, m, n), q = tile_any(t, m, n);
  TilePlace a = tile_place(t, p, m, n, 0), b = tile_place(t, q, m, n, 0);
  if (a.at >= 0) HOLDS(a.row >= 0 && a.row < m && a.column >= 0 && a.column < n, "inside");
  int same = p.tile_row == q.tile_row && p.tile_column == q.tile_column && p.simd == q.simd && p.lane == q.lane &&
             p.i == q.i && p.j == q.j && p.e == q.e;
  if (a.at >= 0 && b.at >= 0) HOLDS(same || a.row != b.row || a.column != b.column, "written once");
  REACHED();
}
static inline void tile_covers(TileShape t) {
  int m = any(1, MOST), n = any(1, MOST), row = any(0, MOST - 1), column = any(0, MOST - 1);
  GIVEN(row < m && column < n, "a result that there is");
  TilePosition p = tile_of(t, row, column);
  HOLDS(p.tile_row < ceil_div(m, t.bm) && p.tile_column < ceil_div(n, t.bn), "the grid has the tile");
  HOLDS(p.simd >= 0 && p.simd < t.wm * t.wn && p.lane >= 0 && p.lane < 32, "the thread");
  HOLDS(p.i >= 0 && p.i < t.bm / t.wm / 8 && p.j >= 0 && p.j < t.bn / t.wn / 8, "the fragment");
  TilePlace a = tile_place(t, p, m, n, 0);
  HOLDS(a.at >= 0, "it is written");
  HOLDS(a.row == row && a.column == column, "there");
  REACHED();
}
static inline void tile_wide(TileShape t) {
  TilePosition p = tile_any(t, MOST, MOST);
  TilePlace a = tile_place(t, p, MOST, MOST, WIDE);
  int row = a.row - p.tile_row * t.bm, column = a.column - p.tile_column * t.bn;
  int block_row = t.interleaved ? p.simd * 8 : p.simd / t.wn * (t.bm / t.wm);
  int block_column = t.interleaved ? 0 : p.simd % t.wn * (t.bn / t.wn);
  HOLDS(a.at < 0 || a.at == (long)(row - block_row) * WIDE + (column - block_column), "the offset in 64 bits");
  REACHED();
}

/* What a thread reads of a tile (include/steel/loader.h): `rows` x `columns` elements of the tile are inside; none of them
 * is missed, nothing else is read. `full` says that the kernel takes the way without guards. */
static inline void tile_load(int tile_rows, int tile_columns, int packet, int threads, int rows, int columns, int full) {
  int steps = ceil_div(tile_rows * (tile_columns / packet), threads);
  int thread_at = any(0, threads - 1), step = any(0, steps - 1), i = any(0, packet - 1);
  int row = steel_packet_row(thread_at, step, tile_columns, packet, threads);
  int column = steel_packet_column(thread_at, step, tile_columns, packet, threads) + i;
  GIVEN(tile_rows * (tile_columns / packet) % threads == 0 || row < tile_rows, "loader.h: the break in each loop");
  int read = full || steel_element(row, column, rows, columns, 0) >= 0;
  HOLDS(read == (row < rows && column < columns), "exactly what is inside is read");
  long place = steel_packet_place(steel_place(row, column - i, WIDE), i);
  if (full) HOLDS(place == steel_element(row, column, rows, columns, WIDE), "without guards as with them");
}
