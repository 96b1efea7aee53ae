// planted: with two buffers, the one being filled is read: a stale tile of a former iteration, or half a new one
// launch: --threads 64 --group 64 --arg f32[5,64]=randn --arg f32[64]=empty --arg i32=5
// expect: race_threadgroup @fill @read
#include <metal_stdlib>
using namespace metal;

kernel void double_buffer_phase(device const float* x, device float* out, constant int& rows,
                                uint t [[thread_position_in_threadgroup]]) {
  threadgroup float tile[2][64];
  tile[0][t] = x[t];
  tile[1][t] = 0;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float sum = 0;
  for (int row = 0; row < rows; ++row) {
    if (row + 1 < rows) tile[(row + 1) % 2][t] = x[(row + 1) * 64 + t];  // @fill
#ifdef DEFECT
    sum += tile[(row + 1) % 2][63 - t];  // @read
#else
    sum += tile[row % 2][63 - t];
#endif
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  out[t] = sum;
}
