// An operation on every element, of one tensor or of two that are broadcast together.
//
// A, B: types of the operands; C: what the operation computes in; O: type of the output; OP: the functor (ops.h).
#pragma once
#include "steel/types.h"
#include "elementwise/index.h"
#include "elementwise/ops.h"

namespace steel {

/// N operands side by side, or (with step 0) one that stands for all.
template <typename T, int N> METAL_FUNC Packet<T, N> operands(device const T* from, int at, int step) {
  if (step == 1) return *reinterpret_cast<device const Packet<T, N>*>(from + at);
  Packet<T, N> same;
  for (int i = 0; i < N; ++i) same.at[i] = from[0];
  return same;
}

/// A number as the type of an operand; the host gives an int for int, a float otherwise.
template <typename T> METAL_FUNC T number_as(float number, int whole) {
  return is_same<T, int>::value ? T(whole) : T(number);
}

}  // namespace steel

/// Dense operands. Grid: a thread for every N elements.
template <typename A, typename C, typename O, typename Op, int N>
[[kernel]] void unary_dense(
    device const A* a [[buffer(0)]],
    device O* out [[buffer(1)]],
    constant ElementwiseParams& p [[buffer(2)]],
    uint thread_at [[thread_position_in_grid]]) {
  const int first = int(thread_at) * N;
  const int packet = elementwise_packet(first, p.count, N);
  if (packet >= 0) {
    const steel::Packet<A, N> given = *reinterpret_cast<device const steel::Packet<A, N>*>(a + packet);
    steel::Packet<O, N> made;
    for (int i = 0; i < N; ++i) made.at[i] = O(Op::of(C(given.at[i])));
    *reinterpret_cast<device steel::Packet<O, N>*>(out + packet) = made;
    return;
  }
  for (int i = 0; i < N; ++i) {
    const int at = elementwise_dense(first + i, 1, p.count);
    if (at >= 0) out[at] = O(Op::of(C(a[at])));
  }
}

template <typename A, typename B, typename C, typename O, typename Op, int N>
[[kernel]] void binary_dense(
    device const A* a [[buffer(0)]],
    device const B* b [[buffer(1)]],
    device O* out [[buffer(2)]],
    constant ElementwiseParams& p [[buffer(3)]],
    constant float& number [[buffer(4)]],
    constant int& whole [[buffer(5)]],
    uint thread_at [[thread_position_in_grid]]) {
  const int first = int(thread_at) * N;
  const int packet = elementwise_packet(first, p.count, N);
  if (packet >= 0) {
    const steel::Packet<A, N> lefts = steel::operands<A, N>(a, packet, p.a_step);
    steel::Packet<O, N> made;
    if (p.b_number) {
      for (int i = 0; i < N; ++i) made.at[i] = O(Op::of(C(lefts.at[i]), C(steel::number_as<B>(number, whole))));
    } else {
      const steel::Packet<B, N> rights = steel::operands<B, N>(b, packet, p.b_step);
      for (int i = 0; i < N; ++i) made.at[i] = O(Op::of(C(lefts.at[i]), C(rights.at[i])));
    }
    *reinterpret_cast<device steel::Packet<O, N>*>(out + packet) = made;
    return;
  }
  for (int i = 0; i < N; ++i) {
    const int at = elementwise_dense(first + i, 1, p.count);
    const int left = elementwise_dense(first + i, p.a_step, p.count);
    const int right = elementwise_dense(first + i, p.b_step, p.count);
    if (at < 0) continue;
    const B other = p.b_number ? steel::number_as<B>(number, whole) : b[right];
    out[at] = O(Op::of(C(a[left]), C(other)));
  }
}

/// Operands of any strides; the dimensions but the last are taken apart once for N elements of a row.
/// Grid: (a thread for every N columns, rows).
template <typename A, typename C, typename O, typename Op, int N>
[[kernel]] void unary_strided(
    device const A* a [[buffer(0)]],
    device O* out [[buffer(1)]],
    constant ElementwiseParams& params [[buffer(2)]],
    uint2 thread_at [[thread_position_in_grid]]) {
  const ElementwiseParams p = params;
  const int row = int(thread_at.y);
  const long left = elementwise_a_row(p, row);
  for (int i = 0; i < N; ++i) {
    const int column = int(thread_at.x) * N + i;
    const long to = elementwise_output(p, row, column);
    if (to >= 0) out[to] = O(Op::of(C(a[elementwise_operand(left, column, p.a_column)])));
  }
}

template <typename A, typename B, typename C, typename O, typename Op, int N>
[[kernel]] void binary_strided(
    device const A* a [[buffer(0)]],
    device const B* b [[buffer(1)]],
    device O* out [[buffer(2)]],
    constant ElementwiseParams& params [[buffer(3)]],
    constant float& number [[buffer(4)]],
    constant int& whole [[buffer(5)]],
    uint2 thread_at [[thread_position_in_grid]]) {
  const ElementwiseParams p = params;
  const int row = int(thread_at.y);
  const long left = elementwise_a_row(p, row);
  const long right = elementwise_b_row(p, row);
  for (int i = 0; i < N; ++i) {
    const int column = int(thread_at.x) * N + i;
    const long to = elementwise_output(p, row, column);
    if (to < 0) continue;
    const B other = p.b_number ? steel::number_as<B>(number, whole) : b[elementwise_operand(right, column, p.b_column)];
    out[to] = O(Op::of(C(a[elementwise_operand(left, column, p.a_column)]), C(other)));
  }
}
