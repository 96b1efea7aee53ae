// y = x dequantize(W)^T + bias, tiled: the weight is unpacked on its way into threadgroup memory.
#pragma once
#include "quantized/index.h"
#include "quantized/params.h"
#include "quantized/unpack.h"
#include "steel/epilogue.h"
#include "steel/loader.h"
#include "steel/product.h"
#include "steel/store.h"

namespace steel {

/// Unpacks ROWS x COLS weights into threadgroup memory with rows LD apart, in float: what a scale makes of an int8 is more
/// than half holds. All THREADS threads call it; it has no barrier, like TileLoader.
template <typename T, int BITS, int ROWS, int COLS, int LD, int THREADS>
struct DequantizingLoader {
  STEEL_CONSTANT int kChunks = ROWS * (COLS / QUANTIZED_CHUNK);
  STEEL_CONSTANT int kSteps = kChunks / THREADS;
  static_assert(COLS % QUANTIZED_CHUNK == 0, "a row of the tile must be whole chunks");
  static_assert(kChunks % THREADS == 0, "every thread must have the same number of chunks");

  device const uchar* w;
  device const T* scales;
  device const T* zeros;
  QuantizedParams p;

  /// The tile begins at row `first_row`, column `first_column` of the weight; what lies outside becomes 0.
  METAL_FUNC void load(threadgroup float* to, int first_row, int first_column, int thread_at) const thread {
    STEEL_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const int row = steel_packet_row(thread_at, step, COLS, QUANTIZED_CHUNK, THREADS);
      const int column = steel_packet_column(thread_at, step, COLS, QUANTIZED_CHUNK, THREADS);
      float unpacked[QUANTIZED_CHUNK];
      float scale = 0.0f;
      float zero = 0.0f;
      STEEL_UNROLL
      for (int i = 0; i < QUANTIZED_CHUNK; ++i) unpacked[i] = 0.0f;
      const long at = quantized_byte(first_row + row, first_column + column, p.n, p.k, p.w_row, BITS);
      if (at >= 0) {
        quantized_unpack<BITS>(w + at, unpacked);
        const long group = quantized_group(first_row + row, first_column + column, p.groups, p.group_shift);
        scale = float(scales[group]);
        zero = float(zeros[group]);
      }
      STEEL_UNROLL
      for (int i = 0; i < QUANTIZED_CHUNK; ++i) to[row * LD + column + i] = scale * (unpacked[i] - zero);
    }
  }
};

}  // namespace steel

/// Grid: (ceil(n / BN), ceil(m / BM)) threadgroups of WM * WN * 32 threads.
template <typename T, int BITS, int BM, int BN, int BK, int WM, int WN>
[[kernel]] void quantized(
    device const T* x [[buffer(0)]],
    device const uchar* w [[buffer(1)]],
    device const T* scales [[buffer(2)]],
    device const T* zeros [[buffer(3)]],
    device const T* bias [[buffer(4)]],
    device T* y [[buffer(5)]],
    constant QuantizedParams& params [[buffer(6)]],
    uint2 group_at [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup_at [[simdgroup_index_in_threadgroup]],
    uint lane_at [[thread_index_in_simdgroup]]) {
  constexpr int THREADS = WM * WN * 32;
  constexpr int X_LD = BK + steel::Sixteen<T>::count;  // padded against bank conflicts
  constexpr int W_LD = BK + steel::Sixteen<float>::count;
  constexpr int TM = BM / WM / 8;
  constexpr int TN = BN / WN / 8;
  static_assert(TM * WM * 8 == BM && TN * WN * 8 == BN && BK % 8 == 0, "tiles are whole fragments");
  typedef steel::TileLoader<T, BM, BK, X_LD, THREADS> LoaderX;
  threadgroup T x_tile[BM * X_LD];
  threadgroup float w_tile[BN * W_LD];

  const QuantizedParams p = params;
  const int thread_at = int(thread_index);
  const int lane = int(lane_at);
  const int first_row = int(group_at.y) * BM;
  const int first_column = int(group_at.x) * BN;
  const int own_row = int(simdgroup_at) / WN * (BM / WM);
  const int own_column = int(simdgroup_at) % WN * (BN / WN);
  const int rows = p.m - first_row;
  const int columns = p.n - first_column;
  device const T* x_from = x + quantized_place(first_row, 0, p.x_row);
  const steel::DequantizingLoader<T, BITS, BN, BK, W_LD, THREADS> weight = {w, scales, zeros, p};

  float2 sums[TM][TN];
  STEEL_UNROLL
  for (int i = 0; i < TM; ++i)
    STEEL_UNROLL
    for (int j = 0; j < TN; ++j) sums[i][j] = float2(0.0f);
  for (int k = 0; k < p.k; k += BK) {
    const int depth = p.k - k;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the tiles of the last step have been read
    if (rows >= BM && depth >= BK)
      LoaderX::full(x_from + quantized_place(0, k, p.x_row), p.x_row, x_tile, thread_at);
    else
      LoaderX::edge(x_from + quantized_place(0, k, p.x_row), p.x_row, x_tile, thread_at, rows, depth);
    weight.load(w_tile, first_column, k, thread_at);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    steel::tiles_multiply<float, TM, TN, 8, 8, BK, X_LD, W_LD>(
        sums, x_tile + own_row * X_LD, w_tile + own_column * W_LD, lane);
  }

  const int row = first_row + own_row;
  const int column = first_column + own_column;
  steel::Epilogue<T> last;
  last.bias = bias + (p.has_bias ? quantized_place(0, column, p.n) : 0);
  last.residual = bias;
  last.residual_row_stride = 0;
  last.has_bias = p.has_bias;
  last.has_residual = 0;
  last.activation = ACTIVATION_NONE;
  last.alpha = 1.0f;
  last.beta = 0.0f;
  steel::fragments_store<T, TM, TN, 8, 8>(
      sums, y + quantized_place(row, column, p.n), p.n, lane, p.m - row, p.n - column, last);
}
