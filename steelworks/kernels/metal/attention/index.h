/* Which element an attention kernel touches. A subset of C: the kernels and the proofs include it.
 *
 * Offsets are in elements; -1 stands for "outside: do not touch". */
#pragma once

/* Where a head begins. */
static inline long attention_head(int batch, int head, int batch_stride, int head_stride) {
  return (long)batch * batch_stride + (long)head * head_stride;
}

/* The key head that query head `head` uses. */
static inline int attention_key_head(int head, int group) { return head / group; }

/* Element (row, column) of a head with `rows` rows and `columns` columns. */
static inline long attention_element(long head, int row, int column, int rows, int columns, int row_stride) {
  return row >= 0 && row < rows && column >= 0 && column < columns ? head + (long)row * row_stride + column : -1;
}

/* How many keys query `row` sees: the first ones. Aligned lower-right: the last query sees all keys. */
static inline int attention_key_limit(int row, int q_len, int k_len, int causal) {
  int limit = row + 1 + k_len - q_len;
  if (row < 0 || row >= q_len) return 0;
  if (!causal || limit > k_len) return k_len;
  return limit > 0 ? limit : 0;
}

/* The end of the keys that any query of [first, first + count) sees. */
static inline int attention_block_limit(int first, int count, int q_len, int k_len, int causal) {
  int last = first + count < q_len ? first + count - 1 : q_len - 1;
  return first < q_len ? attention_key_limit(last, q_len, k_len, causal) : 0;
}

/* The mask of (row, key). */
static inline long attention_mask(long head, int row, int key, int q_len, int k_len, int row_stride, int key_stride) {
  return row >= 0 && row < q_len && key >= 0 && key < k_len
             ? head + (long)row * row_stride + (long)key * key_stride : -1;
}

/* Element (row, column) of the output, which is dense: batch, query heads, queries, dv. */
static inline long attention_output(int batch, int head, int row, int column, int q_heads, int q_len, int dv) {
  return row >= 0 && row < q_len && column >= 0 && column < dv
             ? (((long)batch * q_heads + head) * q_len + row) * dv + column : -1;
}

/* Vector form: the rows of one key head are its queries, head by head of the group. */
static inline int attention_vector_query(int row, int q_len) { return row % q_len; }
static inline int attention_vector_head(int key_head, int row, int group, int q_len) {
  return key_head * group + row / q_len;
}
static inline int attention_vector_rows(int group, int q_len) { return group * q_len; }

/* The keys of split `split`: [begin, end). */
static inline int attention_split_begin(int split, int split_keys, int k_len) {
  return split * split_keys < k_len ? split * split_keys : k_len;
}
static inline int attention_split_end(int split, int split_keys, int k_len) {
  return k_len - attention_split_begin(split, split_keys, k_len) < split_keys
             ? k_len : attention_split_begin(split, split_keys, k_len) + split_keys;
}

/* Partial results of the splits: dv sums, the maximum and the sum of weights of each output row. */
static inline long attention_partial(int split, int rows, long row, int column, int dv) {
  return ((long)split * rows + row) * (dv + 2) + column;
}
