#include "tile.h"
#include "rows.h"
#include "gemm/index.h"

//: gemm_once | gemm_tiled: what a thread writes is inside, and no two write the same result
//: gemm_covers | gemm_tiled: every result is written
//: gemm_wide | gemm_tiled: offsets in 64 bits, rows 2^30 apart
//: gemm_loads | gemm_tiled: exactly the rows and terms inside are read, in the first step and in later ones
static inline void gemm_loads(int bm, int bn, int bk, int packet, int threads) {
  int m = any(1, MOST), n = any(1, MOST), terms = any(1, MOST), step = any(0, MOST);
  GIVEN(step < gemm_steps(terms, bk), "gemm.h run: the loop");
  int row_0 = any(0, (MOST - 1) / bm) * bm, column_0 = any(0, (MOST - 1) / bn) * bn;
  GIVEN(row_0 < m && column_0 < n, "lemma gemm.tiles: a tile that there is");
  int rows = steel_left(row_0, m, bm), columns = steel_left(column_0, n, bn);
  int count = step == 0 ? gemm_first_step(terms, bk) : bk;
  int begin = step == 0 ? 0 : gemm_step_begin(step, terms, bk);
  int full = step > 0 && rows == bm && columns == bn;
  HOLDS(begin >= 0 && begin + count <= terms, "the step is within the terms");
  HOLDS(rows >= 1 && row_0 + rows <= m && columns >= 1 && column_0 + columns <= n, "the tile's rows and columns are inside");
  if (any(0, 1)) tile_load(bm, bk, packet, threads, rows, count, full);
  else tile_load(bk, bn, packet, threads, count, columns, full);
  REACHED();
}
#define DO(i, bm, bn, bk, wm, wn, stages, packet_a, packet_b) \
  void check_gemm_once_##i(void) { TileShape t = {bm, bn, wm, wn, 0}; tile_once(t); } \
  void check_gemm_covers_##i(void) { TileShape t = {bm, bn, wm, wn, 0}; tile_covers(t); } \
  void check_gemm_wide_##i(void) { TileShape t = {bm, bn, wm, wn, 0}; tile_wide(t); } \
  void check_gemm_loads_##i(void) { gemm_loads(bm, bn, bk, packet_a, wm * wn * 32); }
GEMM_TILE_ROWS(DO)
#undef DO

//: gemv_dot_outputs | gemv_dot: every result is written by exactly one lane, inside
static inline void gemv_dot_outputs(int rows, int columns, int simds_k, int simds_n) {
  int m = any(1, rows), n = any(1, MOST), row = any(0, rows - 1), column = any(0, MOST - 1);
  GIVEN(m <= rows, "tuning.GEMM: the row's limit on m");
  int group = any(0, MOST), simd_n = any(0, simds_n - 1), lane = any(0, 31);
  GIVEN(group < ceil_div(n, columns * simds_n), "gemm.py _tiles: the grid");
  int column_0 = (group * simds_n + simd_n) * columns, left = steel_left(column_0, n, columns);
  long at = steel_element_strided(lane / columns, lane % columns, m, left, WIDE, 1);
  if (at >= 0) HOLDS(lane < rows * columns && column_0 + lane % columns < n && lane / columns < m, "inside");
  if (at >= 0) HOLDS(at == (long)(lane / columns) * WIDE + lane % columns, "the offset in 64 bits");
  GIVEN(row < m && column < n, "a result that there is");
  int of = column / columns, mine = row * columns + column % columns;
  HOLDS(of / simds_n < ceil_div(n, columns * simds_n) && mine < 32, "the grid has the lane");
  int from = (of / simds_n * simds_n + of % simds_n) * columns;
  HOLDS(steel_element_strided(mine / columns, mine % columns, m, steel_left(from, n, columns), 0, 1) >= 0, "it writes");
  HOLDS(from + mine % columns == column && mine / columns == row, "there");
  if (at >= 0 && lane / columns == row && column_0 + lane % columns == column)
    HOLDS(lane == mine && group == of / simds_n && simd_n == of % simds_n, "no other does");
  REACHED();
}
//: gemv_dot_terms | gemv_dot: every term is taken by exactly one lane, in a packet or as one of what is left
static inline void gemv_dot_terms(int packet, int lanes) {
  int terms = any(0, MOST), term = any(0, MOST), packets = gemv_packets(terms, packet);
  int mine = any(0, packets), lane = any(0, lanes - 1), i = any(0, packet - 1);
  HOLDS(packets >= 0 && packets * packet <= terms, "packets are within the terms");
  HOLDS(terms - packets * packet < packet && packet <= lanes, "a lane each for the others");
  GIVEN(mine < packets, "vector.h: the loop over packets");
  HOLDS(mine * packet + i < terms, "a term that there is");
  GIVEN(term < terms, "a term that there is");
  HOLDS(term < packets * packet ? term / packet < packets : term - packets * packet < lanes, "taken");
  if (packets * packet + lane < terms) HOLDS(mine * packet + i != packets * packet + lane, "not twice");
  REACHED();
}
#define DO(i, rows, columns, simds_k, simds_n) \
  void check_gemv_dot_outputs_##i(void) { gemv_dot_outputs(rows, columns, simds_k, simds_n); } \
  void check_gemv_dot_terms_##i(void) { gemv_dot_terms(8, simds_k * 32); }
GEMV_DOT_ROWS(DO)
#undef DO

//: gemv_columns_outputs | gemv_columns: reads of b are inside; every result is written by exactly one thread, inside
static inline void gemv_columns_outputs(int rows, int packet, int simds) {
  int width = 32 * packet, m = any(1, rows), n = any(1, MOST), group = any(0, MOST);
  GIVEN(group < ceil_div(n, width), "gemm.py _tiles: the grid");
  int column_0 = group * width, columns = steel_left(column_0, n, width);
  int lane = any(0, 31), i = any(0, packet - 1), mine = lane * packet, whole = mine + packet <= columns;
  if (whole || mine + i < columns) HOLDS(column_0 + mine + i < n, "a column that there is");
  int term_0 = any(0, MOST), term = any(0, MOST);
  long b = gemm_operand(column_0 + mine, term_0, WIDE, 1) + gemm_operand(0, term, WIDE, 1) + gemm_operand(i, 0, WIDE, 1);
  HOLDS(b == gemm_operand(column_0 + mine + i, term_0 + term, WIDE, 1), "that column's term");
  int at = any(0, rows * width - 1);
  if (at < m * width && at % width < columns) HOLDS(at / width < m && column_0 + at % width < n, "a result that there is");
  if (at < m * width && at % width < columns)
    HOLDS(gemm_place(at / width, at % width, WIDE, 1) == (long)(at / width) * WIDE + at % width, "the offset in 64 bits");
  int row = any(0, rows - 1), column = any(0, MOST - 1);
  GIVEN(row < m && column < n, "a result that there is");
  int mine_too = row * width + column % width;
  HOLDS(mine_too < m * width && column % width < steel_left(column / width * width, n, width), "it is written");
  HOLDS(column / width < ceil_div(n, width), "the grid has it");
  REACHED();
}
#define DO(i, rows, packet, simds) \
  void check_gemv_columns_outputs_##i(void) { gemv_columns_outputs(rows, packet, simds); }
GEMV_COLUMNS_ROWS(DO)
#undef DO

//: gemm_offsets_wide | operand, matrix, place and batch offsets are right in 64 bits with strides of 2^30
void check_gemm_offsets_wide(void) {
  int row = any(0, MOST), k = any(0, MOST), batch = any(0, MOST);
  HOLDS(gemm_operand(row, k, WIDE, 0) == (long)row * WIDE + k, "operand");
  HOLDS(gemm_operand(row, k, WIDE, 1) == (long)k * WIDE + row, "transposed operand");
  HOLDS(gemm_place(row, k, WIDE, 1) == (long)row * WIDE + k, "place");
  HOLDS(gemm_place(row, k, 1, WIDE) == (long)k * WIDE + row, "place, transposed");
  HOLDS(gemm_matrix(batch, MOST, MOST) == (long)batch * ((long)MOST * MOST), "matrix");
  HOLDS(gemm_partial(batch, row, MOST, MOST) == (long)batch * ((long)MOST * MOST) + row, "partial sum");
  HOLDS(gemm_batch(batch, 1, 1, WIDE, 0, 0) == (long)batch * WIDE, "outer batch");
  HOLDS(gemm_batch(batch, MOST + 1, 1, 0, WIDE, 0) == (long)batch * WIDE, "middle batch");
  HOLDS(gemm_batch(batch, 1, MOST + 1, 0, 0, WIDE) == (long)batch * WIDE, "inner batch");
  REACHED();
}
