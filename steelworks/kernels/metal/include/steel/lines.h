/* Lines of a tensor: elements along one dimension, `inner` apart. A subset of C: kernels and proofs include it. */
#pragma once

/* Element `at` of line `line`, on a tensor of (lines / inner, length, inner) whose outermost entries are `stride` apart.
 * The caller sees to it that both are inside. */
static inline long steel_line_element(int line, int at, int stride, int inner) {
  return (long)(line / inner) * stride + line % inner + (long)at * inner;
}
