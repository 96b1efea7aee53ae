// planted: 64 threads exchange values behind a simdgroup_barrier: the kernel takes a simdgroup to have 64 lanes
// launch: --threads 128 --group 128 --arg f32[128]=randn --arg f32[128]=empty
// expect: race_threadgroup @give @take
// also: uninitialised
#include <metal_stdlib>
using namespace metal;

kernel void simd_width_64(device const float* x, device float* out, uint t [[thread_position_in_threadgroup]]) {
#ifdef DEFECT
  const uint width = 64;
#else
  const uint width = 32;
#endif
  threadgroup float given[128];
  given[t] = x[t];  // @give
  simdgroup_barrier(mem_flags::mem_threadgroup);
  out[t] = given[t ^ (width - 1)];  // @take
}
