// planted: two tiles of 128 x 36 floats need 36 KiB of threadgroup memory
// launch: --threads 128 --group 128 --arg f32[128]=randn --arg f32[128]=empty
// expect: refused "threadgroup memory"
#include <metal_stdlib>
using namespace metal;

kernel void group_memory_limit(device const float* x, device float* out, uint t [[thread_position_in_threadgroup]]) {
#ifdef DEFECT
  threadgroup float a[128][36], b[128][36];
#else
  threadgroup float a[128][32], b[128][32];
#endif
  for (int i = 0; i < 32; ++i) a[t][i] = b[t][i] = x[t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[t] = a[127 - t][0] + b[t][31];
}
