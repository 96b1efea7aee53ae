// planted: a float4 is read from an address that is no multiple of 16
// launch: --threads 16 --group 16 --arg f32[65]=randn --arg f32[16]=empty
// expect: misaligned @read
#include <metal_stdlib>
using namespace metal;

kernel void misaligned_float4(device const float* x, device float* out, uint i [[thread_position_in_grid]]) {
#ifdef DEFECT
  float4 v = *(device const float4*)(x + 1 + i * 4);  // @read
#else
  float4 v = *(device const packed_float4*)(x + 1 + i * 4);
#endif
  out[i] = v.x + v.y + v.z + v.w;
}
