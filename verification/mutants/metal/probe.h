// A kernel for what no family calls at present: it is tried on mutants of the shared headers.
#pragma once
#include "steel/reduce.h"

/// The sum and the largest of each threadgroup's values, in every thread. Grid: as many threads as values.
template <typename T>
[[kernel]] void probe(
    device const T* x [[buffer(0)]],
    device T* out [[buffer(1)]],
    uint at [[thread_position_in_grid]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint simds [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup T scratch[32];
  const T sum = steel::group_reduce<steel::Sum>(x[at], scratch, int(simd), int(lane), int(simds));
  const T most = steel::group_reduce<steel::Max>(x[at], scratch, int(simd), int(lane), int(simds));
  out[2 * at] = sum;
  out[2 * at + 1] = most;
}
