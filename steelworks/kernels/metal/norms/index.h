/* Which element a norm kernel touches. A subset of C: the kernels and the proofs include it.
 *
 * Rows, the weight and the bias (matrices whose rows are 0 apart) go through steel_element and steel_packet_inside. */
#pragma once

/* Whether a column counts in the mean and the spread of its row. */
static inline int norm_counts(int column, int width) { return column < width; }
