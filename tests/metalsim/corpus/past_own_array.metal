// planted: the element after a thread's own array of structs, which is copied as a whole
// launch: --threads 64 --group 64 --arg f32[512]=randn --arg i32[64]=empty
// expect: out_of_bounds @read
#include <metal_stdlib>
using namespace metal;

struct Candidate {
  float value;
  int place;
};

kernel void past_own_array(device const float* x, device int* out, uint t [[thread_position_in_threadgroup]]) {
  Candidate kept[8];
  for (int i = 0; i < 8; ++i) kept[i] = Candidate{x[8 * t + i], i};
  Candidate best = kept[0];
#ifdef DEFECT
  for (int i = 1; i <= 8; ++i) {
#else
  for (int i = 1; i < 8; ++i) {
#endif
    const Candidate next = kept[i];  // @read
    if (next.value > best.value) best = next;
  }
  out[t] = best.place;
}
