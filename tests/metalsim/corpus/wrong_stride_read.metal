// planted: the rows of the input are taken to be as long as those of the output
// launch: --threads 24,10 --group 8,2 --arg f32[10,20]=randn --arg f32[10,24]=empty
// expect: out_of_bounds @read
#include <metal_stdlib>
using namespace metal;

kernel void wrong_stride_read(device const float* x, device float* out, uint2 p [[thread_position_in_grid]]) {
#ifdef DEFECT
  out[p.y * 24 + p.x] = x[p.y * 24 + p.x];  // @read
#else
  out[p.y * 24 + p.x] = p.x < 20 ? x[p.y * 20 + p.x] : 0.0f;
#endif
}
