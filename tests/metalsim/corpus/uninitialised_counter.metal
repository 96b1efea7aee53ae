// planted: a counter in threadgroup memory is taken to start at zero
// launch: --threads 64 --group 64 --arg i32[64]=randint(0,2) --arg i32[1]=empty
// expect: uninitialised @count
#include <metal_stdlib>
using namespace metal;

kernel void uninitialised_counter(device const int* x, device int* out, uint t [[thread_position_in_threadgroup]]) {
  threadgroup atomic_int counter;
#ifndef DEFECT
  if (t == 0) atomic_store_explicit(&counter, 0, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
  if (x[t]) atomic_fetch_add_explicit(&counter, 1, memory_order_relaxed);  // @count
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t == 0) out[0] = atomic_load_explicit(&counter, memory_order_relaxed);
}
