// planted: the barrier fences device memory, the tile is in threadgroup memory
// launch: --threads 32,32 --group 16,16 --arg f32[32,32]=randn --arg f32[32,32]=empty
// expect: race_threadgroup @fill @read
#include <metal_stdlib>
using namespace metal;

kernel void transpose_wrong_flag(device const float* x, device float* out,
                                 uint2 t [[thread_position_in_threadgroup]],
                                 uint2 g [[threadgroup_position_in_grid]]) {
  threadgroup float tile[16][17];
  tile[t.y][t.x] = x[(g.y * 16 + t.y) * 32 + g.x * 16 + t.x];  // @fill
#ifdef DEFECT
  threadgroup_barrier(mem_flags::mem_device);
#else
  threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
  out[(g.x * 16 + t.y) * 32 + g.y * 16 + t.x] = tile[t.x][t.y];  // @read
}
