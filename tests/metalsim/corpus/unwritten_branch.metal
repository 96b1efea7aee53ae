// planted: one branch forgets its output
// launch: --threads 96 --group 32 --arg f32[96]=randn --arg f32[96]=empty
// expect: unwritten
#include <metal_stdlib>
using namespace metal;

kernel void unwritten_branch(device const float* x, device float* out, uint i [[thread_position_in_grid]]) {
  if (x[i] > 0) {
    out[i] = x[i];
  }
#ifndef DEFECT
  else {
    out[i] = 0;
  }
#endif
}
