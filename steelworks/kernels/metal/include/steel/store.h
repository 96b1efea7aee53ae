// Writes fragments from registers to device memory.
#pragma once
#include "steel/fragment.h"

namespace steel {

/// Writes the ROWS x COLS fragments of a simdgroup. Fragment (i, j) begins at row i * ROW_STEP, column j * COL_STEP of `to`;
/// only the first `rows` x `columns` elements of `to` are inside. `last(value, row, column)` makes the element to be stored.
template <typename O, int ROWS, int COLS, int ROW_STEP, int COL_STEP, typename Last>
METAL_FUNC void fragments_store(
    thread const float2 (&sums)[ROWS][COLS], device O* to, int row_stride, int lane, int rows, int columns,
    thread const Last& last, int column_stride = 1) {
  const int lane_row = steel_fragment_row(lane);
  const int lane_column = steel_fragment_column(lane);
  STEEL_UNROLL
  for (int i = 0; i < ROWS; ++i) {
    STEEL_UNROLL
    for (int j = 0; j < COLS; ++j) {
      const int row = i * ROW_STEP + lane_row;
      const int column = j * COL_STEP + lane_column;
      STEEL_UNROLL
      for (int e = 0; e < 2; ++e) {
        const long at = steel_element_strided(row, column + e, rows, columns, row_stride, column_stride);
        if (at >= 0) to[at] = O(last(sums[i][j][e], row, column + e));
      }
    }
  }
}

/// For fragments_store: the sum as it is.
struct AsIs {
  METAL_FUNC float operator()(float value, int, int) const thread { return value; }
};

}  // namespace steel
