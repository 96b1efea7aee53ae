// planted: simd_sum is taken for a fence of threadgroup memory
// launch: --threads 32 --group 32 --arg f32[32]=randn --arg f32[32]=empty
// expect: race_threadgroup @store @load
#include <metal_stdlib>
using namespace metal;

kernel void simd_sum_is_no_fence(device const float* x, device float* out, uint t [[thread_position_in_threadgroup]]) {
  threadgroup float shared[32];
  shared[t] = x[t];  // @store
  float total = simd_sum(x[t]);
#ifndef DEFECT
  simdgroup_barrier(mem_flags::mem_threadgroup);
#endif
  out[t] = total - shared[31 - t];  // @load
}
