// planted: a float is read from bytes at an address that is no multiple of four
// launch: --threads 8 --group 8 --arg u8[41]=zeros --arg f32[8]=empty
// expect: misaligned @read
#include <metal_stdlib>
using namespace metal;

kernel void misaligned_scalar(device const uchar* bytes, device float* out, uint i [[thread_position_in_grid]]) {
#ifdef DEFECT
  out[i] = *(device const float*)(bytes + 1 + i * 4);  // @read
#else
  uint bits = 0;
  for (uint k = 0; k < 4; ++k) bits |= uint(bytes[1 + i * 4 + k]) << (8 * k);
  out[i] = as_type<float>(bits);
#endif
}
