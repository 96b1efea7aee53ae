// planted: simdgroup_load of a tile is not separated from the stores of the next step
// launch: --threads 64 --group 64 --arg f32[16,32]=randn --arg f32[32,8]=randn --arg f32[16,8]=empty --arg i32=32
// expect: race_threadgroup @fill
#include <metal_stdlib>
using namespace metal;

kernel void gemm_simdgroup_matrix_reuse(device const float* a, device const float* b, device float* c, constant int& k,
                                        uint t [[thread_index_in_threadgroup]],
                                        uint s [[simdgroup_index_in_threadgroup]]) {
  threadgroup float tile[8 * 8];
  simdgroup_float8x8 left, right, sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (int at = 0; at < k; at += 8) {
    tile[t] = b[at * 8 + t];  // @fill
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_load(left, a + s * 8 * k + at, k);
    simdgroup_load(right, tile, 8);
    simdgroup_multiply_accumulate(sum, left, right, sum);
#ifndef DEFECT
    threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
  }
  simdgroup_store(sum, c + s * 64, 8);
}
