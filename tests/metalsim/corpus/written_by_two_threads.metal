// planted: two threads have the same element
// launch: --threads 64 --group 32 --arg f32[64]=randn --arg f32[32]=empty
// expect: written_twice @write
// also: race_device, race_between_groups
#include <metal_stdlib>
using namespace metal;

kernel void written_by_two_threads(device const float* x, device float* out, uint i [[thread_position_in_grid]]) {
#ifdef DEFECT
  out[i / 2] = x[i];  // @write
#else
  if (i % 2 == 0) out[i / 2] = x[i];
#endif
}
