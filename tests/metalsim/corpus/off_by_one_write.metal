// planted: the guard is <= instead of <
// launch: --threads 128 --group 64 --arg f32[100]=randn --arg f32[100]=empty --arg u32=100
// expect: out_of_bounds @write
#include <metal_stdlib>
using namespace metal;

kernel void off_by_one_write(device const float* x, device float* out, constant uint& n,
                             uint i [[thread_position_in_grid]]) {
#ifdef DEFECT
  if (i <= n)
#else
  if (i < n)
#endif
    out[i] =  // @write
        x[min(i, n - 1)] * 2;
}
