/* Which element a softmax kernel touches. A subset of C: the kernels and the proofs include it.
 *
 * Offsets are in elements; -1 stands for "outside: do not touch". The row form uses steel_element. */
#pragma once

/* Column form, on a dense (rows / inner, length, inner) tensor: place `at` of column `column`. */
static inline long softmax_column_element(int column, int at, int rows, int length, int inner) {
  return column < rows && at < length ? ((long)(column / inner) * length + at) * inner + column % inner : -1;
}

/* The column of a lane: a threadgroup has 32 of them. */
static inline int softmax_column(int group, int lane) { return group * 32 + lane; }

/* The places of a column that simdgroup `simd` of `simds` goes through, one after another. */
static inline int softmax_column_place(int step, int simd, int simds) { return step * simds + simd; }
