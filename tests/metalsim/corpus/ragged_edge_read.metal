// planted: the edge tiles of a matrix of 20 x 20 are read without a guard
// launch: --threads 32,32 --group 16,16 --arg f32[20,20]=randn --arg f32[20,20]=empty --arg u32=20
// expect: out_of_bounds @read
#include <metal_stdlib>
using namespace metal;

kernel void ragged_edge_read(device const float* x, device float* out, constant uint& n,
                             uint2 p [[thread_position_in_grid]], uint2 t [[thread_position_in_threadgroup]]) {
  threadgroup float tile[16][17];
#ifdef DEFECT
  tile[t.y][t.x] = x[p.y * n + p.x];  // @read
#else
  tile[t.y][t.x] = p.y < n && p.x < n ? x[p.y * n + p.x] : 0.0f;
#endif
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (p.x < n && p.y < n) out[p.y * n + p.x] = tile[t.y][t.x];
}
