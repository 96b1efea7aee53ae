/* Which element the rotary embedding kernel touches. A subset of C: the kernel and the proofs include it.
 *
 * Offsets are in elements; -1 stands for "outside: do not touch". A thread has pair number `pair`: turned if it is less
 * than `pairs`, copied otherwise. */
#pragma once

/* The two elements of a pair. */
static inline int rope_first(int pair, int pairs, int interleaved) {
  return pair >= pairs || interleaved ? 2 * pair : pair;
}
static inline int rope_second(int pair, int pairs, int interleaved) {
  return pair >= pairs || interleaved ? 2 * pair + 1 : pair + pairs;
}

/* The frequency of a pair below `pairs` (part 0), and what rounding took from it (part 1). */
static inline int rope_frequency(int part, int pair, int pairs) { return part * pairs + pair; }
/* The offset of a sequence: its own, or with a step of 0 that of all. */
static inline int rope_offset(int batch, int step) { return batch * step; }

/* Element `column` at (batch, head, row) of the input, and of the output, which is dense. The row is one that there is. */
static inline long rope_input(
    int batch, int head, int row, int column, int heads, int width, int batch_stride, int head_stride, int row_stride) {
  return head < heads && column < width
             ? (long)batch * batch_stride + (long)head * head_stride + (long)row * row_stride + column : -1;
}
static inline long rope_output(int batch, int head, int row, int column, int heads, int length, int width) {
  return head < heads && column < width ? (((long)batch * heads + head) * length + row) * width + column : -1;
}
