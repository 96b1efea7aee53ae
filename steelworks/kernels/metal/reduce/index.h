/* Which element a reduction kernel touches. A subset of C: the kernels and the proofs include it.
 *
 * Offsets are in elements; -1 stands for "outside: do not touch". The row form uses steel_element. */
#pragma once

/* Of work item `item` (the team of the row form): the result it works on, and which chunk of that result. */
static inline int reduce_row(int item, int chunks) { return item / chunks; }
static inline int reduce_chunk(int item, int chunks) { return item % chunks; }

/* The elements of a chunk, none of which is empty: [begin, end). */
static inline int reduce_begin(int chunk, int size) { return chunk * size; }
static inline int reduce_end(int chunk, int size, int length) {
  return length - reduce_begin(chunk, size) < size ? length : reduce_begin(chunk, size) + size;
}

/* Column form, on a dense (rows / inner, length, inner) tensor: place `at` < length of column `column`. */
static inline long reduce_column_element(int column, int at, int rows, int length, int inner) {
  return column < rows ? ((long)(column / inner) * length + at) * inner + column % inner : -1;
}

/* The column of a lane: a threadgroup has 32 of them. */
static inline int reduce_column(int group, int lane) { return group * 32 + lane; }

/* Where the result goes, or the partial result of a chunk: (rows, chunks) in the row form, and (chunks, rows) in the
 * column form, so that the second pass has the same form as the first. */
static inline long reduce_row_result(int row, int chunk, int rows, int chunks) {
  return row < rows ? (long)row * chunks + chunk : -1;
}
static inline long reduce_column_result(int column, int chunk, int rows) {
  return column < rows ? (long)chunk * rows + column : -1;
}
