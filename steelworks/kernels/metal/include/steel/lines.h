/* Lines of a tensor: elements along one dimension, `inner` apart. A subset of C: kernels and proofs include it.
 *
 * Offsets are in elements; -1 is "outside: do not touch". */
#pragma once

/* Element `at` of line `line`, on a tensor of (lines / inner, length, inner) whose outermost entries are `stride` apart. */
static inline long steel_line_element(int line, int at, int lines, int length, int stride, int inner) {
  return line >= 0 && line < lines && at >= 0 && at < length
             ? (long)(line / inner) * stride + line % inner + (long)at * inner : -1;
}
