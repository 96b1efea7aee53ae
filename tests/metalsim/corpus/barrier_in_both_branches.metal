// planted: each branch has a barrier of its own, so the threads wait at different ones
// launch: --threads 64 --group 64 --arg f32[64]=randn --arg f32[64]=zeros
// expect: divergent_barrier @barrier
// also: race_threadgroup
#include <metal_stdlib>
using namespace metal;

kernel void barrier_in_both_branches(device const float* x, device float* out,
                                     uint t [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
#ifdef DEFECT
  if (t < 32) {
    shared[t] = x[t];
    threadgroup_barrier(mem_flags::mem_threadgroup);  // @barrier
  } else {
    shared[t] = -x[t];
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
#else
  shared[t] = t < 32 ? x[t] : -x[t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
  out[t] = shared[63 - t];
}
