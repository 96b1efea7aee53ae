#include "rowwise.h"
#include "rows.h"
#include "softmax/index.h"

//: softmax_rows | row forms: exactly what is inside is read and written, also in each turn of the looped form
static inline void softmax_rows(int packet, int members) {
  int rows = any(1, EXTENT), length = any(1, EXTENT), first = any(0, EXTENT);
  GIVEN(first < length, "softmax.h softmax_row_looped: the loop");
  row_step(rows, packet, members, 16 / packet > 0 ? 16 / packet : 1, first, length);
  REACHED();
}
#define DO(i, packet, members) void check_softmax_rows_##i(void) { softmax_rows(packet, members); }
MEMBER_ROWS(DO)
#undef DO

//: softmax_columns | column form: every place of a column is some simdgroup's, once; each lane of the grid has one column
static inline void softmax_columns(int keep, int simds) {
  int length = any(1, keep > 0 ? 32 * keep : MOST), at = any(0, MOST - 1);
  GIVEN(keep == 0 || length <= simds * keep, "softmax.py: a simdgroup for every KEEP places");
  GIVEN(at < length, "a place that there is");
  int simd = at % simds, step = at / simds;
  HOLDS(softmax_column_place(step, simd, simds) == at, "covered");
  HOLDS(keep == 0 || step < keep, "it is kept");
  int other = any(0, 31), turn = any(0, MOST);
  GIVEN(other < simds, "a simdgroup that there is");
  HOLDS(softmax_column_place(turn, other, simds) != at || (turn == step && other == simd), "once");
  int column = any(0, EXTENT);
  HOLDS(softmax_column(column / 32, column % 32) == column, "each column has a lane");
  REACHED();
}
#define DO(i, keep) \
  void check_softmax_columns_1_##i(void) { softmax_columns(keep, 1); } \
  void check_softmax_columns_7_##i(void) { softmax_columns(keep, 7); } \
  void check_softmax_columns_32_##i(void) { softmax_columns(keep, 32); }
SOFTMAX_COLUMN_ROWS(DO)
#undef DO

//: softmax_wide | column form: guards are exact, offsets right in 64 bits
void check_softmax_wide(void) {
  int column = any(0, MOST), at = any(0, EXTENT), rows = any(0, MOST), length = any(0, EXTENT);
  long place = softmax_column_element(column, at, rows, length, 32768);
  HOLDS((place >= 0) == (column < rows && at < length), "exactly what is inside");
  if (place >= 0) HOLDS(place == (long)at * 32768 + column, "the offset");
  REACHED();
}
