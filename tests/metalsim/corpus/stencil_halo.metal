// planted: a stencil reads its neighbours' elements before they are there
// launch: --threads 256 --group 64 --arg f32[256]=randn --arg f32[256]=empty
// expect: race_threadgroup @fill @read
// also: uninitialised
#include <metal_stdlib>
using namespace metal;

kernel void stencil_halo(device const float* x, device float* out, uint i [[thread_position_in_grid]],
                         uint n [[threads_per_grid]], uint t [[thread_position_in_threadgroup]]) {
  threadgroup float line[66];
  line[t + 1] = x[i];  // @fill
  if (t == 0) line[0] = i > 0 ? x[i - 1] : 0.0f;
  if (t == 63) line[65] = i + 1 < n ? x[i + 1] : 0.0f;
#ifndef DEFECT
  threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
  out[i] = line[t] + line[t + 1] + line[t + 2];  // @read
}
