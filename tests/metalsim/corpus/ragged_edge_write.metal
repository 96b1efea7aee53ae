// planted: the guard of an edge tile looks at rows only, so that it writes into the next row
// launch: --threads 32,32 --group 16,16 --arg f32[20,20]=randn --arg f32[20,20]=empty --arg u32=20
// expect: written_twice @write
// also: out_of_bounds, race_between_groups
#include <metal_stdlib>
using namespace metal;

kernel void ragged_edge_write(device const float* x, device float* out, constant uint& n,
                              uint2 p [[thread_position_in_grid]]) {
#ifdef DEFECT
  if (p.y >= n) return;
#else
  if (p.y >= n || p.x >= n) return;
#endif
  out[p.y * n + p.x] =  // @write
      x[p.y * n + min(p.x, n - 1)];
}
