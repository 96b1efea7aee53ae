// planted: a thread keeps 80 KB of its own
// launch: --threads 1 --group 1 --arg f32[1]=empty --arg u32=7
// expect: stack_overflow
// also: unwritten
#include <metal_stdlib>
using namespace metal;

kernel void large_local_array(device float* out, constant uint& seed) {
#ifdef DEFECT
  float kept[20000];
  const uint count = 20000;
#else
  float kept[64];
  const uint count = 64;
#endif
  for (uint i = count; i-- > 0;) kept[i] = float(i ^ seed);
  float sum = 0;
  for (uint i = 0; i < count; ++i) sum += kept[(i * 31 + seed) % count];
  out[0] = sum;
}
