// planted: one thread sets a counter to zero while others already add to it
// launch: --threads 64 --group 64 --arg i32[64]=randint(0,2) --arg i32[1]=zeros
// expect: order_dependent_atomic @add
#include <metal_stdlib>
using namespace metal;

kernel void order_dependent_atomic(device const int* x, device atomic_int* counter,
                                   uint t [[thread_position_in_threadgroup]]) {
  if (t == 0) atomic_store_explicit(counter, 0, memory_order_relaxed);
#ifndef DEFECT
  threadgroup_barrier(mem_flags::mem_device);
#endif
  atomic_fetch_add_explicit(counter, x[t], memory_order_relaxed);  // @add
}
