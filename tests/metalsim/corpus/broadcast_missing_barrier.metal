// planted: one thread leaves a value for all, who do not wait for it
// launch: --threads 128 --group 64 --arg f32[128]=randn --arg f32[128]=empty
// expect: race_threadgroup @leave @take
// also: uninitialised
#include <metal_stdlib>
using namespace metal;

kernel void broadcast_missing_barrier(device const float* x, device float* out, uint i [[thread_position_in_grid]],
                                      uint t [[thread_position_in_threadgroup]]) {
  threadgroup float first;
  if (t == 0) first = x[i];  // @leave
#ifndef DEFECT
  threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
  out[i] = x[i] - first;  // @take
}
