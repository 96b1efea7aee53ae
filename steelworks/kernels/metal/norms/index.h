/* Which element a norm kernel touches. A subset of C: the kernels and the proofs include it.
 *
 * Rows, the weight and the bias (rows of a matrix with one row) go through steel_element and steel_packet_inside. */
#pragma once

/* Whether a column counts in the mean and the spread of its row. */
static inline int norm_counts(int column, int width) { return column >= 0 && column < width; }

/* The row of the weight and the bias for a row of the input: they have one row, and none for a row outside. */
static inline int norm_weight_row(int row, int rows) { return row >= 0 && row < rows ? 0 : -1; }
