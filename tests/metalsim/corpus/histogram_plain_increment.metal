// planted: bins of a threadgroup are counted up without atomics
// launch: --threads 256 --group 256 --arg i32[256]=randint(0,8) --arg i32[8]=empty
// expect: race_threadgroup @count
#include <metal_stdlib>
using namespace metal;

kernel void histogram_plain_increment(device const int* x, device int* out,
                                      uint t [[thread_position_in_threadgroup]]) {
#ifdef DEFECT
  threadgroup int bins[8];
  if (t < 8) bins[t] = 0;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  bins[x[t]] += 1;  // @count
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t < 8) out[t] = bins[t];
#else
  threadgroup atomic_int bins[8];
  if (t < 8) atomic_store_explicit(&bins[t], 0, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&bins[x[t]], 1, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t < 8) out[t] = atomic_load_explicit(&bins[t], memory_order_relaxed);
#endif
}
