// planted: the first threadgroup resets a counter that all groups add to, and no barrier orders groups
// launch: --threads 128 --group 32 --arg i32[128]=ones --arg u32[1]=zeros
// expect: order_dependent_atomic @add
#include <metal_stdlib>
using namespace metal;

kernel void reset_by_first_group(device const int* x, device atomic_uint* counter,
                                 uint i [[thread_position_in_grid]]) {
#ifdef DEFECT
  if (i == 0) atomic_store_explicit(counter, 0u, memory_order_relaxed);
#endif
  atomic_fetch_add_explicit(counter, uint(x[i]), memory_order_relaxed);  // @add
}
