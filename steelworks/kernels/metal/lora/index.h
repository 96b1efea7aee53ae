/* Which element a LoRA kernel touches. A subset of C: the kernels and the proofs include it.
 *
 * Offsets are in elements; -1 stands for "outside: do not touch". */
#pragma once

/* Element (row, column) of a matrix with row stride `ld`, inside of it. */
static inline long lora_place(int row, int column, int ld) { return (long)row * ld + column; }
/* The same of a matrix with `rows` rows, for a column that is inside. */
static inline long lora_row_element(int row, int column, int rows, int ld) {
  return row < rows ? lora_place(row, column, ld) : -1;
}
/* The same of a matrix with `rows` rows and `columns` columns; neither number is ever negative. */
static inline long lora_element(int row, int column, int rows, int columns, int ld) {
  return row < rows && column < columns ? lora_place(row, column, ld) : -1;
}

/* Where A of an adapter (r x k, dense) and B (n x r, dense) begin. */
static inline long lora_a(int adapter, int r, int k) { return (long)adapter * r * k; }
static inline long lora_b(int adapter, int n, int r) { return (long)adapter * n * r; }

/* The adapter of a row; negative (none) for every number that names no adapter. */
static inline int lora_adapter(int given, int adapters) { return given < adapters ? given : -1; }

/* Vector form: the first column of a simdgroup. */
static inline int lora_vector_column(int group, int simd, int simds, int columns) {
  return (group * simds + simd) * columns;
}
