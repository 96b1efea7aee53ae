// planted: the last thread reads behind a threadgroup array
// launch: --threads 64 --group 64 --arg f32[64]=randn --arg f32[64]=empty
// expect: out_of_bounds @read
#include <metal_stdlib>
using namespace metal;

kernel void threadgroup_out_of_bounds(device const float* x, device float* out,
                                      uint t [[thread_position_in_threadgroup]]) {
  threadgroup float line[64];
  line[t] = x[t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
#ifdef DEFECT
  out[t] = line[t + 1];  // @read
#else
  out[t] = line[min(t + 1, 63u)];
#endif
}
