// Tiled attention: a threadgroup takes BQ queries of one head and goes through the keys in blocks of BK.
//
// Each simdgroup has 8 query rows. Scores and weights stay in its registers, where the fragments of a product's result are
// laid out as those of the next product's left operand; keys and values pass through threadgroup memory.
#pragma once
#include "attention/index.h"
#include "attention/params.h"
#include "attention/softmax.h"
#include "steel/fragment.h"
#include "steel/loader.h"
#include "steel/store.h"

namespace steel {

/// For fragments_store: divides by the row's sum of weights.
struct AttentionQuotient {
  float total;
  METAL_FUNC float operator()(float sum, int, int) const thread { return softmax_quotient(sum, total); }
};

}  // namespace steel

/// M: type of the mask (uchar, or a float type); MASK: MASK_NONE, MASK_BOOL or MASK_ADD. BD: tile of the head size.
/// SHARE: keys and values take turns in one buffer, and queries wait in threadgroup memory instead of in registers; for
/// head sizes where the other way does not fit.
/// Grid: (ceil(q_len / BQ), query heads, batch) threadgroups of SIMDS * 32 threads.
template <typename T, typename M, int MASK, int BQ, int BK, int BD, int SIMDS, bool SHARE>
[[kernel]] void attention(
    device const T* q [[buffer(0)]],
    device const T* k [[buffer(1)]],
    device const T* v [[buffer(2)]],
    device const M* mask [[buffer(3)]],
    device T* out [[buffer(4)]],
    constant AttentionParams& params [[buffer(5)]],
    constant float& scale [[buffer(6)]],
    uint3 group_at [[threadgroup_position_in_grid]],
    uint thread_at [[thread_index_in_threadgroup]],
    uint simdgroup_at [[simdgroup_index_in_threadgroup]],
    uint lane_at [[thread_index_in_simdgroup]]) {
  static_assert(BQ == 8 * SIMDS, "a simdgroup has one fragment of query rows");
  static_assert(BK % 8 == 0 && BD % 8 == 0, "tiles are whole fragments");
  constexpr int LD = BD + steel::Sixteen<T>::count;  // padded against bank conflicts
  constexpr int THREADS = SIMDS * 32;
  constexpr int KEYS = BK / 8;
  constexpr int PARTS = BD / 8;
  typedef steel::TileLoader<T, BK, BD, LD, THREADS> Loader;
  threadgroup T key_tile[BK * LD];
  threadgroup T own_value_tile[SHARE ? 1 : BK * LD];
  threadgroup T query_tile[SHARE ? BQ * LD : 1];
  threadgroup T* value_tile = SHARE ? key_tile : own_value_tile;

  const AttentionParams p = params;
  const int lane = int(lane_at);
  const int lane_row = steel_fragment_row(lane);
  const int lane_column = steel_fragment_column(lane);
  const int head = int(group_at.y);
  const int batch = int(group_at.z);
  const int key_head = attention_key_head(head, p.group);
  const int first = int(group_at.x) * BQ;
  const int own = int(simdgroup_at) * 8;  // this simdgroup's rows, seen from `first`
  const int row = first + own + lane_row;
  const long q_from = attention_head(batch, head, p.q_batch, p.q_head);
  const long mask_from = attention_head(batch, head, p.mask_batch, p.mask_head);
  device const T* k_from = k + attention_head(batch, key_head, p.k_batch, p.k_head);
  device const T* v_from = v + attention_head(batch, key_head, p.v_batch, p.v_head);

  steel::fragment_t<T> query[SHARE ? 1 : PARTS];
  if (SHARE) {
    steel::TileLoader<T, BQ, BD, LD, THREADS>::edge(
        q + q_from + attention_row(first, p.q_row), p.q_row, query_tile, int(thread_at), p.q_len - first, p.d);
  } else {
    STEEL_UNROLL
    for (int part = 0; part < PARTS; ++part) {
      STEEL_UNROLL
      for (int e = 0; e < 2; ++e) {
        const long at = attention_element(q_from, row, part * 8 + lane_column + e, p.q_len, p.d, p.q_row);
        query[part][e] = at >= 0 ? q[at] : T(0);
      }
    }
  }

  float2 sums[1][PARTS];
  STEEL_UNROLL
  for (int part = 0; part < PARTS; ++part) sums[0][part] = float2(0.0f);
  float maximum = SOFTMAX_LOWEST;
  float total = 0.0f;
  const int limit = attention_key_limit(row, p.q_len, p.k_len, p.causal);
  const int end = attention_block_limit(first, BQ, p.q_len, p.k_len, p.causal);

  for (int block = 0; block < end; block += BK) {
    const int keys = p.k_len - block;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the tiles of the last block have been read
    if (keys >= BK && p.d == BD)
      Loader::full(k_from + attention_row(block, p.k_row), p.k_row, key_tile, int(thread_at));
    else
      Loader::edge(k_from + attention_row(block, p.k_row), p.k_row, key_tile, int(thread_at), keys, p.d);
    if (!SHARE) {
      if (keys >= BK && p.dv == BD)
        Loader::full(v_from + attention_row(block, p.v_row), p.v_row, value_tile, int(thread_at));
      else
        Loader::edge(v_from + attention_row(block, p.v_row), p.v_row, value_tile, int(thread_at), keys, p.dv);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    float2 scores[KEYS];
    STEEL_UNROLL
    for (int j = 0; j < KEYS; ++j) scores[j] = float2(0.0f);
    STEEL_UNROLL
    for (int part = 0; part < PARTS; ++part) {
      const steel::fragment_t<T> left =
          SHARE ? steel::fragment_load<T>(query_tile + (own + lane_row) * LD + part * 8 + lane_column)
                : query[SHARE ? 0 : part];
      STEEL_UNROLL
      for (int j = 0; j < KEYS; ++j)
        steel::fragment_mma<T>(
            scores[j], left,
            steel::fragment_load_transposed<T>(key_tile + (j * 8 + lane_column) * LD + part * 8 + lane_row, LD));
    }

    float2 most = float2(-INFINITY);
    STEEL_UNROLL
    for (int j = 0; j < KEYS; ++j) {
      STEEL_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int key = block + j * 8 + lane_column + e;
        float score = scores[j][e] * scale;
        if (key >= limit) {
          score = -INFINITY;
        } else if (MASK != MASK_NONE) {
          const long at = attention_mask(mask_from, row, key, p.mask_row, p.mask_key);
          score = softmax_masked<MASK>(score, mask[at]);
        }
        scores[j][e] = score;
      }
      most = max(most, scores[j]);
    }
    const float higher = max(maximum, steel::fragment_row_max(most));
    const float shrink = softmax_weight(maximum, higher);
    maximum = higher;
    float2 part_total = float2(0.0f);
    STEEL_UNROLL
    for (int j = 0; j < KEYS; ++j) {
      STEEL_UNROLL
      for (int e = 0; e < 2; ++e)
        scores[j][e] = softmax_excluded(scores[j][e]) ? 0.0f : softmax_weight(scores[j][e], higher);
      part_total += scores[j];
    }
    total = total * shrink + steel::fragment_row_sum(part_total);
    STEEL_UNROLL
    for (int part = 0; part < PARTS; ++part) sums[0][part] *= shrink;

    if (SHARE) {
      threadgroup_barrier(mem_flags::mem_threadgroup);  // the keys have been read
      if (keys >= BK && p.dv == BD)
        Loader::full(v_from + attention_row(block, p.v_row), p.v_row, value_tile, int(thread_at));
      else
        Loader::edge(v_from + attention_row(block, p.v_row), p.v_row, value_tile, int(thread_at), keys, p.dv);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    STEEL_UNROLL
    for (int j = 0; j < KEYS; ++j)
      STEEL_UNROLL
      for (int part = 0; part < PARTS; ++part)
        steel::fragment_mma<float>(
            sums[0][part], scores[j],
            steel::fragment_load<float>(value_tile + (j * 8 + lane_row) * LD + part * 8 + lane_column));
  }

  steel::fragments_store<T, 1, PARTS, 8, 8>(
      sums, out + attention_output(batch, head, first + own, 0, p.q_heads, p.q_len, p.dv), p.dv, lane,
      p.q_len - first - own, p.dv, steel::AttentionQuotient{total});
}
