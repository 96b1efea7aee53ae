// planted: a column past the inner dimension of a tile, which is the next row's first
// launch: --threads 64 --group 64 --arg f32[64]=randn --arg f32[64]=empty
// expect: out_of_bounds @read
#include <metal_stdlib>
using namespace metal;

kernel void tile_column_overflow(device const float* x, device float* out, uint t [[thread_position_in_threadgroup]]) {
  threadgroup float tile[8][8];
  tile[t / 8][t % 8] = x[t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
#ifdef DEFECT
  uint column = t % 8 + (t / 8 < 7 ? 1 : 0);
#else
  uint column = min(t % 8 + 1, 7u);
#endif
  out[t] = tile[t / 8][column];  // @read
}
