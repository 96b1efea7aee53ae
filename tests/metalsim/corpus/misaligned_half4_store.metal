// planted: rows of seven halves are written as half4
// launch: --threads 4 --group 4 --arg f16[4,7]=randn --arg f16[4,7]=zeros
// expect: misaligned @write
#include <metal_stdlib>
using namespace metal;

kernel void misaligned_half4_store(device const half* x, device half* out, uint row [[thread_position_in_grid]]) {
  half4 v = half4(x[row * 7], x[row * 7 + 1], x[row * 7 + 2], x[row * 7 + 3]);
#ifdef DEFECT
  *(device half4*)(out + row * 7) = v;  // @write
#else
  for (int i = 0; i < 4; ++i) out[row * 7 + i] = v[i];
#endif
}
