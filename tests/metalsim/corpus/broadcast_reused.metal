// planted: a value for all is replaced in a loop before all have taken the former one
// launch: --threads 96 --group 96 --arg f32[4]=randn --arg f32[96]=empty
// expect: race_threadgroup @leave @take
#include <metal_stdlib>
using namespace metal;

kernel void broadcast_reused(device const float* x, device float* out, uint t [[thread_position_in_threadgroup]]) {
  threadgroup float value;
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    if (t == 0) value = x[i];  // @leave
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += value * (t + 1);  // @take
#ifndef DEFECT
    threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
  }
  out[t] = sum;
}
