// layer_norm and rms_norm of rows, with an optional residual that is added first.
//
// The spread of a row is the sum of squared distances from its mean (layer_norm) or from 0 (rms_norm). Parts of a row have
// a count, a mean and a spread of their own, and are combined by these: nowhere is a difference of large sums taken.
#pragma once
#include "steel/rows.h"
#include "norms/index.h"
#include "norms/params.h"

namespace steel {

/// x = count, y = mean (0 throughout with RMS), z = sum of squared distances from it.
METAL_FUNC float3 no_spread() { return float3(0.0f, 0.0f, 0.0f); }

/// Of what a thread holds.
template <bool RMS, typename Part> METAL_FUNC float3 spread_of(thread const Part& part, Member m, int first, int width) {
  float3 own = no_spread();
  for (int step = 0; step < Part::kSteps; ++step) {
    const int column = first + Part::column(m, step);
    for (int i = 0; i < Part::kPacket; ++i) {
      own.x += norm_counts(column + i, width) ? 1.0f : 0.0f;
      own.y += part.at[step * Part::kPacket + i];  // 0 outside
    }
  }
  own.y = RMS || own.x == 0.0f ? 0.0f : own.y / own.x;
  for (int step = 0; step < Part::kSteps; ++step) {
    const int column = first + Part::column(m, step);
    for (int i = 0; i < Part::kPacket; ++i) {
      const float apart = part.at[step * Part::kPacket + i] - own.y;
      own.z += norm_counts(column + i, width) ? apart * apart : 0.0f;
    }
  }
  return own;
}

/// Of two parts, one of which may be empty.
template <bool RMS> METAL_FUNC float3 spread_of_both(float3 a, float3 b) {
  const float count = a.x + b.x;
  const float share = count > 0.0f ? b.x / count : 0.0f;
  const float apart = RMS ? 0.0f : b.y - a.y;
  return float3(count, a.y + apart * share, a.z + b.z + apart * apart * a.x * share);
}

/// Of the LANES neighbours together, in each of them.
template <bool RMS, int LANES> METAL_FUNC float3 spread_of_lanes(float3 mine) {
  const float count = lanes_reduce<LANES, Sum>(mine.x);
  if (RMS) return float3(count, 0.0f, lanes_reduce<LANES, Sum>(mine.z));
  const float total = lanes_reduce<LANES, Sum>(mine.x * mine.y);
  const float mean = count > 0.0f ? total / count : 0.0f;
  const float apart = mine.y - mean;
  return float3(count, mean, lanes_reduce<LANES, Sum>(mine.z + mine.x * apart * apart));
}

/// The input, with the residual added; 0 outside. The sum is not rounded to T before it is normalised.
template <typename Part, typename T>
METAL_FUNC void norm_load(
    thread Part& part, device const T* x, device const T* residual, Member m, int first, thread const NormParams& p) {
  part.load(x, m, first, p.rows, p.width, p.row_stride, 0.0f);
  if (!p.has_residual) return;
  Part added;
  added.load(residual, m, first, p.rows, p.width, p.residual_stride, 0.0f);
  for (int i = 0; i < Part::kPacket * Part::kSteps; ++i) part.at[i] += added.at[i];
}

/// Normalises, scales, shifts, writes.
template <typename Part, typename WeightPart, typename T, typename W>
METAL_FUNC void norm_store(
    thread Part& part, device const W* weight, device const W* bias, device T* out, Member m, int first,
    thread const NormParams& p, float mean, float scale) {
  constexpr int E = Part::kPacket * Part::kSteps;
  constexpr int kSameRow = 0;  // from one row of the weight to the next
  WeightPart factor;
  if (p.has_weight) factor.load(weight, m, first, p.rows, p.width, kSameRow, 0.0f);
  for (int i = 0; i < E; ++i) part.at[i] = (part.at[i] - mean) * scale * (p.has_weight ? factor.at[i] : 1.0f);
  if (p.has_bias) {
    WeightPart added;
    added.load(bias, m, first, p.rows, p.width, kSameRow, 0.0f);
    for (int i = 0; i < E; ++i) part.at[i] += added.at[i];
  }
  part.store(out, m, first, p.rows, p.width);
}

METAL_FUNC float norm_scale(float3 spread, int width, float eps) { return precise::rsqrt(spread.z / float(width) + eps); }

}  // namespace steel

/// A row in the registers of a team: each element is read once and written once, with one barrier (none if LANES > 0).
/// W: type of weight and bias. Grid: as many teams as rows, in full threadgroups.
template <typename T, typename W, bool RMS, int LANES, int E>
[[kernel]] void norm_row(
    device const T* x [[buffer(0)]],
    device const T* residual [[buffer(1)]],
    device const W* weight [[buffer(2)]],
    device const W* bias [[buffer(3)]],
    device T* out [[buffer(4)]],
    device T* sum [[buffer(5)]],
    constant NormParams& params [[buffer(6)]],
    constant float& eps [[buffer(7)]],
    uint group_at [[threadgroup_position_in_grid]],
    uint thread_at [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint simds [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  typedef steel::RowPart<T, E> Part;
  typedef steel::RowPart<W, E, Part::kPacket> WeightPart;
  threadgroup float3 scratch[32];
  const NormParams p = params;
  const steel::Member m = steel::member_of<LANES>(int(group_at), int(thread_at), int(threads));
  Part part;
  steel::norm_load(part, x, residual, m, 0, p);
  if (p.writes_sum) part.store(sum, m, 0, p.rows, p.width);

  float3 spread = steel::spread_of_lanes<RMS, LANES>(steel::spread_of<RMS>(part, m, 0, p.width));
  if (LANES == 0) {
    spread = steel::group_gather(spread, steel::no_spread(), scratch, int(simd), int(lane), int(simds));
    spread = steel::spread_of_lanes<RMS, 0>(spread);
  }
  const float scale = steel::norm_scale(spread, p.width, eps);
  steel::norm_store<Part, WeightPart>(part, weight, bias, out, m, 0, p, spread.y, scale);
}

/// A row of any length, by a threadgroup of any size; the input is read twice. Grid: a threadgroup a row.
template <typename T, typename W, bool RMS, int E>
[[kernel]] void norm_row_looped(
    device const T* x [[buffer(0)]],
    device const T* residual [[buffer(1)]],
    device const W* weight [[buffer(2)]],
    device const W* bias [[buffer(3)]],
    device T* out [[buffer(4)]],
    device T* sum [[buffer(5)]],
    constant NormParams& params [[buffer(6)]],
    constant float& eps [[buffer(7)]],
    uint group_at [[threadgroup_position_in_grid]],
    uint thread_at [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint simds [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  typedef steel::RowPart<T, E> Part;
  typedef steel::RowPart<W, E, Part::kPacket> WeightPart;
  threadgroup float3 scratch[32];
  const NormParams p = params;
  const steel::Member m = steel::member_of<0>(int(group_at), int(thread_at), int(threads));
  const int step = int(threads) * E;
  float3 spread = steel::no_spread();
  for (int first = 0; first < p.width; first += step) {
    Part part;
    steel::norm_load(part, x, residual, m, first, p);
    if (p.writes_sum) part.store(sum, m, first, p.rows, p.width);
    spread = steel::spread_of_both<RMS>(spread, steel::spread_of<RMS>(part, m, first, p.width));
  }
  spread = steel::spread_of_lanes<RMS, 0>(spread);
  spread = steel::group_gather(spread, steel::no_spread(), scratch, int(simd), int(lane), int(simds));
  spread = steel::spread_of_lanes<RMS, 0>(spread);
  const float scale = steel::norm_scale(spread, p.width, eps);
  for (int first = 0; first < p.width; first += step) {
    Part part;
    steel::norm_load(part, x, residual, m, first, p);
    steel::norm_store<Part, WeightPart>(part, weight, bias, out, m, first, p, spread.y, scale);
  }
}
