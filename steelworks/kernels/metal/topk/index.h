/* Which element the top-k kernel touches. A subset of C: the kernels and the proofs include it. */
#pragma once

/* The elements of a chunk: [begin, end). */
static inline int topk_begin(int chunk_at, int chunk, int length) {
  return chunk_at <= (length - 1) / chunk ? chunk_at * chunk : length;
}
static inline int topk_end(int begin, int chunk, int length) { return length - begin < chunk ? length : begin + chunk; }

/* How many winners a chunk has. */
static inline int topk_winners(int begin, int end, int k) { return end - begin < k ? end - begin : k; }

/* The column of a thread's element `step`: neighbours have neighbouring elements. */
static inline int topk_column(int begin, int thread_at, int step, int threads) { return begin + thread_at + step * threads; }

/* Candidate `slot` of a chunk, in dense (rows, kept): every chunk but the last has k of them. -1: none. */
static inline long topk_candidate(int row, int chunk_at, int slot, int rows, int k, int kept) {
  return row >= 0 && row < rows && chunk_at >= 0 && slot >= 0 && slot < k && slot < kept - chunk_at * k
             ? (long)row * kept + chunk_at * k + slot : -1;
}
