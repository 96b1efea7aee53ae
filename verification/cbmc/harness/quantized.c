#include "tile.h"
#include "rows.h"
#include "quantized/index.h"

//: quantized_once | tiled: what a thread writes is inside, and no two write the same result
//: quantized_covers | tiled: every result is written
//: quantized_loads | tiled: exactly what is inside of x is read; each chunk of the weight that is read lies in its row
static inline void quantized_loads(int bm, int bn, int bk, int packet, int threads) {
  int m = any(1, MOST), n = any(1, MOST), k = any(1, MOST), first_row = any(0, MOST / bm) * bm, at = any(0, MOST / bk) * bk;
  int first_column = any(0, MOST / bn) * bn;
  GIVEN(first_row < m && first_column < n, "quantized.py quantized_linear: the grid");
  GIVEN(at < k, "quantized.h: the loop over k");
  int rows = m - first_row, depth = k - at;
  tile_load(bm, bk, packet, threads, rows < bm ? rows : bm, depth < bk ? depth : bk, rows >= bm && depth >= bk);
  int own = any(0, bm - 1), beside = any(0, bk - 1);
  long x = steel_element(own, beside, rows, depth, WIDE);
  if (x >= 0)
    HOLDS(quantized_place(first_row, 0, WIDE) + quantized_place(0, at, WIDE) + x == quantized_element(first_row + own, at + beside, m, k, WIDE), "x");
  int steps = bn * (bk / QUANTIZED_CHUNK) / threads, thread_at = any(0, threads - 1), step = any(0, 15);
  GIVEN(step < steps, "quantized.h load: the loop");
  int row = first_column + steel_packet_row(thread_at, step, bk, QUANTIZED_CHUNK, threads);
  int column = at + steel_packet_column(thread_at, step, bk, QUANTIZED_CHUNK, threads);
  HOLDS(column % QUANTIZED_CHUNK == 0 && row - first_column < bn && column - at + QUANTIZED_CHUNK <= bk, "whole chunks of the tile");
  int bits = any(0, 1) ? 8 : 4, shift = bits == 8 ? 30 : any(5, 7), width = bits == 8 ? QUANTIZED_CHUNK : 1 << shift;
  int groups = bits == 8 ? 1 : ceil_div(k, width);
  int row_bytes = (bits == 8 ? ceil_div(k, width) * width : groups * width) * bits / 8;
  /* Of row 0: a row's own offset is a product, and that of lemma quantized.bytes. */
  long byte = quantized_byte(0, column, 1, k, row_bytes, bits);
  HOLDS((byte >= 0) == (column < k), "exactly what is inside");
  HOLDS((quantized_byte(row, column, n, MOST * 2, WIDE, bits) >= 0) == (row < n), "exactly the rows that there are");
  if (byte >= 0) {
    HOLDS(byte + bits <= row_bytes, "the chunk is in the row");
    HOLDS(byte + steel_packet_place(0, any(0, bits - 1)) < row_bytes, "and each of its bytes");
    long group = quantized_group(0, column, groups, shift), last = quantized_group(0, column + 7, groups, shift);
    HOLDS(group >= 0 && group < groups, "the scale is in the row");
    HOLDS(group == last, "a chunk has one scale");
  }
  REACHED();
}
//: quantized_results | tiled: a result that is inside has the place of its row and column, and the bias of its column
static inline void quantized_results(int bm, int bn, int wm, int wn) {
  int m = any(1, MOST), n = any(1, MOST), simd = any(0, wm * wn - 1), i = any(0, bm / wm - 1), j = any(0, bn / wn - 1);
  int row = any(0, MOST / bm) * bm + simd / wn * (bm / wm), column = any(0, MOST / bn) * bn + simd % wn * (bn / wn);
  long at = steel_element_strided(i, j, m - row, n - column, WIDE, 1);
  if (at >= 0) {
    HOLDS(quantized_place(row, column, WIDE) + at == quantized_element(row + i, column + j, m, n, WIDE), "y");
    HOLDS(quantized_place(0, column, n) + steel_place_strided(i, j, 0, 1) == column + j && column + j < n, "its bias");
  }
  REACHED();
}
#define DO(i, bm, bn, bk, wm, wn, packet) \
  void check_quantized_results_##i(void) { quantized_results(bm, bn, wm, wn); } \
  void check_quantized_once_##i(void) { TileShape t = {bm, bn, wm, wn, 0}; tile_once(t); } \
  void check_quantized_covers_##i(void) { TileShape t = {bm, bn, wm, wn, 0}; tile_covers(t); } \
  void check_quantized_loads_##i(void) { quantized_loads(bm, bn, bk, packet, wm * wn * 32); }
QUANTIZED_TILE_ROWS(DO)
#undef DO

//: quantized_vector | vector form: every result is written by exactly one simdgroup; guards are exact
static inline void quantized_vector(int rows, int columns, int simds) {
  int m = any(1, 8), n = any(1, MOST), k = any(1, MOST), group = any(0, MOST), down = any(0, 8), simd = any(0, simds - 1);
  GIVEN(group < ceil_div(n, columns * simds) && down < ceil_div(m, rows), "quantized.py quantized_linear: the grid");
  int i = any(0, rows - 1), j = any(0, columns - 1), first = down * rows, e = any(0, 7);
  int column = quantized_vector_column(group, simd, simds, columns);
  long at = quantized_element(first + i, column + j, m, n, WIDE);
  HOLDS((at >= 0) == (first + i < m && column + j < n), "exactly what is inside");
  if (at >= 0) HOLDS(at == (long)(first + i) * WIDE + column + j, "the offset in 64 bits");
  int c = any(0, MOST / QUANTIZED_CHUNK) * QUANTIZED_CHUNK;
  GIVEN(c < k, "vector.h: the loop over chunks");
  HOLDS((quantized_element(first + i, c + e, m, k, WIDE) >= 0) == (first + i < m && c + e < k), "exactly what x has");
  HOLDS((quantized_row_byte(column + j, c, n, WIDE, 8) >= 0) == (column + j < n), "exactly the rows of the weight");
  if (at >= 0) HOLDS(quantized_place(0, column + j, n) < n, "a bias that there is");
  int row = any(0, 7), y = any(0, MOST - 1), of = y / columns;
  GIVEN(row < m && y < n, "a result that there is");
  HOLDS(of / simds < ceil_div(n, columns * simds) && row / rows < ceil_div(m, rows), "the grid has it");
  HOLDS(quantized_vector_column(of / simds, of % simds, simds, columns) + y % columns == y, "covered");
  if (column + j == y) HOLDS(group == of / simds && simd == of % simds && j == y % columns, "once");
  REACHED();
}
#define DO(i, rows, columns, simds) void check_quantized_vector_##i(void) { quantized_vector(rows, columns, simds); }
QUANTIZED_VECTOR_ROWS(DO)
#undef DO

//: quantized_wide | bytes and scales are right in 64 bits, and a chunk never straddles two scales
void check_quantized_wide(void) {
  int row = any(0, MOST), column = any(0, EXTENT - 1);
  HOLDS(quantized_row_byte(row, column, MOST + 1, WIDE, 8) == (long)row * WIDE + column, "8 bits");
  HOLDS(quantized_row_byte(row, column, MOST + 1, WIDE, 4) == (long)row * WIDE + column / 2, "4 bits");
  HOLDS(quantized_group(row, column, WIDE, 5) == (long)row * WIDE + column / 32, "scales");
  HOLDS(quantized_group(row, column, 1, 30) == row, "one scale a row");
  REACHED();
}
