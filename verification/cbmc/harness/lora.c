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
  switch (any(0, 3)) {
    case 0: tile_load(bm, bk, packet_x, threads, inside_rows, inside_depth, rows >= bm && depth >= bk); break;
    case 1: tile_load(bn, bk, packet_w, threads, inside_columns, inside_depth, columns >= bn && depth >= bk); break;
    case 2: tile_load(rp, bk, packet_a, threads, r, inside_depth, r == rp && depth >= bk); break;
    default: {
      int first = any(0, 7) * ranks, left;
      GIVEN(first < rp, "lora.h: the loop over ranks");
      left = r - first < bk ? r - first : bk;
      tile_load(bn, bk, packet_w, threads, inside_columns, left > 0 ? left : 0, 0);
    }
  }
  REACHED();
}
#define DO(i, bm, bn, bk, rp, simds, packet_x, packet_w, packet_a) \
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
