/* Which element a gemm kernel touches. A subset of C: the kernels and the proofs include it. */
#pragma once

/* Tiles are visited in bands of `band` tile rows, column by column: threadgroups that run together share rows and columns.
 * The tile row and tile column of threadgroup `group`, 0 <= group < tiles_m * tiles_n. */
static inline int gemm_band_rows(int group, int tiles_m, int tiles_n, int band) {
  int first = group / (band * tiles_n) * band;
  return tiles_m - first < band ? tiles_m - first : band;
}
static inline int gemm_tile_row(int group, int tiles_m, int tiles_n, int band) {
  int rows = gemm_band_rows(group, tiles_m, tiles_n, band);
  return group / (band * tiles_n) * band + group % (band * tiles_n) % rows;
}
static inline int gemm_tile_column(int group, int tiles_m, int tiles_n, int band) {
  return group % (band * tiles_n) / gemm_band_rows(group, tiles_m, tiles_n, band);
}

/* Where batch `batch` of an operand begins; size_1 and size_2 are the inner batch dimensions. */
static inline long gemm_batch(int batch, int size_1, int size_2, int stride_0, int stride_1, int stride_2) {
  return (long)(batch / size_2 / size_1) * stride_0 + (long)(batch / size_2 % size_1) * stride_1 +
         (long)(batch % size_2) * stride_2;
}

/* The terms of split `split`: [begin, end). The host makes (k + split_k - 1) / split_k splits, and one if k is 0. */
static inline int gemm_split_begin(int split, int split_k) { return split * split_k; }
static inline int gemm_split_end(int split, int split_k, int k) {
  return k - gemm_split_begin(split, split_k) < split_k ? k : gemm_split_begin(split, split_k) + split_k;
}

/* Terms are taken in steps of `tile`; the first step takes what is left over, so that all others are whole.
 * (Of no terms it takes none: C's division gives 0 for -1 / tile, as tile > 1.) */
static inline int gemm_steps(int terms, int tile) { return (terms + tile - 1) / tile; }
static inline int gemm_first_step(int terms, int tile) { return terms - (terms - 1) / tile * tile; }
/* Where step `step` >= 1 begins. */
static inline int gemm_step_begin(int step, int terms, int tile) {
  return gemm_first_step(terms, tile) + (step - 1) * tile;
}

/* Where row `row` and term `k` of an operand lie; transposed: rows are contiguous. */
static inline long gemm_operand(int row, int k, int row_stride, int transposed) {
  return transposed ? (long)k * row_stride + row : (long)row * row_stride + k;
}

/* Where result matrix `matrix` (batch * splits + split for partial sums) begins. */
static inline long gemm_matrix(int matrix, int m, int n) { return (long)matrix * m * n; }

/* Place `at` < m * n of such a matrix. */
static inline long gemm_partial(int matrix, long at, int m, int n) { return gemm_matrix(matrix, m, n) + at; }

/* How far (row, column) is from (0, 0). */
static inline long gemm_place(int row, int column, int row_stride, int column_stride) {
  return (long)row * row_stride + (long)column * column_stride;
}

/* gemv_dot takes whole packets first; what is left is taken one by one. */
static inline int gemv_packets(int terms, int packet) { return terms / packet; }
