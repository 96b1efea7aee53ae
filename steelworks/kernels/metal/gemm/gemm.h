// Tiled matrix product: a threadgroup computes BM x BN results, its WM x WN simdgroups a block of 8x8 fragments each.
//
// Tiles of BK terms go through threadgroup memory. While the simdgroups multiply one, each thread already reads its part
// of the next into registers. With STAGES 2 there are two tiles to write to, and one barrier a step is enough; with 1
// there are two barriers. The first step takes what K leaves over, so that the loop handles whole steps only.
#pragma once
#include "steel/loader.h"
#include "steel/product.h"
#include "steel/store.h"
#include "gemm/epilogue.h"
#include "gemm/index.h"
#include "gemm/params.h"

/// The tile of one operand in threadgroup memory: SIDE rows (of a) or columns (of b) by BK terms.
/// TERMS_INNER: terms are contiguous, in device memory and here.
template <typename T, int SIDE, int BK, bool TERMS_INNER, int THREADS>
struct GemmTile {
  STEEL_CONSTANT int kRows = TERMS_INNER ? SIDE : BK;
  STEEL_CONSTANT int kColumns = TERMS_INNER ? BK : SIDE;
  STEEL_CONSTANT int kStride = kColumns + steel::Sixteen<T>::count;  // 16 bytes more: rows begin in different banks
  STEEL_CONSTANT int kSize = kRows * kStride;
  typedef steel::TileLoader<T, kRows, kColumns, kStride, THREADS> Loader;
  typedef typename Loader::Held Held;

  /// Reads `terms` terms of `side` rows or columns.
  static METAL_FUNC void fetch_edge(
      device const T* from, int row_stride, thread Held& held, int thread_at, int side, int terms) {
    Loader::fetch_edge(from, row_stride, held, thread_at, TERMS_INNER ? side : terms, TERMS_INNER ? terms : side);
  }

  /// Where row (or column) `at` begins.
  static METAL_FUNC const threadgroup T* from(const threadgroup T* tile, int at) {
    return tile + (TERMS_INNER ? at * kStride : at);
  }
};

/// The sums of one threadgroup.
template <typename T, int BM, int BN, int BK, int WM, int WN, int STAGES, bool TA, bool TB>
struct GemmBlock {
  STEEL_CONSTANT int kThreads = WM * WN * 32;
  STEEL_CONSTANT int kFragmentsM = BM / WM / 8;
  STEEL_CONSTANT int kFragmentsN = BN / WN / 8;
  static_assert(kFragmentsM * WM * 8 == BM && kFragmentsN * WN * 8 == BN && BK % 8 == 0, "a tile must be whole fragments");
  typedef GemmTile<T, BM, BK, !TA, kThreads> TileA;
  typedef GemmTile<T, BN, BK, TB, kThreads> TileB;

  device const T* a;    // the first row and term of this threadgroup
  device const T* b;
  int a_stride;
  int b_stride;
  int rows;             // of the tile that lie inside
  int columns;
  int terms;
  int thread_at;
  int lane;
  int block_row;        // of this simdgroup within the tile
  int block_column;
  bool any;             // there is work: something of this simdgroup's block lies inside

  METAL_FUNC void multiply(
      thread float2 (&sums)[kFragmentsM][kFragmentsN], const threadgroup T* a_tile, const threadgroup T* b_tile) const thread {
    steel::tiles_multiply<T, kFragmentsM, kFragmentsN, 8, 8, BK, TileA::kStride, TileB::kStride, TA, !TB>(
        sums, TileA::from(a_tile, block_row), TileB::from(b_tile, block_column), lane);
  }

  METAL_FUNC void run(
      thread float2 (&sums)[kFragmentsM][kFragmentsN], threadgroup T* a_tiles, threadgroup T* b_tiles) const thread {
    const int steps = gemm_steps(terms, BK);
    typename TileA::Held a_held;
    typename TileB::Held b_held;
    const int first = gemm_first_step(terms, BK);
    TileA::fetch_edge(a, a_stride, a_held, thread_at, rows, first);
    TileB::fetch_edge(b, b_stride, b_held, thread_at, columns, first);
    TileA::Loader::commit(a_held, a_tiles, thread_at);
    TileB::Loader::commit(b_held, b_tiles, thread_at);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int step = 0; step < steps; ++step) {
      const bool more = step + 1 < steps;
      if (more) {
        const int from = gemm_step_begin(step + 1, terms, BK);
        device const T* a_next = a + gemm_operand(0, from, a_stride, TA);
        device const T* b_next = b + gemm_operand(0, from, b_stride, !TB);
        if (rows == BM && columns == BN) {  // the same for all threads: the one check a step
          TileA::Loader::fetch_full(a_next, a_stride, a_held, thread_at);
          TileB::Loader::fetch_full(b_next, b_stride, b_held, thread_at);
        } else {
          TileA::fetch_edge(a_next, a_stride, a_held, thread_at, rows, BK);
          TileB::fetch_edge(b_next, b_stride, b_held, thread_at, columns, BK);
        }
      }
      if (any) multiply(sums, a_tiles + step % STAGES * TileA::kSize, b_tiles + step % STAGES * TileB::kSize);
      if (more) {
        if (STAGES == 1) threadgroup_barrier(mem_flags::mem_threadgroup);
        TileA::Loader::commit(a_held, a_tiles + (step + 1) % STAGES * TileA::kSize, thread_at);
        TileB::Loader::commit(b_held, b_tiles + (step + 1) % STAGES * TileB::kSize, thread_at);
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
    }
  }
};

/// out = epilogue(a * b), or, with params.splits > 1, the partial sums of each split, one result matrix behind the other.
/// Grid: (tiles_m * tiles_n, batch, splits) threadgroups of WM * WN * 32 threads.
/// TA: a is stored with its rows contiguous (K x M). TB: b is stored with its terms contiguous (N x K).
template <typename T, typename O, int BM, int BN, int BK, int WM, int WN, int STAGES, bool TA, bool TB>
[[kernel]] void gemm_tiled(
    device const T* a [[buffer(0)]],
    device const T* b [[buffer(1)]],
    device const O* bias [[buffer(2)]],
    device const O* residual [[buffer(3)]],
    device O* out [[buffer(4)]],
    constant GemmParams& params [[buffer(5)]],
    constant float& alpha [[buffer(6)]],
    constant float& beta [[buffer(7)]],
    uint3 group_at [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint lane_index [[thread_index_in_simdgroup]]) {
  typedef GemmBlock<T, BM, BN, BK, WM, WN, STAGES, TA, TB> Block;
  threadgroup T a_tiles[STAGES * Block::TileA::kSize];
  threadgroup T b_tiles[STAGES * Block::TileB::kSize];

  const GemmParams p = params;
  const int batch = int(group_at.y);
  const int split = int(group_at.z);
  const int row_0 = gemm_tile_row(int(group_at.x), p.tiles_m, p.tiles_n, p.band) * BM;
  const int column_0 = gemm_tile_column(int(group_at.x), p.tiles_m, p.tiles_n, p.band) * BN;
  const int term_0 = gemm_split_begin(split, p.split_k);

  Block block;
  block.a = a + gemm_batch(batch, p.batch_1, p.batch_2, p.a_batch_0, p.a_batch_1, p.a_batch_2) +
      gemm_operand(row_0, term_0, p.a_row, TA);
  block.b = b + gemm_batch(batch, p.batch_1, p.batch_2, p.b_batch_0, p.b_batch_1, p.b_batch_2) +
      gemm_operand(column_0, term_0, p.b_row, !TB);
  block.a_stride = p.a_row;
  block.b_stride = p.b_row;
  block.rows = steel_left(row_0, p.m, BM);
  block.columns = steel_left(column_0, p.n, BN);
  block.terms = gemm_split_end(split, p.split_k, p.k) - term_0;
  block.thread_at = int(thread_index);
  block.lane = int(lane_index);
  block.block_row = int(simd_index) / WN * (BM / WM);
  block.block_column = int(simd_index) % WN * (BN / WN);
  block.any = block.block_row < block.rows && block.block_column < block.columns;

  float2 sums[Block::kFragmentsM][Block::kFragmentsN];
  STEEL_UNROLL
  for (int i = 0; i < Block::kFragmentsM; ++i) {
    STEEL_UNROLL
    for (int j = 0; j < Block::kFragmentsN; ++j) sums[i][j] = float2(0.0f);
  }
  block.run(sums, a_tiles, b_tiles);

  const int row = row_0 + block.block_row;
  const int column = column_0 + block.block_column;
  device O* to = out + gemm_matrix(batch * p.splits + split, p.m, p.n) + gemm_place(row, column, p.out_row, p.out_column);
  steel::fragments_store<O, Block::kFragmentsM, Block::kFragmentsN, 8, 8>(
      sums, to, p.out_row, block.lane, block.rows - block.block_row, block.columns - block.block_column,
      gemm_epilogue(p, bias, residual, batch, row, column, alpha, beta), p.out_column);
}
