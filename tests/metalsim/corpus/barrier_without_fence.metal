// planted: threadgroup_barrier(mem_flags::mem_none) waits, and orders no memory
// launch: --threads 128 --group 128 --arg i32[128]=randint(0,9) --arg i32[128]=empty
// expect: race_threadgroup @store @load
#include <metal_stdlib>
using namespace metal;

kernel void barrier_without_fence(device const int* x, device int* out,
                                  uint t [[thread_position_in_threadgroup]]) {
  threadgroup int turned[128];
  turned[t] = x[t];  // @store
#ifdef DEFECT
  threadgroup_barrier(mem_flags::mem_none);
#else
  threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
  out[t] = turned[127 - t];  // @load
}
