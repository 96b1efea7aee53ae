// planted: a quadgroup function reads a lane that the grid does not have
// launch: --threads 6 --group 8 --arg f32[6]=randn --arg f32[6]=empty
// expect: absent_lane @broadcast
#include <metal_stdlib>
using namespace metal;

kernel void quad_partial(device const float* x, device float* out, uint i [[thread_position_in_grid]]) {
#ifdef DEFECT
  out[i] = quad_broadcast(x[i], 3);  // @broadcast
#else
  out[i] = quad_broadcast(x[i], 0);
#endif
}
