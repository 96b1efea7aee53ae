/* What all harnesses use. A check is a function named check_..., given to CBMC as its entry; everything that it takes from
 * any() is symbolic. GIVEN states what the host function or the kernel guarantees, with the place that does. */
#pragma once

int nondet_int(void);
void __CPROVER_assume(_Bool condition);
void __CPROVER_assert(_Bool condition, const char *words);

#define GIVEN(condition, why) __CPROVER_assume(condition)
#define HOLDS(condition, words) __CPROVER_assert(condition, words)
/* Must fail: otherwise what is given is contradictory, and all that is proven is empty. */
#define REACHED() __CPROVER_assert(0, "REACHED")

#define MOST 4096        /* of a size */
#define EXTENT 1073741824 /* of a size where no product is taken: what the host functions allow */
#define WIDE 1073741824   /* a stride with which offsets pass 2^31 from row 2 on */

/* Any whole number within limits, both included. */
static inline int any(int least, int most) {
  int made = nondet_int();
  __CPROVER_assume(made >= least && made <= most);
  return made;
}
static inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

/* Where element (row, column) of an 8x8 fragment is: the lane, and which of its two elements. */
static inline int lane_of(int row, int column) {
  return (row / 4) << 4 | (column / 4) << 3 | (row % 4) << 1 | (column % 4) / 2;
}
