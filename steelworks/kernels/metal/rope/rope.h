// Rotary position embedding: pairs of elements are turned by an angle that grows with the position.
//
// Angles are counted in turns, and a frequency is the sum of two floats: the position times the first has an error of
// rounding that fma() gives exactly, and whole turns are dropped before sine and cosine are taken. So the angle is right to
// float precision at any position, where position * frequency in radians loses a digit for every digit of the position.
#pragma once
#include "steel/types.h"
#include "rope/index.h"
#include "rope/params.h"

namespace steel {

/// position * (high + low), without whole turns: in [-1, 1].
METAL_FUNC float turn_of(float position, float high, float low) {
  const float product = position * high;
  const float rest = fma(position, high, -product);
  return (product - rint(product)) + fma(position, low, rest);
}

}  // namespace steel

/// HEADS: heads of a thread, which share its sine and cosine. Positions are offset + row, below 2^24.
/// Grid: (pairs of a head, rows, batches * chunks of HEADS heads).
template <typename T, bool INTERLEAVED, int HEADS>
[[kernel]] void rope(
    device const T* x [[buffer(0)]],
    device const float* frequencies [[buffer(1)]],
    device const int* offsets [[buffer(2)]],
    device T* out [[buffer(3)]],
    constant RopeParams& params [[buffer(4)]],
    uint3 thread_at [[thread_position_in_grid]]) {
  const RopeParams p = params;
  const int chunks = steel::ceil_div(p.heads, HEADS);
  const int pair = int(thread_at.x);
  const int row = int(thread_at.y);
  const int batch = int(thread_at.z) / chunks;
  const int first_head = int(thread_at.z) % chunks * HEADS;
  if (row >= p.length) return;

  float cosine = 1.0f;
  float sine = 0.0f;
  if (pair < p.pairs) {
    const float position = float(offsets[rope_offset(batch, p.offset_step)] + row);
    const float high = frequencies[rope_frequency(0, pair, p.pairs)];
    const float low = frequencies[rope_frequency(1, pair, p.pairs)];
    const float twice = 2.0f * steel::turn_of(position, high, low);
    cosine = precise::cospi(twice);
    sine = p.inverse ? -precise::sinpi(twice) : precise::sinpi(twice);
  }
  const int a_at = rope_first(pair, p.pairs, INTERLEAVED);
  const int b_at = rope_second(pair, p.pairs, INTERLEAVED);
  for (int head = first_head; head < first_head + HEADS; ++head) {
    const long a_from = rope_input(batch, head, row, a_at, p.heads, p.width, p.batch_stride, p.head_stride, p.row_stride);
    const long b_from = rope_input(batch, head, row, b_at, p.heads, p.width, p.batch_stride, p.head_stride, p.row_stride);
    const float a = a_from >= 0 ? float(x[a_from]) : 0.0f;
    const float b = b_from >= 0 ? float(x[b_from]) : 0.0f;
    const long a_to = rope_output(batch, head, row, a_at, p.heads, p.length, p.width);
    const long b_to = rope_output(batch, head, row, b_at, p.heads, p.length, p.width);
    const bool turned = pair < p.pairs;
    if (a_to >= 0) out[a_to] = turned ? T(a * cosine - b * sine) : T(a);
    if (b_to >= 0) out[b_to] = turned ? T(a * sine + b * cosine) : T(b);
  }
}
