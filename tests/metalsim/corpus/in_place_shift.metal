// planted: input and output are one tensor, and a thread reads what its neighbour replaces
// launch: --threads 64 --group 64 --arg f32[65]=randn --arg @0 --arg f32[65]=zeros
// expect: race_device @shift
#include <metal_stdlib>
using namespace metal;

kernel void in_place_shift(device const float* x, device float* same, device float* other,
                           uint i [[thread_position_in_grid]]) {
#ifdef DEFECT
  same[i] = x[i + 1];  // @shift
#else
  other[i] = x[i + 1];
#endif
}
