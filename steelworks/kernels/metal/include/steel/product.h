// The product of two tiles in threadgroup memory, by the fragments of one simdgroup.
#pragma once
#include "steel/fragment.h"
#include "steel/index.h"

namespace steel {

/// sums += left * right over DEPTH terms. `left` begins at this simdgroup's first row, `right` at its first column; TM
/// fragments of rows are ROW_STEP rows apart, TN fragments of columns COL_STEP columns. LEFT_LD and RIGHT_LD are the
/// strides of what is stored. The terms are contiguous in both, but for left with LEFT_ROWS_INNER (its rows are) and for
/// right with RIGHT_COLUMNS_INNER (its columns are). M: the type that is multiplied: T of the tiles, or float where one of
/// them has more than T holds.
template <
    typename M, int TM, int TN, int ROW_STEP, int COL_STEP, int DEPTH, int LEFT_LD, int RIGHT_LD,
    bool LEFT_ROWS_INNER = false, bool RIGHT_COLUMNS_INNER = false, typename L, typename R>
METAL_FUNC void tiles_multiply(
    thread float2 (&sums)[TM][TN], const threadgroup L* left, const threadgroup R* right, int lane) {
  const int lane_row = steel_fragment_row(lane);
  const int lane_column = steel_fragment_column(lane);
  STEEL_UNROLL
  for (int term = 0; term < DEPTH; term += 8) {
    fragment_t<M> rows[TM];
    STEEL_UNROLL
    for (int i = 0; i < TM; ++i) {
      const int row = i * ROW_STEP + lane_row;
      rows[i] = LEFT_ROWS_INNER
          ? fragment_load_transposed<M>(left + (term + lane_column) * LEFT_LD + row, LEFT_LD)
          : fragment_load<M>(left + row * LEFT_LD + term + lane_column);
    }
    STEEL_UNROLL
    for (int j = 0; j < TN; ++j) {
      const int column = j * COL_STEP + lane_column;
      const fragment_t<M> columns = RIGHT_COLUMNS_INNER
          ? fragment_load<M>(right + (term + lane_row) * RIGHT_LD + column)
          : fragment_load_transposed<M>(right + column * RIGHT_LD + term + lane_row, RIGHT_LD);
      STEEL_UNROLL
      for (int i = 0; i < TM; ++i) fragment_mma<M>(sums[i][j], rows[i], columns);
    }
  }
}

}  // namespace steel
