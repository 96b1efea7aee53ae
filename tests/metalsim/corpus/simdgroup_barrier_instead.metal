// planted: simdgroup_barrier orders one simdgroup only, the values come from another one
// launch: --threads 128 --group 128 --arg f32[128]=randn --arg f32[128]=empty
// expect: race_threadgroup @store @load
// also: uninitialised
#include <metal_stdlib>
using namespace metal;

kernel void simdgroup_barrier_instead(device const float* x, device float* out,
                                      uint t [[thread_position_in_threadgroup]]) {
  threadgroup float shared[128];
  shared[t] = x[t];  // @store
#ifdef DEFECT
  simdgroup_barrier(mem_flags::mem_threadgroup);
#else
  threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
  out[t] = shared[t ^ 64];  // @load
}
