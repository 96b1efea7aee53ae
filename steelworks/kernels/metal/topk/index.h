/* Which element the top-k kernel touches. A subset of C: the kernels and the proofs include it. */
#pragma once

/* The elements of a chunk, none of which is empty: [begin, end). */
static inline int topk_begin(int chunk_at, int chunk) { return chunk_at * chunk; }
static inline int topk_end(int begin, int chunk, int length) { return length - begin < chunk ? length : begin + chunk; }

/* How many winners a chunk has. */
static inline int topk_winners(int begin, int end, int k) { return end - begin < k ? end - begin : k; }

/* The column of a thread's element `step`: neighbours have neighbouring elements. */
static inline int topk_column(int begin, int thread_at, int step, int threads) { return begin + thread_at + step * threads; }

/* Candidate `slot` < topk_winners() of a chunk, in dense (rows, kept): every chunk but the last has k of them. */
static inline long topk_candidate(int row, int chunk_at, int slot, int k, int kept) {
  return (long)row * kept + (long)chunk_at * k + slot;
}
