// planted: lanes past the end return, then their values are asked for
// launch: --threads 32 --group 32 --arg f32[20]=randn --arg f32[20]=empty --arg u32=20
// expect: absent_lane @shuffle
#include <metal_stdlib>
using namespace metal;

kernel void lane_from_ended_thread(device const float* x, device float* out, constant uint& n,
                                   uint i [[thread_position_in_grid]]) {
#ifdef DEFECT
  if (i >= n) return;
  out[i] = simd_shuffle_xor(x[i], 16);  // @shuffle
#else
  float other = simd_shuffle_xor(i < n ? x[i] : 0.0f, 16);
  if (i < n) out[i] = other;
#endif
}
