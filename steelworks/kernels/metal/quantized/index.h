/* Which element a quantized kernel touches. A subset of C: the kernels and the proofs include it.
 *
 * Offsets are in elements; -1 stands for "outside: do not touch". A packed row holds whole chunks of 8 columns. */
#pragma once

#define QUANTIZED_CHUNK 8

/* Element (row, column) of a matrix with row stride `ld`, inside of it. */
static inline long quantized_place(int row, int column, int ld) { return (long)row * ld + column; }
/* Element (row, column) of a matrix with `rows` rows, `columns` columns and row stride `ld`; neither is ever negative. */
static inline long quantized_element(int row, int column, int rows, int columns, int ld) {
  return row < rows && column < columns ? (long)row * ld + column : -1;
}

/* The byte that holds column `column` of a row, for 8 or 4 bits a column; the column is inside. */
static inline long quantized_row_byte(int row, int column, int rows, int row_bytes, int bits) {
  return row < rows ? (long)row * row_bytes + (bits == 4 ? column / 2 : column) : -1;
}
/* The same of a column that may be outside. */
static inline long quantized_byte(int row, int column, int rows, int columns, int row_bytes, int bits) {
  return column < columns ? quantized_row_byte(row, column, rows, row_bytes, bits) : -1;
}

/* The scale and zero point of (row, column). */
static inline long quantized_group(int row, int column, int groups, int group_shift) {
  return (long)row * groups + (column >> group_shift);
}

/* Vector form: the first column of y of a simdgroup. */
static inline int quantized_vector_column(int group, int simd, int simds, int columns) {
  return (group * simds + simd) * columns;
}
