// planted: scratch memory of one reduction serves the next one while it is still read
// launch: --threads 128 --group 128 --arg f32[128]=randn --arg f32[128]=empty
// expect: race_threadgroup @reuse @total
#include <metal_stdlib>
using namespace metal;

kernel void scratch_reused(device const float* x, device float* out, uint t [[thread_position_in_threadgroup]],
                           uint s [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float scratch[4];
  float sum = simd_sum(x[t]);
  if (lane == 0) scratch[s] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float total = 0;
  for (int i = 0; i < 4; ++i) total += scratch[i];  // @total
#ifndef DEFECT
  threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
  float largest = simd_max(x[t]);
  if (lane == 0) scratch[s] = largest;  // @reuse
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float most = scratch[0];
  for (int i = 1; i < 4; ++i) most = max(most, scratch[i]);
  out[t] = total + most;
}
