// planted: the lanes of a simdgroup wait at different simdgroup functions
// launch: --threads 32 --group 32 --arg f32[32]=randn --arg f32[32]=empty
// expect: divergent_simd
#include <metal_stdlib>
using namespace metal;

kernel void simd_sum_in_branches(device const float* x, device float* out, uint lane [[thread_index_in_simdgroup]]) {
#ifdef DEFECT
  if (lane < 16) {
    out[lane] = simd_sum(x[lane]);
  } else {
    out[lane] = simd_max(x[lane]);
  }
#else
  float sum = simd_sum(x[lane]), most = simd_max(x[lane]);
  out[lane] = lane < 16 ? sum : most;
#endif
}
