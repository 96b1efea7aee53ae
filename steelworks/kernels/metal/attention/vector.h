// Attention for few queries: every simdgroup of a threadgroup goes through its share of the keys, then they combine.
//
// A threadgroup has up to ROWS query rows of one key head (its queries, times the heads that share it), so that each key
// and value is read once for all of them. A lane holds E adjacent elements of each row.
#pragma once
#include <metal_stdlib>
#include "attention/index.h"
#include "attention/params.h"
#include "attention/softmax.h"
#include "steel/types.h"

/// M: type of the mask (uchar or T); MASK: MASK_NONE, MASK_BOOL or MASK_ADD. O: T, or float with PARTIAL.
/// Grid: (row chunks * splits, key heads, batch) threadgroups of SIMDS * 32 threads.
template <typename T, typename O, typename M, int MASK, int ROWS, int E, int SIMDS, bool PARTIAL>
[[kernel]] void attention_vector(
    device const T* q [[buffer(0)]],
    device const T* k [[buffer(1)]],
    device const T* v [[buffer(2)]],
    device const M* mask [[buffer(3)]],
    device O* out [[buffer(4)]],
    constant AttentionParams& params [[buffer(5)]],
    constant float& scale [[buffer(6)]],
    uint3 group_at [[threadgroup_position_in_grid]],
    uint thread_at [[thread_index_in_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  constexpr int WIDTH = 32 * E;
  threadgroup float part_out[SIMDS * WIDTH];
  threadgroup float part_max[SIMDS];
  threadgroup float part_sum[SIMDS];

  const AttentionParams p = params;
  const int split = int(group_at.x) % p.splits;
  const int first_row = int(group_at.x) / p.splits * ROWS;
  const int key_head = int(group_at.y);
  const int batch = int(group_at.z);
  const int rows = attention_vector_rows(p.group, p.q_len);
  const int column = int(lane) * E;

  float query[ROWS][E];
  float sums[ROWS][E];
  float maximum[ROWS];
  float weights[ROWS];
  int limit[ROWS];
  long mask_head[ROWS];
  int last = 0;
  STEEL_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    const bool inside = first_row + r < rows;
    const int row = inside ? attention_vector_query(first_row + r, p.q_len) : p.q_len;
    const int head = inside ? attention_vector_head(key_head, first_row + r, p.group, p.q_len) : 0;
    const long from = attention_head(batch, head, p.q_batch, p.q_head);
    STEEL_UNROLL
    for (int i = 0; i < E; ++i) {
      const long at = attention_element(from, row, column + i, p.q_len, p.d, p.q_row);
      query[r][i] = at >= 0 ? float(q[at]) * scale : 0.0f;
      sums[r][i] = 0.0f;
    }
    maximum[r] = SOFTMAX_LOWEST;
    weights[r] = 0.0f;
    limit[r] = attention_key_limit(row, p.q_len, p.k_len, p.causal);
    mask_head[r] = attention_head(batch, head, p.mask_batch, p.mask_head);
    last = max(last, limit[r]);
  }

  const long k_from = attention_head(batch, key_head, p.k_batch, p.k_head);
  const long v_from = attention_head(batch, key_head, p.v_batch, p.v_head);
  const int begin = attention_split_begin(split, p.split_keys);
  const int end = min(last, attention_split_begin(split + 1, p.split_keys));
  for (int key = begin + int(simd); key < end; key += SIMDS) {
    float key_part[E];
    float value[E];
    STEEL_UNROLL
    for (int i = 0; i < E; ++i) {
      const long at = attention_key_element(k_from, key, column + i, p.d, p.k_row);
      key_part[i] = at >= 0 ? float(k[at]) : 0.0f;
    }
    STEEL_UNROLL
    for (int i = 0; i < E; ++i) {
      const long at = attention_key_element(v_from, key, column + i, p.dv, p.v_row);
      value[i] = at >= 0 ? float(v[at]) : 0.0f;
    }
    STEEL_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      if (key >= limit[r]) continue;
      float score = 0.0f;
      STEEL_UNROLL
      for (int i = 0; i < E; ++i) score += query[r][i] * key_part[i];
      score = simd_sum(score);
      if (MASK != MASK_NONE) {
        const int row = attention_vector_query(first_row + r, p.q_len);
        const long at = attention_mask(mask_head[r], row, key, p.mask_row, p.mask_key);
        score = softmax_masked<MASK>(score, mask[at]);
      }
      if (softmax_excluded(score)) continue;
      const float higher = max(maximum[r], score);
      const float shrink = softmax_weight(maximum[r], higher);
      const float weight = softmax_weight(score, higher);
      maximum[r] = higher;
      weights[r] = weights[r] * shrink + weight;
      STEEL_UNROLL
      for (int i = 0; i < E; ++i) sums[r][i] = sums[r][i] * shrink + weight * value[i];
    }
  }

  for (int r = 0; r < ROWS && first_row + r < rows; ++r) {
    STEEL_UNROLL
    for (int i = 0; i < E; ++i) part_out[int(simd) * WIDTH + column + i] = sums[r][i];
    if (lane == 0) {
      part_max[simd] = maximum[r];
      part_sum[simd] = weights[r];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float highest = SOFTMAX_LOWEST;
    for (int s = 0; s < SIMDS; ++s) highest = max(highest, part_max[s]);
    float total = 0.0f;
    for (int s = 0; s < SIMDS; ++s) total += part_sum[s] * softmax_weight(part_max[s], highest);
    const int row = attention_vector_query(first_row + r, p.q_len);
    const int head = attention_vector_head(key_head, first_row + r, p.group, p.q_len);
    const long out_row = ((long)batch * p.q_heads + head) * p.q_len + row;
    for (int c = int(thread_at); c < p.dv; c += SIMDS * 32) {
      float sum = 0.0f;
      for (int s = 0; s < SIMDS; ++s) sum += part_out[s * WIDTH + c] * softmax_weight(part_max[s], highest);
      if (PARTIAL)
        out[attention_partial(split, p.rows, out_row, c, p.dv)] = O(sum);
      else
        out[attention_output(batch, head, row, c, p.q_heads, p.q_len, p.dv)] = O(softmax_quotient(sum, total));
    }
    if (PARTIAL && thread_at == 0) {
      out[attention_partial(split, p.rows, out_row, p.dv, p.dv)] = O(highest);
      out[attention_partial(split, p.rows, out_row, p.dv + 1, p.dv)] = O(total);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

/// The second pass after PARTIAL: one thread an output element. Grid: exactly (dv, rows) threads.
template <typename T>
[[kernel]] void attention_combine(
    device const float* partial [[buffer(0)]],
    device T* out [[buffer(1)]],
    constant AttentionParams& p [[buffer(2)]],
    uint2 at [[thread_position_in_grid]]) {
  const int column = int(at.x);
  const long row = long(at.y);
  float highest = SOFTMAX_LOWEST;
  for (int s = 0; s < p.splits; ++s) highest = max(highest, partial[attention_partial(s, p.rows, row, p.dv, p.dv)]);
  float sum = 0.0f;
  float total = 0.0f;
  for (int s = 0; s < p.splits; ++s) {
    const float weight = softmax_weight(partial[attention_partial(s, p.rows, row, p.dv, p.dv)], highest);
    sum += weight * partial[attention_partial(s, p.rows, row, column, p.dv)];
    total += weight * partial[attention_partial(s, p.rows, row, p.dv + 1, p.dv)];
  }
  out[attention_combined(row, column, p.dv)] = T(softmax_quotient(sum, total));
}
