// planted: a cast takes const away, and a parameter is written
// launch: --threads 1 --group 1 --arg f32[1]=empty --arg f32=2.5
// expect: write_to_constant @write
#include <metal_stdlib>
using namespace metal;

kernel void write_to_constant(device float* out, constant float& scale) {
#ifdef DEFECT
  *const_cast<device float*>((const device float*)&scale) = 1.0f;  // @write
#endif
  out[0] = scale;
}
