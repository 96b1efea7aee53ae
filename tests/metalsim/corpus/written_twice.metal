// planted: a thread writes its zero first and its result later
// launch: --threads 64 --group 32 --arg f32[64]=randn --arg f32[64]=empty
// expect: written_twice @again
#include <metal_stdlib>
using namespace metal;

kernel void written_twice(device const float* x, device float* out, uint i [[thread_position_in_grid]]) {
#ifdef DEFECT
  out[i] = 0;
  threadgroup_barrier(mem_flags::mem_none);
#endif
  out[i] = x[i] * 3;  // @again
}
