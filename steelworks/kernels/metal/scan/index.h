/* Which element a scan kernel touches, besides steel_line_element and the chunks of reduce/index.h. A subset of C: the
 * kernels and the proofs include it. */
#pragma once

/* The line of a thread, where each thread has one. */
static inline int scan_line(int group, int thread_at, int threads) { return group * threads + thread_at; }

/* The total of a chunk, or the offset it starts from, in dense (rows, chunks); -1: there is none. */
static inline long scan_total(int row, int chunk, int rows, int chunks) {
  return row < rows ? (long)row * chunks + chunk : -1;
}
