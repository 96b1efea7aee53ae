// planted: all threadgroups add to one element without atomics
// launch: --threads 256 --group 64 --arg f32[256]=randn --arg f32[1]=zeros
// expect: race_between_groups @add
#include <metal_stdlib>
using namespace metal;

kernel void groups_add_to_one(device const float* x,
#ifdef DEFECT
                              device float* out,
#else
                              device atomic_float* out,
#endif
                              uint i [[thread_position_in_grid]], uint t [[thread_position_in_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]], uint s [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[2];
  float sum = simd_sum(x[i]);
  if (lane == 0) partial[s] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t == 0) {
#ifdef DEFECT
    out[0] += partial[0] + partial[1];  // @add
#else
    atomic_fetch_add_explicit(out, partial[0] + partial[1], memory_order_relaxed);
#endif
  }
}
