// planted: a tree reduction starts before all threads have stored their value
// launch: --threads 256 --group 64 --arg f32[256]=randn --arg f32[4]=empty
// expect: race_threadgroup @store @step
// also: uninitialised
#include <metal_stdlib>
using namespace metal;

kernel void reduction_missing_first_barrier(device const float* x, device float* out,
                                            uint i [[thread_position_in_grid]],
                                            uint t [[thread_position_in_threadgroup]],
                                            uint g [[threadgroup_position_in_grid]]) {
  threadgroup float partial[64];
  partial[t] = x[i];  // @store
#ifndef DEFECT
  threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
  for (uint step = 32; step > 0; step /= 2) {
    if (t < step) partial[t] += partial[t + step];  // @step
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (t == 0) out[g] = partial[0];
}
