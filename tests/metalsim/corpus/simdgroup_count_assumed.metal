// planted: room for the partial sums of four simdgroups, in a threadgroup that has eight
// launch: --threads 256 --group 256 --arg f32[256]=randn --arg f32[1]=empty
// expect: out_of_bounds @store
#include <metal_stdlib>
using namespace metal;

kernel void simdgroup_count_assumed(device const float* x, device float* out,
                                    uint t [[thread_position_in_threadgroup]],
                                    uint lane [[thread_index_in_simdgroup]],
                                    uint s [[simdgroup_index_in_threadgroup]],
                                    uint simds [[simdgroups_per_threadgroup]]) {
#ifdef DEFECT
  threadgroup float partial[4];
#else
  threadgroup float partial[32];
#endif
  float sum = simd_sum(x[t]);
  if (lane == 0) partial[s] = sum;  // @store
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t == 0) {
    float total = 0;
    for (uint i = 0; i < simds; ++i) total += partial[i];
    out[0] = total;
  }
}
