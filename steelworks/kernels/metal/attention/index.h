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

/* Element (row, column) of a head with `rows` rows and `columns` columns; neither is ever negative. */
static inline long attention_element(long head, int row, int column, int rows, int columns, int row_stride) {
  return row < rows && column < columns ? head + (long)row * row_stride + column : -1;
}
/* The same of a row that is inside: a key before the key limit. */
static inline long attention_key_element(long head, int key, int column, int columns, int row_stride) {
  return column < columns ? head + (long)key * row_stride + column : -1;
}

/* How far row `row` is from the first. */
static inline long attention_row(int row, int row_stride) { return (long)row * row_stride; }

/* How many keys query `row` sees: the first ones (0 or less: none). Aligned lower-right: the last query sees all keys. */
static inline int attention_key_limit(int row, int q_len, int k_len, int causal) {
  return row >= q_len ? 0 : causal ? k_len - (q_len - 1 - row) : k_len;
}

/* The end of the keys that any query of [first, first + count) sees; first < q_len. */
static inline int attention_block_limit(int first, int count, int q_len, int k_len, int causal) {
  int end = first + count < q_len ? first + count : q_len;
  return attention_key_limit(end - 1, q_len, k_len, causal);
}

/* The mask of (row, key), for a key before the row's limit. */
static inline long attention_mask(long head, int row, int key, int row_stride, int key_stride) {
  return head + (long)row * row_stride + (long)key * key_stride;
}

/* Element (row, column) of the output, which is dense: batch, query heads, queries, dv. */
static inline long attention_output(int batch, int head, int row, int column, int q_heads, int q_len, int dv) {
  return (((long)batch * q_heads + head) * q_len + row) * dv + column;
}

/* Element `column` of row `row` of all output rows. */
static inline long attention_combined(long row, int column, int dv) { return row * dv + column; }

/* Vector form: the rows of one key head are its queries, head by head of the group. */
static inline int attention_vector_query(int row, int q_len) { return row % q_len; }
static inline int attention_vector_head(int key_head, int row, int group, int q_len) {
  return key_head * group + row / q_len;
}
static inline int attention_vector_rows(int group, int q_len) { return group * q_len; }

/* The first key of split `split`, which ends where the next begins; both may lie behind the last key. */
static inline int attention_split_begin(int split, int split_keys) { return split * split_keys; }

/* Partial results of the splits: dv sums, the maximum and the sum of weights of each output row. */
static inline long attention_partial(int split, int rows, long row, int column, int dv) {
  return ((long)split * rows + row) * (dv + 2) + column;
}
