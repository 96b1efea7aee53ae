// planted: an index is kept in 8 bits and wraps around
// launch: --threads 300 --group 64 --arg f32[300]=randn --arg f32[300]=empty
// expect: written_twice @write
// expect: unwritten
// also: race_between_groups
#include <metal_stdlib>
using namespace metal;

kernel void short_index(device const float* x, device float* out, uint i [[thread_position_in_grid]]) {
#ifdef DEFECT
  uchar at = i;
#else
  uint at = i;
#endif
  out[at] = x[at];  // @write
}
