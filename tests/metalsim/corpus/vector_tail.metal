// planted: the last float4 of a row whose length is no multiple of four
// launch: --threads 26 --group 32 --arg f32[102]=randn --arg f32[26]=empty --arg u32=102
// expect: out_of_bounds @read
#include <metal_stdlib>
using namespace metal;

kernel void vector_tail(device const float* x, device float* out, constant uint& n,
                        uint i [[thread_position_in_grid]]) {
#ifdef DEFECT
  float4 v = ((device const float4*)x)[i];  // @read
#else
  float4 v = 0;
  for (uint k = 0; k < 4; ++k) v[k] = i * 4 + k < n ? x[i * 4 + k] : 0.0f;
#endif
  out[i] = v.x + v.y + v.z + v.w;
}
