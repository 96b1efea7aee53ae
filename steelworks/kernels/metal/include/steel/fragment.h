// 8x8 fragments in the registers of a simdgroup, and their product.
//
// A lane holds two adjacent columns of one row. Which ones is Apple's undocumented map, on which everyone relies:
// steel_fragment_row and steel_fragment_column. The lanes of one row are those that differ in bits 0 and 3.
#pragma once
#include "steel/index.h"
#include "steel/types.h"

namespace steel {

/// What a lane holds of a fragment.
template <typename T> using fragment_t = vec<T, 2>;

/// Elements (0, 0) and (0, 1) seen from this lane, rows LD apart. `from` points to the lane's own first element.
template <typename T, typename S> METAL_FUNC fragment_t<T> fragment_load(const threadgroup S* from) {
  return fragment_t<T>(T(from[0]), T(from[1]));
}
/// The same of a matrix that is stored transposed: its columns are `ld` apart.
template <typename T, typename S> METAL_FUNC fragment_t<T> fragment_load_transposed(const threadgroup S* from, int ld) {
  return fragment_t<T>(T(from[0]), T(from[ld]));
}

/// d += a * b for 8x8 fragments; all lanes of the simdgroup call it. a and b are of one type, the sum is in float.
template <typename T>
METAL_FUNC void fragment_mma(thread float2& d, fragment_t<T> a, fragment_t<T> b) {
  simdgroup_matrix<T, 8, 8> left, right;
  simdgroup_matrix<float, 8, 8> sum;
  reinterpret_cast<thread fragment_t<T>&>(left.thread_elements()) = a;
  reinterpret_cast<thread fragment_t<T>&>(right.thread_elements()) = b;
  reinterpret_cast<thread float2&>(sum.thread_elements()) = d;
  simdgroup_multiply_accumulate(sum, left, right, sum);
  d = reinterpret_cast<thread float2&>(sum.thread_elements());
}

/// The sum and the maximum over the eight columns of a lane's row, in every lane of that row.
METAL_FUNC float fragment_row_sum(float2 of) {
  float sum = of.x + of.y;
  sum += simd_shuffle_xor(sum, ushort(1));
  return sum + simd_shuffle_xor(sum, ushort(8));
}
METAL_FUNC float fragment_row_max(float2 of) {
  float most = max(of.x, of.y);
  most = max(most, simd_shuffle_xor(most, ushort(1)));
  return max(most, simd_shuffle_xor(most, ushort(8)));
}

}  // namespace steel
