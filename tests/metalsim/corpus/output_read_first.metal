// planted: an output is added to before anything is in it
// launch: --threads 64 --group 32 --arg f32[64]=randn --arg f32[64]=empty
// expect: uninitialised @add
#include <metal_stdlib>
using namespace metal;

kernel void output_read_first(device const float* x, device float* out, uint i [[thread_position_in_grid]]) {
#ifdef DEFECT
  out[i] += x[i];  // @add
#else
  out[i] = x[i];
#endif
}
