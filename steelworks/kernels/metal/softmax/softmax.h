// Softmax and log_softmax of rows (last dimension) and of columns (any other).
//
// Each simdgroup (or thread, in the looped forms) has a maximum and the sum of exp(x - maximum) of what it has seen; these
// pairs are combined in one exchange. The maximum starts at the lowest finite number, never at -inf, so that no
// difference is inf - inf: a row of nothing but -inf has sum 0, and 0 / 0 is NaN, as in torch. A NaN, or +inf, makes the
// sum NaN, and with it the row.
#pragma once
#include "steel/rows.h"
#include "softmax/index.h"
#include "softmax/params.h"

namespace steel {

STEEL_CONSTANT float kLowest = -3.402823466e38f;

METAL_FUNC float row_exp(float x) { return precise::exp(x); }
METAL_FUNC float row_log(float x) { return precise::log(x); }

/// x = maximum, y = the sum of exp(element - maximum).
METAL_FUNC float2 nothing_seen() { return float2(kLowest, 0.0f); }
METAL_FUNC float highest(float a, float b) { return b > a ? b : a; }  // a NaN loses

struct Highest {
  static METAL_FUNC float combine(float a, float b) { return b > a || a != a ? b : a; }
};

/// What the LANES neighbours have seen together, in each of them.
template <int LANES> METAL_FUNC float2 seen_by_lanes(float2 mine) {
  const float maximum = lanes_reduce<LANES, Highest>(mine.x);
  return float2(maximum, lanes_reduce<LANES, Sum>(mine.y * row_exp(mine.x - maximum)));
}

/// The last step: from exp(x - local) to the result, or from x.
template <bool LOG> struct Finish {
  float factor;  // softmax: exp(local - maximum) / sum
  float maximum;
  float log_sum;

  /// `seen` of the whole row; `local` is the maximum that the elements' exponentials were taken with.
  METAL_FUNC Finish(float2 seen, float local)
      : factor(LOG ? 0.0f : row_exp(local - seen.x) / seen.y), maximum(seen.x), log_sum(LOG ? row_log(seen.y) : 0.0f) {}

  METAL_FUNC float operator()(float kept) const thread { return LOG ? (kept - maximum) - log_sum : kept * factor; }
};

}  // namespace steel

/// A row in the registers of a team: each element is read once and written once, with one barrier (none if LANES > 0).
/// Grid: as many teams as rows, in full threadgroups.
template <typename T, typename O, bool LOG, int LANES, int E>
[[kernel]] void softmax_row(
    device const T* x [[buffer(0)]],
    device O* out [[buffer(1)]],
    constant SoftmaxParams& p [[buffer(2)]],
    uint group_at [[threadgroup_position_in_grid]],
    uint thread_at [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint simds [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float2 scratch[32];
  const steel::Member m = steel::member_of<LANES>(int(group_at), int(thread_at), int(threads));
  steel::RowPart<T, E> part;
  part.load(x, m, 0, p.rows, p.length, p.row_stride, -INFINITY);

  float local = steel::kLowest;
  for (int i = 0; i < E; ++i) local = steel::highest(local, part.at[i]);
  local = steel::lanes_reduce<LANES, steel::Highest>(local);
  float sum = 0.0f;
  for (int i = 0; i < E; ++i) {
    const float weight = steel::row_exp(part.at[i] - local);
    sum += weight;
    if (!LOG) part.at[i] = weight;
  }
  float2 seen = float2(local, steel::lanes_reduce<LANES, steel::Sum>(sum));
  if (LANES == 0) {
    seen = steel::group_gather(seen, steel::nothing_seen(), scratch, int(simd), int(lane), int(simds));
    seen = steel::seen_by_lanes<0>(seen);
  }
  const steel::Finish<LOG> finish(seen, local);
  for (int i = 0; i < E; ++i) part.at[i] = finish(part.at[i]);
  part.store(out, m, 0, p.rows, p.length);
}

/// A row of any length, by a threadgroup of any size: what has been seen is kept while going through the row; a second
/// way through it writes. Grid: a threadgroup a row.
template <typename T, typename O, bool LOG, int E>
[[kernel]] void softmax_row_looped(
    device const T* x [[buffer(0)]],
    device O* out [[buffer(1)]],
    constant SoftmaxParams& p [[buffer(2)]],
    uint group_at [[threadgroup_position_in_grid]],
    uint thread_at [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint simds [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float2 scratch[32];
  const steel::Member m = steel::member_of<0>(int(group_at), int(thread_at), int(threads));
  const int step = int(threads) * E;
  float2 seen = steel::nothing_seen();
  for (int first = 0; first < p.length; first += step) {
    steel::RowPart<T, E> part;
    part.load(x, m, first, p.rows, p.length, p.row_stride, -INFINITY);
    float higher = seen.x;
    for (int i = 0; i < E; ++i) higher = steel::highest(higher, part.at[i]);
    float sum = seen.y * steel::row_exp(seen.x - higher);
    for (int i = 0; i < E; ++i) sum += steel::row_exp(part.at[i] - higher);
    seen = float2(higher, sum);
  }
  seen = steel::seen_by_lanes<0>(seen);
  seen = steel::group_gather(seen, steel::nothing_seen(), scratch, int(simd), int(lane), int(simds));
  seen = steel::seen_by_lanes<0>(seen);
  const steel::Finish<LOG> finish(seen, seen.x);
  for (int first = 0; first < p.length; first += step) {
    steel::RowPart<T, E> part;
    part.load(x, m, first, p.rows, p.length, p.row_stride, -INFINITY);
    for (int i = 0; i < E; ++i) part.at[i] = finish(LOG ? part.at[i] : steel::row_exp(part.at[i] - seen.x));
    part.store(out, m, first, p.rows, p.length);
  }
}

/// 32 columns side by side in a threadgroup, a lane each; the simdgroups share the places of a column. With KEEP > 0 a
/// column has at most KEEP places a simdgroup, kept in registers and read once; with KEEP = 0 any number, read twice.
/// Grid: a threadgroup for every 32 columns.
template <typename T, typename O, bool LOG, int KEEP>
[[kernel]] void softmax_column(
    device const T* x [[buffer(0)]],
    device O* out [[buffer(1)]],
    constant SoftmaxParams& p [[buffer(2)]],
    uint group_at [[threadgroup_position_in_grid]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint simds [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float2 scratch[32][32];
  constexpr int kRoom = KEEP > 0 ? KEEP : 1;
  const int column = softmax_column(int(group_at), int(lane));
  float kept[kRoom];
  float2 seen = steel::nothing_seen();
  if (KEEP > 0) {
    for (int i = 0; i < kRoom; ++i) {
      const int at = softmax_column_place(i, int(simd), int(simds));
      const long place = softmax_column_element(column, at, p.rows, p.length, p.inner);
      kept[i] = place >= 0 ? float(x[place]) : -INFINITY;
      seen.x = steel::highest(seen.x, kept[i]);
    }
    for (int i = 0; i < kRoom; ++i) {
      const float weight = steel::row_exp(kept[i] - seen.x);
      seen.y += weight;
      if (!LOG) kept[i] = weight;
    }
  } else {
    for (int at = int(simd);; at += int(simds)) {
      const long place = softmax_column_element(column, at, p.rows, p.length, p.inner);
      if (place < 0) break;
      const float value = float(x[place]);
      const float higher = steel::highest(seen.x, value);
      seen = float2(higher, seen.y * steel::row_exp(seen.x - higher) + steel::row_exp(value - higher));
    }
  }
  const float local = seen.x;
  scratch[simd][lane] = seen;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int s = 0; s < int(simds); ++s) seen.x = steel::highest(seen.x, scratch[s][lane].x);
  seen.y = 0.0f;
  for (int s = 0; s < int(simds); ++s) seen.y += scratch[s][lane].y * steel::row_exp(scratch[s][lane].x - seen.x);

  const steel::Finish<LOG> finish(seen, KEEP > 0 ? local : seen.x);
  if (KEEP > 0) {
    for (int i = 0; i < kRoom; ++i) {
      const int at = softmax_column_place(i, int(simd), int(simds));
      const long place = softmax_column_element(column, at, p.rows, p.length, p.inner);
      if (place >= 0) out[place] = O(finish(kept[i]));
    }
  } else {
    for (int at = int(simd);; at += int(simds)) {
      const long place = softmax_column_element(column, at, p.rows, p.length, p.inner);
      if (place < 0) break;
      const float value = float(x[place]);
      out[place] = O(finish(LOG ? value : steel::row_exp(value - seen.x)));
    }
  }
}
