// planted: the last thread of a group also writes the first element of the next group
// launch: --threads 128 --group 32 --arg f32[128]=randn --arg f32[129]=zeros
// expect: race_between_groups @write @extra
#include <metal_stdlib>
using namespace metal;

kernel void groups_overlap(device const float* x, device float* out, uint i [[thread_position_in_grid]],
                           uint t [[thread_position_in_threadgroup]]) {
  out[i] = x[i];  // @write
#ifdef DEFECT
  if (t == 31) out[i + 1] = x[i];  // @extra
#else
  if (i == 127) out[i + 1] = x[i];
#endif
}
