#include "rowwise.h"
#include "rows.h"
#include "norms/index.h"

//: norms_rows | exactly what is inside is read and written, also in each turn of the looped form
static inline void norms_rows(int packet, int members) {
  int rows = any(1, EXTENT), width = any(1, EXTENT), first = any(0, EXTENT);
  GIVEN(first < width, "norms.h norm_row_looped: the loop");
  row_step(rows, packet, members, 16 / packet > 0 ? 16 / packet : 1, first, width);
  REACHED();
}
#define DO(i, packet, members) void check_norms_rows_##i(void) { norms_rows(packet, members); }
MEMBER_ROWS(DO)
#undef DO

//: norms_counts | an element counts exactly if it is read: weight and bias, whose rows are 0 apart, are read inside too
void check_norms_counts(void) {
  int row = any(0, EXTENT), rows = any(1, EXTENT), column = any(0, EXTENT), width = any(1, EXTENT);
  long at = steel_element(row, column, rows, width, 0);
  if (row < rows) HOLDS((norm_counts(column, width) != 0) == (at >= 0), "exactly what is read");
  if (at >= 0) HOLDS(at == column && at < width, "the weight's element");
  REACHED();
}
