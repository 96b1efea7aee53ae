// planted: a reversal in place reads elements that other threadgroups have written, or will
// launch: --threads 128 --group 32 --arg i32[128]=arange --arg @0
// expect: race_between_groups @reverse
#include <metal_stdlib>
using namespace metal;

kernel void in_place_reverse(device const int* x, device int* out, uint i [[thread_position_in_grid]]) {
#ifdef DEFECT
  out[i] = x[127 - i];  // @reverse
#else
  if (i < 64) {
    int low = x[i], high = x[127 - i];
    out[i] = high;
    out[127 - i] = low;
  }
#endif
}
