#include "rowwise.h"
#include "rows.h"
#include "reduce/index.h"
#include "scan/index.h"
#include "steel/lines.h"

//: scan_rows | row form: exactly the elements of the chunk are read and written, each by one member and turn
static inline void scan_rows(int packet, int members) {
  int rows = any(1, MOST), length = any(1, MOST), begin = any(0, MOST - 1), end = any(1, MOST), turn = any(0, MOST);
  GIVEN(begin < end && end <= length, "lemma reduce.chunks");
  int first = begin + turn * members * packet;
  GIVEN(first < end, "scan.h scan_rows: the loop");
  row_step(rows, packet, members, 1, first, end);
  int element = any(0, MOST - 1), of = (element - begin) / packet;
  GIVEN(begin <= element && element < end, "an element of the chunk");
  int from = begin + of / members * (members * packet) + steel_member_column(of % members, 0, members, packet);
  HOLDS(from <= element && element < from + packet, "each element is taken");
  REACHED();
}
#define DO(i, packet, members) void check_scan_rows_##i(void) { scan_rows(packet, members); }
MEMBER_ROWS(DO)
#undef DO

//: scan_lines | column form: each line has one thread; guards of totals are exact
static inline void scan_lines(int threads) {
  int line = any(0, EXTENT), group = any(0, EXTENT / 32), thread_at = any(0, threads - 1), rows = any(1, EXTENT), chunk = any(0, 63);
  HOLDS(scan_line(line / threads, line % threads, threads) == line, "covered");
  GIVEN(group <= EXTENT / threads, "scan.py: the grid is rounded up to whole threadgroups");
  if (scan_line(group, thread_at, threads) == line) HOLDS(group == line / threads && thread_at == line % threads, "once");
  long total = scan_total(line, chunk, rows, 64);
  HOLDS((total >= 0) == (line < rows), "exactly what is inside");
  if (total >= 0) HOLDS(total == (long)line * 64 + chunk, "the offset");
  HOLDS(steel_line_element(MOST, line, EXTENT, 1) == (long)MOST * EXTENT + line, "a line's element in 64 bits");
  REACHED();
}
void check_scan_lines_32(void) { scan_lines(32); }
void check_scan_lines_256(void) { scan_lines(256); }
