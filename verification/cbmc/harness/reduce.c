#include "rowwise.h"
#include "rows.h"
#include "reduce/index.h"

//: reduce_rows | row form: exactly the elements of the chunk are read, each by one member and turn
static inline void reduce_rows(int packet, int members) {
  int rows = any(1, MOST), length = any(1, MOST), begin = any(0, MOST - 1), end = any(1, MOST), turn = any(0, MOST);
  GIVEN(begin < end && end <= length, "lemma reduce.chunks");
  int first = begin + turn * members * packet;
  GIVEN(first < end, "reduce.h reduce_rows: the loop");
  row_step(rows, packet, members, 1, first, end);
  int element = any(0, MOST - 1), of = (element - begin) / packet;
  GIVEN(begin <= element && element < end, "an element of the chunk");
  int from = begin + of / members * (members * packet) + steel_member_column(of % members, 0, members, packet);
  HOLDS(from <= element && element < from + packet, "each element is read");
  REACHED();
}
#define DO(i, packet, members) void check_reduce_rows_##i(void) { reduce_rows(packet, members); }
MEMBER_ROWS(DO)
#undef DO

//: reduce_columns | column form: each column has one lane; guards of results are exact, offsets right in 64 bits
void check_reduce_columns(void) {
  int column = any(0, EXTENT), group = any(0, EXTENT / 32), lane = any(0, 31), rows = any(1, EXTENT), chunk = any(0, 63);
  HOLDS(reduce_column(column / 32, column % 32) == column, "covered");
  if (reduce_column(group, lane) == column) HOLDS(group == column / 32 && lane == column % 32, "once");
  HOLDS((reduce_row_result(column, chunk, rows, 64) >= 0) == (column < rows), "rows: exactly what is inside");
  HOLDS((reduce_column_result(column, chunk, rows) >= 0) == (column < rows), "columns: exactly what is inside");
  if (column < rows) HOLDS(reduce_row_result(column, chunk, rows, 64) == (long)column * 64 + chunk, "rows: the offset");
  long at = reduce_column_element(column % MOST, any(0, EXTENT - 1), MOST, EXTENT, MOST);
  HOLDS(at >= 0 && at < (long)EXTENT * MOST, "columns: the element is inside, in 64 bits");
  REACHED();
}
