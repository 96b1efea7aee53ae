// Reductions over a simdgroup and over a threadgroup.
#pragma once
#include "steel/types.h"

namespace steel {

struct Sum {
  template <typename T> static METAL_FUNC T neutral() { return T(0); }
  template <typename T> static METAL_FUNC T combine(T a, T b) { return a + b; }
};
struct Product {
  template <typename T> static METAL_FUNC T neutral() { return T(1); }
  template <typename T> static METAL_FUNC T combine(T a, T b) { return a * b; }
};
/// A NaN wins, as in torch.
struct Max {
  template <typename T> static METAL_FUNC T neutral() {
    return numeric_limits<T>::has_infinity ? T(-numeric_limits<T>::infinity()) : numeric_limits<T>::lowest();
  }
  template <typename T> static METAL_FUNC T combine(T a, T b) { return a != a || a > b ? a : b; }
};
struct Min {
  template <typename T> static METAL_FUNC T neutral() {
    return numeric_limits<T>::has_infinity ? numeric_limits<T>::infinity() : numeric_limits<T>::max();
  }
  template <typename T> static METAL_FUNC T combine(T a, T b) { return a != a || a < b ? a : b; }
};

/// The combination of all 32 lanes, in every lane, with the same bits in each if OP is commutative.
/// T is a number of at most 32 bits, or a vector of them. All lanes call it.
template <typename Op, typename T> METAL_FUNC T simd_reduce(T value) {
  for (ushort step = 16; step > 0; step /= 2) value = Op::combine(value, simd_shuffle_xor(value, step));
  return value;
}

/// The combination of all threads of a threadgroup, in every thread. Every thread calls it, and the threadgroup has
/// `simdgroups` full simdgroups. `scratch` has room for `simdgroups` values; it may be used again after the call.
template <typename Op, typename T>
METAL_FUNC T group_reduce(T value, threadgroup T* scratch, int simdgroup, int lane, int simdgroups) {
  value = simd_reduce<Op>(value);
  if (simdgroups == 1) return value;
  if (lane == 0) scratch[simdgroup] = value;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  value = simd_reduce<Op>(lane < simdgroups ? scratch[lane] : Op::template neutral<T>());
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return value;
}

}  // namespace steel
