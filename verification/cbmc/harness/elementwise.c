#include "common.h"
#include "rows.h"
#include "elementwise/index.h"

//: elementwise_dense | dense form: every element is computed by one thread; packets without guards are inside
void check_elementwise_dense(void) {
  int count = any(1, EXTENT), at = any(0, EXTENT - 1), first = any(0, EXTENT / ELEMENTWISE_PACKET + 256) * ELEMENTWISE_PACKET;
  int i = any(0, ELEMENTWISE_PACKET - 1), packet = elementwise_packet(first, count, ELEMENTWISE_PACKET), whole = packet >= 0;
  if (whole) HOLDS(packet == first && elementwise_inside(packet + i, count), "a packet is inside");
  if (whole) HOLDS(packet + i == elementwise_dense(first + i, 1, count), "and its elements are those with guards");
  if (!whole) HOLDS(!elementwise_inside(first + ELEMENTWISE_PACKET - 1, count), "no packet is refused without need");
  HOLDS((elementwise_inside(first + i, count) != 0) == (first + i < count), "exactly what is inside");
  HOLDS(elementwise_dense(first + i, 1, count) == (first + i < count ? first + i : -1), "an operand of the same shape");
  HOLDS(elementwise_dense(first + i, 0, count) == (first + i < count ? 0 : -1), "one element that stands for all");
  GIVEN(at < count, "an element that there is");
  HOLDS(elementwise_inside(at / ELEMENTWISE_PACKET * ELEMENTWISE_PACKET + at % ELEMENTWISE_PACKET, count), "covered");
  HOLDS(first + i != at || (first / ELEMENTWISE_PACKET == at / ELEMENTWISE_PACKET && i == at % ELEMENTWISE_PACKET), "once");
  REACHED();
}

//: elementwise_rows | strided form: a row number is taken apart into the indices that it was made of, for both operands (three sets of sizes)
static inline void elementwise_rows(int s0, int s1, int s2, int s3, int s4, int s5) {
  ElementwiseParams p = {0};
  int sizes[ELEMENTWISE_DIMS] = {s0, s1, s2, s3, s4, s5}, index[ELEMENTWISE_DIMS], row = 0;
  long at = 0, beside = 0;
  for (int d = 0; d < ELEMENTWISE_DIMS; ++d) {
    p.sizes[d] = sizes[d];
    p.a_strides[d] = d % 3 == 0 ? 0 : d % 3 == 1 ? WIDE : 64;
    p.b_strides[d] = d % 3 == 2 ? 0 : d % 3 == 0 ? WIDE : 1;
    index[d] = any(0, sizes[d] - 1);
    row = row * p.sizes[d] + index[d];
    at += (long)index[d] * p.a_strides[d];
    beside += (long)index[d] * p.b_strides[d];
  }
  HOLDS(elementwise_a_row(p, row) == at, "the first operand, in 64 bits");
  HOLDS(elementwise_b_row(p, row) == beside, "the second operand, in 64 bits");
  int column = any(0, 65535);
  HOLDS(elementwise_operand(elementwise_a_row(p, row), column, WIDE) == at + (long)column * WIDE, "its element, in 64 bits");
  HOLDS(elementwise_operand(elementwise_b_row(p, row), column, 0) == beside, "one element that stands for a row");
  REACHED();
}
void check_elementwise_rows_0(void) { elementwise_rows(1, 1, 1, 1, 3, 4096); }
void check_elementwise_rows_1(void) { elementwise_rows(4, 1, 3, 2, 16, 5); }
void check_elementwise_rows_2(void) { elementwise_rows(2, 8, 4, 2, 7, 32); }

//: elementwise_output | strided form: guards are exact, and every element of a row is one thread's
void check_elementwise_output(void) {
  ElementwiseParams p = {0};
  p.rows = any(1, EXTENT);
  p.columns = 65536;
  int row = any(0, EXTENT), column = any(0, EXTENT);
  long to = elementwise_output(p, row, column);
  HOLDS((to >= 0) == (row < p.rows && column < p.columns), "exactly what is inside");
  if (to >= 0) HOLDS(to == (long)row * 65536 + column, "the offset in 64 bits");
  REACHED();
}
