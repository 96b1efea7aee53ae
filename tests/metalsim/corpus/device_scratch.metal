// planted: threads of a group pass values through device memory behind a barrier that fences threadgroup memory only
// launch: --threads 64 --group 64 --arg f32[64]=randn --arg f32[64]=zeros --arg f32[64]=empty
// expect: race_device @store @load
#include <metal_stdlib>
using namespace metal;

kernel void device_scratch(device const float* x, device float* scratch, device float* out,
                           uint t [[thread_position_in_threadgroup]]) {
  scratch[t] = x[t] * 2;  // @store
#ifdef DEFECT
  threadgroup_barrier(mem_flags::mem_threadgroup);
#else
  threadgroup_barrier(mem_flags::mem_device);
#endif
  out[t] = scratch[63 - t];  // @load
}
