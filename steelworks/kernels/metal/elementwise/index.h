/* Which element an elementwise kernel touches. A subset of C: the kernels and the proofs include it.
 *
 * Offsets are in elements; -1 stands for "outside: do not touch". */
#pragma once
#include "elementwise/params.h"

/* Dense form: output element `at` of `count`, and where its operand is: every `step`-th element (1, or 0: always the first). */
static inline int elementwise_inside(int at, int count) { return at < count; }
static inline int elementwise_dense(int at, int step, int count) { return elementwise_inside(at, count) ? at * step : -1; }
/* A packet that begins at `at`: -1 if it is not inside as a whole. */
static inline int elementwise_packet(int at, int count, int packet) { return at <= count - packet ? at : -1; }

/* Strided form: where row `row` of an operand begins; its rows are all dimensions but the last. */
static inline long elementwise_a_row(ElementwiseParams p, int row) {
  long at = 0;
  for (int d = ELEMENTWISE_DIMS - 1; d >= 0; --d) {
    at += (long)(row % p.sizes[d]) * p.a_strides[d];
    row /= p.sizes[d];
  }
  return at;
}
static inline long elementwise_b_row(ElementwiseParams p, int row) {
  long at = 0;
  for (int d = ELEMENTWISE_DIMS - 1; d >= 0; --d) {
    at += (long)(row % p.sizes[d]) * p.b_strides[d];
    row /= p.sizes[d];
  }
  return at;
}

/* Element `column` of an operand's row that begins at `row`. */
static inline long elementwise_operand(long row, int column, int stride) { return row + (long)column * stride; }

/* Whether (row, column) is inside, and the output element it is. */
static inline long elementwise_output(ElementwiseParams p, int row, int column) {
  return row < p.rows && column < p.columns ? (long)row * p.columns + column : -1;
}
