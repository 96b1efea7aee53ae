// planted: the last thread reads the element behind the end
// launch: --threads 100 --group 32 --arg f32[100]=randn --arg f32[100]=empty
// expect: out_of_bounds @read
#include <metal_stdlib>
using namespace metal;

kernel void off_by_one_read(device const float* x, device float* out, uint i [[thread_position_in_grid]],
                            uint n [[threads_per_grid]]) {
#ifdef DEFECT
  out[i] = x[i + 1] - x[i];  // @read
#else
  out[i] = i + 1 < n ? x[i + 1] - x[i] : 0.0f;
#endif
}
