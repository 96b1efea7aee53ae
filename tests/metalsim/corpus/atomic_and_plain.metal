// planted: a counter is added to atomically and read plainly by others in the same interval
// launch: --threads 64 --group 64 --arg i32[64]=ones --arg i32[1]=zeros --arg i32[64]=empty
// expect: race_device @read
#include <metal_stdlib>
using namespace metal;

kernel void atomic_and_plain(device const int* x, device atomic_int* counter, device int* out,
                             uint t [[thread_position_in_threadgroup]]) {
  atomic_fetch_add_explicit(counter, x[t], memory_order_relaxed);
#ifdef DEFECT
  out[t] = *(device int*)counter;  // @read
#else
  threadgroup_barrier(mem_flags::mem_device);
  out[t] = atomic_load_explicit(counter, memory_order_relaxed);
#endif
}
