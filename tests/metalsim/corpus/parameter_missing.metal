// planted: the third of two parameters is read
// launch: --threads 32 --group 32 --arg f32[32]=empty --arg i32=3,4
// expect: out_of_bounds @read
#include <metal_stdlib>
using namespace metal;

kernel void parameter_missing(device float* out, constant int* parameters, uint i [[thread_position_in_grid]]) {
#ifdef DEFECT
  out[i] = float(parameters[0] + parameters[2]);  // @read
#else
  out[i] = float(parameters[0] + parameters[1]);
#endif
}
