// planted: a scan reads its neighbour and writes its own element in one step
// launch: --threads 64 --group 64 --arg i32[64]=randint(0,9) --arg i32[64]=empty
// expect: race_threadgroup @add
#include <metal_stdlib>
using namespace metal;

kernel void scan_in_place(device const int* x, device int* out, uint t [[thread_position_in_threadgroup]]) {
  threadgroup int sums[64];
  sums[t] = x[t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint step = 1; step < 64; step *= 2) {
    int before = t >= step ? sums[t - step] : 0;
#ifndef DEFECT
    threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
    sums[t] += before;  // @add
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  out[t] = sums[t];
}
