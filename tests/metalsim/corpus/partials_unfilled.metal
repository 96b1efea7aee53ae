// planted: the last step of a reduction adds 32 partial sums, of which only four were written
// launch: --threads 128 --group 128 --arg f32[128]=randn --arg f32[1]=empty
// expect: uninitialised @read
#include <metal_stdlib>
using namespace metal;

kernel void partials_unfilled(device const float* x, device float* out, uint t [[thread_position_in_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]], uint s [[simdgroup_index_in_threadgroup]],
                              uint simds [[simdgroups_per_threadgroup]]) {
  threadgroup float partial[32];
  float sum = simd_sum(x[t]);
  if (lane == 0) partial[s] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (s == 0) {
#ifdef DEFECT
    float mine = partial[lane];  // @read
#else
    float mine = lane < simds ? partial[lane] : 0.0f;
#endif
    float total = simd_sum(mine);
    if (lane == 0) out[0] = total;
  }
}
