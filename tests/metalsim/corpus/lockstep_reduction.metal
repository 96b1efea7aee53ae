// planted: the last steps of a reduction rely on the lanes of a simdgroup running in lock-step
// launch: --threads 64 --group 32 --arg f32[64]=randn --arg f32[2]=empty
// expect: race_threadgroup @step
#include <metal_stdlib>
using namespace metal;

kernel void lockstep_reduction(device const float* x, device float* out, uint i [[thread_position_in_grid]],
                               uint t [[thread_position_in_threadgroup]], uint g [[threadgroup_position_in_grid]]) {
  threadgroup float partial[32];
  partial[t] = x[i];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (uint step = 16; step > 0; step /= 2) {
    float other = t < step ? partial[t + step] : 0.0f;
#ifndef DEFECT
    simdgroup_barrier(mem_flags::mem_threadgroup);
#endif
    partial[t] += other;  // @step
#ifndef DEFECT
    simdgroup_barrier(mem_flags::mem_threadgroup);
#endif
  }
  if (t == 0) out[g] = partial[0];
}
