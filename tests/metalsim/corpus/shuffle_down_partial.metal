// planted: a shuffle reduction over 32 lanes, in a last simdgroup of 16
// launch: --threads 48 --group 48 --arg f32[48]=randn --arg f32[2]=empty
// expect: absent_lane @shuffle
#include <metal_stdlib>
using namespace metal;

kernel void shuffle_down_partial(device const float* x, device float* out, uint t [[thread_position_in_threadgroup]],
                                 uint lane [[thread_index_in_simdgroup]],
                                 uint s [[simdgroup_index_in_threadgroup]]) {
  float sum = x[t];
#ifdef DEFECT
  for (ushort step = 16; step > 0; step /= 2) sum += simd_shuffle_down(sum, step);  // @shuffle
#else
  sum = simd_sum(sum);
#endif
  if (lane == 0) out[s] = sum;
}
