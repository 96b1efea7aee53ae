// planted: the first thread reads the element before the start
// launch: --threads 64 --group 64 --arg f32[64]=randn --arg f32[64]=empty
// expect: out_of_bounds @read
#include <metal_stdlib>
using namespace metal;

kernel void negative_index(device const float* x, device float* out, uint i [[thread_position_in_grid]]) {
  int before = int(i) - 1;
#ifndef DEFECT
  before = max(before, 0);
#endif
  out[i] = x[i] -
           x[before];  // @read
}
