// planted: each thread copies n / threads elements, the remainder stays
// launch: --threads 64 --group 32 --arg f32[200]=randn --arg f32[200]=empty --arg u32=200
// expect: unwritten
#include <metal_stdlib>
using namespace metal;

kernel void unwritten_tail(device const float* x, device float* out, constant uint& n,
                           uint i [[thread_position_in_grid]], uint threads [[threads_per_grid]]) {
#ifdef DEFECT
  for (uint k = 0; k < n / threads; ++k) out[i + k * threads] = x[i + k * threads];
#else
  for (uint k = i; k < n; k += threads) out[k] = x[k];
#endif
}
