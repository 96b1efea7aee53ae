// planted: threads past the end return before a barrier that the others wait at
// launch: --threads 128 --group 64 --arg f32[100]=randn --arg f32[100]=zeros --arg u32=100
// expect: divergent_barrier @barrier
// also: uninitialised
#include <metal_stdlib>
using namespace metal;

kernel void barrier_after_return(device const float* x, device float* out, constant uint& n,
                                 uint i [[thread_position_in_grid]], uint t [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
#ifdef DEFECT
  if (i >= n) return;
  shared[t] = x[i];
#else
  shared[t] = i < n ? x[i] : 0.0f;
#endif
  threadgroup_barrier(mem_flags::mem_threadgroup);  // @barrier
  if (i < n) out[i] = shared[t] + shared[t ^ 1];
}
