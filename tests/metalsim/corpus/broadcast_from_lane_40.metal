// planted: a value is broadcast from a lane that a simdgroup of 32 does not have
// launch: --threads 64 --group 64 --arg f32[64]=randn --arg f32[64]=empty
// expect: absent_lane @broadcast
#include <metal_stdlib>
using namespace metal;

kernel void broadcast_from_lane_40(device const float* x, device float* out,
                                   uint t [[thread_position_in_threadgroup]]) {
#ifdef DEFECT
  float v = simd_broadcast(x[t], 40);  // @broadcast
#else
  float v = simd_broadcast(x[t], 8);
#endif
  out[t] = v + x[t];
}
