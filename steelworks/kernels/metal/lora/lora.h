// LoRA, tiled: y = x W^T + bias + scale (x A^T) B^T in one launch.
//
// The rows of x that a threadgroup moves for x W^T serve x A^T as well. Every simdgroup has whole rows of the tile, so that
// the low-rank product stays in its registers: the fragments of a result are laid out as those of a left operand.
//
// Rows with different adapters: the smallest adapter of the tile rides along with x W^T, each further one costs a pass over
// x and its A. Rows of other adapters are taken out of each low-rank product.
#pragma once
#include "lora/index.h"
#include "lora/params.h"
#include "steel/epilogue.h"
#include "steel/fragment.h"
#include "steel/loader.h"
#include "steel/product.h"
#include "steel/store.h"

namespace steel {

/// No adapter: behind all others.
STEEL_CONSTANT int kLoraNone = INT_MAX;

/// The smallest adapter above `after` of the tile's rows; kLoraNone if there is none. All lanes call it.
template <int ROWS>
METAL_FUNC int lora_next_adapter(const threadgroup int* of_row, int after, int lane) {
  int next = kLoraNone;
  for (int row = lane; row < ROWS; row += kSimdWidth)
    if (of_row[row] > after) next = min(next, of_row[row]);
  return simd_min(next);
}

}  // namespace steel

/// BM x BN: tile of y; BK: depth of a step; RP: the rank padded to 8, 16, 32 or 64. MULTI: an adapter a row.
/// Grid: (ceil(n / BN), ceil(m / BM)) threadgroups of SIMDS * 32 threads.
template <typename T, int BM, int BN, int BK, int RP, int SIMDS, bool MULTI>
[[kernel]] void lora(
    device const T* x [[buffer(0)]],
    device const T* w [[buffer(1)]],
    device const T* bias [[buffer(2)]],
    device const T* a [[buffer(3)]],
    device const T* b [[buffer(4)]],
    device const int* adapter_of [[buffer(5)]],
    device const float* scales [[buffer(6)]],
    device T* y [[buffer(7)]],
    constant LoraParams& params [[buffer(8)]],
    constant float& scale [[buffer(9)]],
    uint2 group_at [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup_at [[simdgroup_index_in_threadgroup]],
    uint lane_at [[thread_index_in_simdgroup]]) {
  static_assert(BM % (8 * SIMDS) == 0 && BN % 8 == 0 && BK % 8 == 0 && RP % 8 == 0, "tiles are whole fragments");
  constexpr int THREADS = SIMDS * 32;
  constexpr int LD = BK + steel::Sixteen<T>::count;  // padded against bank conflicts
  constexpr int ROW_STEP = 8 * SIMDS;
  constexpr int TM = BM / ROW_STEP;
  constexpr int TN = BN / 8;
  constexpr int TR = RP / 8;
  constexpr int RANKS = steel::smaller(RP, BK);  // of B in the weight's tile at a time
  static_assert(RP % RANKS == 0 && RANKS % 8 == 0, "the rank is whole fragments and whole tiles");
  typedef steel::TileLoader<T, BM, BK, LD, THREADS> LoaderX;
  typedef steel::TileLoader<T, BN, BK, LD, THREADS> LoaderW;
  typedef steel::TileLoader<T, RP, BK, LD, THREADS> LoaderA;
  threadgroup T x_tile[BM * LD];
  threadgroup T w_tile[BN * LD];
  threadgroup T a_tile[RP * LD];
  threadgroup int adapter_tile[MULTI ? BM : 1];

  const LoraParams p = params;
  const int thread_at = int(thread_index);
  const int lane = int(lane_at);
  const int lane_row = steel_fragment_row(lane);
  const int lane_column = steel_fragment_column(lane);
  const int own = int(simdgroup_at) * 8;
  const int first_row = int(group_at.y) * BM;
  const int first_column = int(group_at.x) * BN;
  const int rows = p.m - first_row;
  const int columns = p.n - first_column;
  device const T* x_from = x + lora_place(first_row, 0, p.x_row);
  device const T* w_from = w + lora_place(first_column, 0, p.w_row);

  int adapter = 0;
  if (MULTI) {
    for (int row = thread_at; row < BM; row += THREADS)
      adapter_tile[row] = row < rows ? lora_adapter(adapter_of[lora_place(0, first_row + row, p.m)], p.adapters) : -1;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    adapter = steel::lora_next_adapter<BM>(adapter_tile, -1, lane);
  }

  float2 sums[TM][TN];
  STEEL_UNROLL
  for (int i = 0; i < TM; ++i)
    STEEL_UNROLL
    for (int j = 0; j < TN; ++j) sums[i][j] = float2(0.0f);

  bool with_weight = true;
  while (with_weight || adapter != steel::kLoraNone) {
    const bool with_adapter = adapter != steel::kLoraNone;
    device const T* a_from = a + (with_adapter ? lora_a(adapter, p.r, p.k) : 0);
    float2 low[TM][TR];
    STEEL_UNROLL
    for (int i = 0; i < TM; ++i)
      STEEL_UNROLL
      for (int j = 0; j < TR; ++j) low[i][j] = float2(0.0f);
    for (int k = 0; k < p.k; k += BK) {
      const int depth = p.k - k;
      threadgroup_barrier(mem_flags::mem_threadgroup);  // the tiles of the last step have been read
      if (rows >= BM && depth >= BK)
        LoaderX::full(x_from + lora_place(0, k, p.x_row), p.x_row, x_tile, thread_at);
      else
        LoaderX::edge(x_from + lora_place(0, k, p.x_row), p.x_row, x_tile, thread_at, rows, depth);
      if (with_weight) {
        if (columns >= BN && depth >= BK)
          LoaderW::full(w_from + lora_place(0, k, p.w_row), p.w_row, w_tile, thread_at);
        else
          LoaderW::edge(w_from + lora_place(0, k, p.w_row), p.w_row, w_tile, thread_at, columns, depth);
      }
      if (with_adapter) {
        if (p.r == RP && depth >= BK)
          LoaderA::full(a_from + lora_place(0, k, p.k), p.k, a_tile, thread_at);
        else
          LoaderA::edge(a_from + lora_place(0, k, p.k), p.k, a_tile, thread_at, p.r, depth);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (with_weight)
        steel::tiles_multiply<T, TM, TN, ROW_STEP, 8, BK, LD, LD>(sums, x_tile + own * LD, w_tile, lane);
      if (with_adapter)
        steel::tiles_multiply<T, TM, TR, ROW_STEP, 8, BK, LD, LD>(low, x_tile + own * LD, a_tile, lane);
    }
    with_weight = false;
    if (!with_adapter) continue;

    const float factor = MULTI ? scales[lora_place(0, adapter, p.adapters)] : scale;
    STEEL_UNROLL
    for (int i = 0; i < TM; ++i) {
      const bool mine = !MULTI || adapter_tile[MULTI ? i * ROW_STEP + own + lane_row : 0] == adapter;
      STEEL_UNROLL
      for (int j = 0; j < TR; ++j) low[i][j] = mine ? low[i][j] * factor : float2(0.0f);
    }
    device const T* b_from = b + lora_b(adapter, p.n, p.r) + lora_place(first_column, 0, p.r);
    STEEL_UNROLL
    for (int first = 0; first < RP; first += RANKS) {
      threadgroup_barrier(mem_flags::mem_threadgroup);  // the weight's tile has been read
      LoaderW::edge(b_from + lora_place(0, first, p.r), p.r, w_tile, thread_at, columns, p.r - first);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      STEEL_UNROLL
      for (int part = 0; part < RANKS; part += 8) {
        STEEL_UNROLL
        for (int j = 0; j < TN; ++j) {
          const float2 column =
              steel::fragment_load_transposed<float>(w_tile + (j * 8 + lane_column) * LD + part + lane_row, LD);
          STEEL_UNROLL
          for (int i = 0; i < TM; ++i) steel::fragment_mma<float>(sums[i][j], low[i][(first + part) / 8], column);
        }
      }
    }
    adapter = MULTI ? steel::lora_next_adapter<BM>(adapter_tile, adapter, lane) : steel::kLoraNone;
  }

  steel::Epilogue<T> last;
  last.bias = bias + (p.has_bias ? lora_place(0, first_column, p.n) : 0);
  last.residual = bias;
  last.residual_row_stride = 0;
  last.has_bias = p.has_bias;
  last.has_residual = 0;
  last.activation = ACTIVATION_NONE;
  last.alpha = 1.0f;
  last.beta = 0.0f;
  steel::fragments_store<T, TM, TN, ROW_STEP, 8>(
      sums, y + lora_place(first_row + own, first_column, p.n), p.n, lane, rows - own, columns, last);
}
