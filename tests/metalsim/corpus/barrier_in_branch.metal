// planted: only one simdgroup reaches the barrier
// launch: --threads 64 --group 64 --arg f32[64]=randn --arg f32[64]=zeros
// expect: divergent_barrier @barrier
// also: race_threadgroup, uninitialised
#include <metal_stdlib>
using namespace metal;

kernel void barrier_in_branch(device const float* x, device float* out, uint t [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  shared[t] = x[t];
#ifdef DEFECT
  if (t < 32) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // @barrier
    out[t] = shared[31 - t];
  }
#else
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t < 32) out[t] = shared[31 - t];
#endif
}
