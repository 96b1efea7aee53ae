#include "tile.h"
#include "rows.h"
#include "lora/index.h"

//: lora_once | tiled: what a thread writes is inside, and no two write the same result
//: lora_covers | tiled: every result is written
//: lora_loads | tiled: exactly what is inside of x, the weight, A and B is read, with and without guards
static inline void lora_loads(int bm, int bn, int bk, int rp, int packet_x, int packet_w, int packet_a, int threads) {
  int m = any(1, MOST), n = any(1, MOST), k = any(1, MOST), r = any(1, 64);
  GIVEN(r <= rp, "lora.py _run: the rank is padded to the next of tuning.LORA_RANKS");
  int first_row = any(0, MOST / bm) * bm, first_column = any(0, MOST / bn) * bn, at = any(0, MOST / bk) * bk;
  GIVEN(first_row < m && first_column < n, "lora.py _run: the grid");
  GIVEN(at < k, "lora.h: the loop over k");
  int rows = m - first_row, columns = n - first_column, depth = k - at, ranks = rp < bk ? rp : bk;
  int inside_rows = rows < bm ? rows : bm, inside_columns = columns < bn ? columns : bn, inside_depth = depth < bk ? depth : bk;
  int row = any(0, (bm > bn ? bm : bn) - 1), column = any(0, bk - 1);
  long x = steel_element(row, column, rows, depth, WIDE), w = steel_element(row, column, columns, depth, WIDE);
  if (x >= 0) HOLDS(lora_place(first_row, 0, WIDE) + lora_place(0, at, WIDE) + x == lora_element(first_row + row, at + column, m, k, WIDE), "x");
  if (w >= 0) HOLDS(lora_place(first_column, 0, WIDE) + lora_place(0, at, WIDE) + w == lora_element(first_column + row, at + column, n, k, WIDE), "w");
  long a = steel_element(row, column, r, depth, WIDE);
  if (a >= 0) HOLDS(lora_place(0, at, WIDE) + a == lora_element(row, at + column, r, k, WIDE), "A");
  if (row < rows) HOLDS(lora_place(0, first_row + row, m) < m, "the adapter's number of a row that there is");
  switch (any(0, 3)) {
    case 0: tile_load(bm, bk, packet_x, threads, inside_rows, inside_depth, rows >= bm && depth >= bk); break;
    case 1: tile_load(bn, bk, packet_w, threads, inside_columns, inside_depth, columns >= bn && depth >= bk); break;
    case 2: tile_load(rp, bk, packet_a, threads, r, inside_depth, r == rp && depth >= bk); break;
    default: {
      int first = any(0, 7) * ranks, left;
      GIVEN(first < rp, "lora.h: the loop over ranks");
      left = r - first < bk ? r - first : bk;
      tile_load(bn, bk, packet_w, threads, inside_columns, left > 0 ? left : 0, 0);
      long b = steel_element(row, column, columns, left, WIDE);
      if (b >= 0)
        HOLDS(lora_place(first_column, 0, WIDE) + lora_place(0, first, WIDE) + b == lora_element(first_column + row, first + column, n, r, WIDE), "B");
    }
  }
  REACHED();
}
//: lora_results | tiled: a result that is inside has the place of its row and column, and the bias of its column
static inline void lora_results(int bm, int bn, int simds) {
  int m = any(1, MOST), n = any(1, MOST), first_row = any(0, MOST / bm) * bm, first_column = any(0, MOST / bn) * bn;
  int own = any(0, simds - 1) * 8, row = any(0, bm - 1), column = any(0, bn - 1);
  long at = steel_element_strided(row, column, m - first_row - own, n - first_column, WIDE, 1);
  if (at >= 0) {
    long y = lora_place(first_row + own, first_column, WIDE) + at;
    HOLDS(y == lora_element(first_row + own + row, first_column + column, m, n, WIDE), "y");
    HOLDS(lora_place(0, first_column, n) + steel_place_strided(row, column, 0, 1) == first_column + column, "its bias");
    HOLDS(first_column + column < n, "a bias that there is");
  }
  REACHED();
}
//: lora_adapters | a scale is read only of an adapter that there is
void check_lora_adapters(void) {
  int adapters = any(1, EXTENT), adapter = lora_adapter(nondet_int(), adapters);
  if (adapter >= 0) HOLDS(lora_place(0, adapter, adapters) == adapter && adapter < adapters, "inside");
  REACHED();
}
#define DO(i, bm, bn, bk, rp, simds, packet_x, packet_w, packet_a) \
  void check_lora_results_##i(void) { lora_results(bm, bn, simds); } \
  void check_lora_once_##i(void) { TileShape t = {bm, bn, simds, 1, 1}; tile_once(t); } \
  void check_lora_covers_##i(void) { TileShape t = {bm, bn, simds, 1, 1}; tile_covers(t); } \
  void check_lora_loads_##i(void) { lora_loads(bm, bn, bk, rp, packet_x, packet_w, packet_a, simds * 32); }
LORA_TILE_ROWS(DO)
#undef DO

//: lora_vector | vector form: every result is written by exactly one simdgroup; guards are exact
static inline void lora_vector(int rows, int columns, int simds) {
  int m = any(1, 8), n = any(1, MOST), group = any(0, MOST), down = any(0, 8), simd = any(0, simds - 1);
  GIVEN(group < ceil_div(n, columns * simds) && down < ceil_div(m, rows), "lora.py _run: the grid");
  int i = any(0, rows - 1), j = any(0, columns - 1), first = down * rows;
  int column = lora_vector_column(group, simd, simds, columns);
  long at = lora_element(first + i, column + j, m, n, WIDE);
  HOLDS((at >= 0) == (first + i < m && column + j < n), "exactly what is inside");
  if (at >= 0) HOLDS(at == (long)(first + i) * WIDE + column + j, "the offset in 64 bits");
  HOLDS((lora_row_element(column + j, 0, n, WIDE) >= 0) == (column + j < n), "exactly the rows of the weight");
  if (at >= 0) HOLDS(lora_place(0, column + j, n) < n, "a bias that there is");
  if (first + i < m) HOLDS(lora_place(0, first + i, m) < m, "the adapter's number of a row that there is");
  int row = any(0, 7), y = any(0, MOST - 1), of = y / columns;
  GIVEN(row < m && y < n, "a result that there is");
  HOLDS(of / simds < ceil_div(n, columns * simds) && row / rows < ceil_div(m, rows), "the grid has it");
  HOLDS(lora_vector_column(of / simds, of % simds, simds, columns) + y % columns == y, "covered");
  if (column + j == y) HOLDS(group == of / simds && simd == of % simds && j == y % columns, "once");
  REACHED();
}
#define DO(i, rows, columns, simds) void check_lora_vector_##i(void) { lora_vector(rows, columns, simds); }
LORA_VECTOR_ROWS(DO)
#undef DO

//: lora_wide | places in x, the weight, A and B are right in 64 bits
void check_lora_wide(void) {
  int row = any(0, MOST), column = any(0, WIDE - 1), adapter = any(0, MOST);
  HOLDS(lora_place(row, column, WIDE) == (long)row * WIDE + column, "a place");
  HOLDS(lora_a(adapter, 64, WIDE) == (long)adapter * 64 * WIDE, "A");
  HOLDS(lora_b(adapter, WIDE, 64) == (long)adapter * 64 * WIDE, "B");
  REACHED();
}
