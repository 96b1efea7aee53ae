// planted: a guard leaves part of a tile unwritten, and all of it is summed
// launch: --threads 64 --group 64 --arg f32[50]=randn --arg f32[64]=empty --arg u32=50
// expect: uninitialised @sum
#include <metal_stdlib>
using namespace metal;

kernel void uninitialised_tile(device const float* x, device float* out, constant uint& n,
                               uint t [[thread_position_in_threadgroup]]) {
  threadgroup float tile[64];
#ifdef DEFECT
  if (t < n) tile[t] = x[t];
#else
  tile[t] = t < n ? x[t] : 0.0f;
#endif
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float sum = 0;
  for (int i = 0; i < 64; ++i) sum += tile[i];  // @sum
  out[t] = sum;
}
