// planted: the last threadgroup adds up what the others left, without a fence before the counter
// launch: --threads 128 --group 32 --arg i32[128]=randint(0,9) --arg i32[4]=zeros --arg u32[1]=zeros --arg i32[1]=zeros
// expect: race_between_groups @leave @collect
#include <metal_stdlib>
using namespace metal;

kernel void last_group_without_fence(device const int* x, device int* partial, device atomic_uint* counter,
                                     device int* out, uint i [[thread_position_in_grid]],
                                     uint t [[thread_position_in_threadgroup]],
                                     uint g [[threadgroup_position_in_grid]],
                                     uint groups [[threadgroups_per_grid]]) {
  int sum = simd_sum(x[i]);
  if (t == 0) {
    partial[g] = sum;  // @leave
#ifndef DEFECT
    atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst, thread_scope_device);
#endif
    uint done = atomic_fetch_add_explicit(counter, 1u, memory_order_relaxed);
    if (done == groups - 1) {
#ifndef DEFECT
      atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst, thread_scope_device);
#endif
      int total = 0;
      for (uint k = 0; k < groups; ++k) total += partial[k];  // @collect
      out[0] = total;
    }
  }
}
