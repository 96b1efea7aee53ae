// planted: the rows of the output are taken to be shorter than they are
// launch: --threads 24,10 --group 8,2 --arg f32[10,24]=randn --arg f32[10,24]=empty
// expect: unwritten
// expect: written_twice @write
// also: race_between_groups, race_device
#include <metal_stdlib>
using namespace metal;

kernel void wrong_stride_write(device const float* x, device float* out, uint2 p [[thread_position_in_grid]]) {
#ifdef DEFECT
  out[p.y * 20 + p.x] = x[p.y * 24 + p.x];  // @write
#else
  out[p.y * 24 + p.x] = x[p.y * 24 + p.x];
#endif
}
