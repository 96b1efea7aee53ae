// planted: the threads go round a loop with a barrier unequally often
// launch: --threads 32 --group 32 --arg f32[100]=randn --arg f32[32]=zeros --arg u32=100
// expect: divergent_barrier @barrier
// also: race_threadgroup, uninitialised
#include <metal_stdlib>
using namespace metal;

kernel void barrier_uneven_loop(device const float* x, device float* out, constant uint& n,
                                uint t [[thread_position_in_threadgroup]]) {
  threadgroup float shared[32];
  float sum = 0;
#ifdef DEFECT
  for (uint i = t; i < n; i += 32) {
    shared[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);  // @barrier
    sum += shared[t ^ 1];
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
#else
  for (uint base = 0; base < n; base += 32) {
    shared[t] = base + t < n ? x[base + t] : 0.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += shared[t ^ 1];
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
#endif
  out[t] = sum;
}
