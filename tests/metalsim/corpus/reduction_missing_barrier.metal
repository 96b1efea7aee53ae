// planted: the barrier at the end of each step of a tree reduction is missing
// launch: --threads 512 --group 128 --arg f32[512]=randn --arg f32[4]=empty
// expect: race_threadgroup @step
#include <metal_stdlib>
using namespace metal;

kernel void reduction_missing_barrier(device const float* x, device float* out,
                                      uint i [[thread_position_in_grid]],
                                      uint t [[thread_position_in_threadgroup]],
                                      uint g [[threadgroup_position_in_grid]]) {
  threadgroup float partial[128];
  partial[t] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint step = 64; step > 0; step /= 2) {
    if (t < step) partial[t] += partial[t + step];  // @step
#ifndef DEFECT
    threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
  }
  if (t == 0) out[g] = partial[0];
}
