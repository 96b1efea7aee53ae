// planted: the multiplication starts before all threads have filled the tiles
// launch: --threads 16,16 --group 16,16 --arg f32[16,32]=randn --arg f32[32,16]=randn --arg f32[16,16]=empty --arg i32=32
// expect: race_threadgroup @fill @use
// also: uninitialised
#include <metal_stdlib>
using namespace metal;

kernel void gemm_read_after_write(device const float* a, device const float* b, device float* c, constant int& k,
                                  uint2 t [[thread_position_in_threadgroup]]) {
  threadgroup float tile_a[16][16];
  threadgroup float tile_b[16][16];
  float sum = 0;
  for (int at = 0; at < k; at += 16) {
    tile_a[t.y][t.x] = a[t.y * k + at + t.x];  // @fill
    tile_b[t.y][t.x] = b[(at + t.y) * 16 + t.x];
#ifndef DEFECT
    threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
    for (int i = 0; i < 16; ++i) {
      sum += tile_a[t.y][i] *  // @use
             tile_b[i][t.x];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  c[t.y * 16 + t.x] = sum;
}
