// Products with few rows of a: each element of b is read once, and goes straight to registers.
#pragma once
#include "steel/index.h"
#include "steel/reduce.h"
#include "gemm/epilogue.h"
#include "gemm/index.h"
#include "gemm/params.h"

/// b is stored with its terms contiguous (N x K): a simdgroup computes COLUMNS columns, its lanes go along the terms.
/// SIMDS_N simdgroups have columns of their own, SIMDS_K share the terms of a sum.
/// a is stored in any way: term k of row r is a[r * a_row + k * a_term], where one of these is 1 (TA: a_row is).
/// Grid: (columns / (SIMDS_N * COLUMNS), batch, splits) threadgroups of SIMDS_K * SIMDS_N * 32 threads; m <= ROWS.
template <typename T, typename O, int ROWS, int COLUMNS, int SIMDS_K, int SIMDS_N, bool TA>
[[kernel]] void gemv_dot(
    device const T* a [[buffer(0)]],
    device const T* b [[buffer(1)]],
    device const O* bias [[buffer(2)]],
    device const O* residual [[buffer(3)]],
    device O* out [[buffer(4)]],
    constant GemmParams& params [[buffer(5)]],
    constant float& alpha [[buffer(6)]],
    constant float& beta [[buffer(7)]],
    uint3 group_at [[threadgroup_position_in_grid]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint lane_index [[thread_index_in_simdgroup]]) {
  constexpr int PACKET = steel::Sixteen<T>::count;
  constexpr int RESULTS = ROWS * COLUMNS;
  constexpr int LANES = SIMDS_K * 32;
  static_assert(RESULTS <= 32, "a lane stores at most one result");
  typedef steel::Packet<T, PACKET> P;
  threadgroup float parts[SIMDS_K > 1 ? SIMDS_K * SIMDS_N * RESULTS : 1];

  const GemmParams p = params;
  const int batch = int(group_at.y);
  const int split = int(group_at.z);
  const int simd_n = int(simd_index) / SIMDS_K;
  const int simd_k = int(simd_index) % SIMDS_K;
  const int lane = int(lane_index);
  const int lane_of_all = simd_k * 32 + lane;
  const int column_0 = (int(group_at.x) * SIMDS_N + simd_n) * COLUMNS;
  const int columns = steel_left(column_0, p.n, COLUMNS);
  const int term_0 = gemm_split_begin(split, p.split_k);
  const int terms = gemm_split_end(split, p.split_k, p.k) - term_0;
  const int packets = gemv_packets(terms, PACKET);
  a += gemm_batch(batch, p.batch_1, p.batch_2, p.a_batch_0, p.a_batch_1, p.a_batch_2) + gemm_operand(0, term_0, p.a_row, TA);
  b += gemm_batch(batch, p.batch_1, p.batch_2, p.b_batch_0, p.b_batch_1, p.b_batch_2) +
      gemm_operand(column_0, term_0, p.b_row, false);

  float sums[ROWS][COLUMNS];
  STEEL_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    STEEL_UNROLL
    for (int c = 0; c < COLUMNS; ++c) sums[r][c] = 0.0f;
  }
  for (int packet = lane_of_all; packet < packets; packet += LANES) {
    const int k = packet * PACKET;
    float left[ROWS][PACKET];
    STEEL_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      STEEL_UNROLL
      for (int i = 0; i < PACKET; ++i) left[r][i] = r < p.m ? float(a[gemm_operand(r, k + i, p.a_row, TA)]) : 0.0f;
    }
    STEEL_UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
      if (c >= columns) break;
      const P right = *reinterpret_cast<device const P*>(b + gemm_operand(c, k, p.b_row, false));
      STEEL_UNROLL
      for (int r = 0; r < ROWS; ++r) {
        STEEL_UNROLL
        for (int i = 0; i < PACKET; ++i) sums[r][c] = fma(left[r][i], float(right.at[i]), sums[r][c]);
      }
    }
  }
  // What is left over are fewer terms than a packet has: one lane each.
  const int k = packets * PACKET + lane_of_all;
  if (k < terms) {
    STEEL_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      if (r >= p.m) break;
      const float left = float(a[gemm_operand(r, k, p.a_row, TA)]);
      STEEL_UNROLL
      for (int c = 0; c < COLUMNS; ++c) {
        if (c >= columns) break;
        sums[r][c] = fma(left, float(b[gemm_operand(c, k, p.b_row, false)]), sums[r][c]);
      }
    }
  }

  // Lane i keeps result i.
  float mine = 0.0f;
  STEEL_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    STEEL_UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
      const float sum = simd_sum(sums[r][c]);
      if (lane == r * COLUMNS + c) mine = sum;
    }
  }
  if (SIMDS_K > 1) {
    if (lane < RESULTS) parts[int(simd_index) * RESULTS + lane] = mine;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simd_k != 0) return;
    mine = 0.0f;
    if (lane < RESULTS) {
      for (int i = 0; i < SIMDS_K; ++i) mine += parts[(simd_n * SIMDS_K + i) * RESULTS + lane];
    }
  }
  const int row = lane / COLUMNS;
  const int column = lane % COLUMNS;
  const long at = steel_element_strided(row, column, p.m, columns, p.out_row, p.out_column);
  if (at < 0) return;
  const steel::Epilogue<O> last = gemm_epilogue(p, bias, residual, batch, 0, column_0, alpha, beta);
  out[gemm_matrix(batch * p.splits + split, p.m, p.n) + gemm_place(0, column_0, p.out_row, p.out_column) + at] =
      O(last(mine, row, column));
}

/// b is stored with its columns contiguous (K x N): a lane has PACKET adjacent columns, SIMDS simdgroups share the terms.
/// A lane reads one term of a, and hands it to the others by a shuffle: a is read once a threadgroup.
/// Grid: (columns / (32 * PACKET), batch, splits) threadgroups of SIMDS * 32 threads; m <= ROWS.
template <typename T, typename O, int ROWS, int PACKET, int SIMDS, bool TA>
[[kernel]] void gemv_columns(
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
  constexpr int WIDTH = 32 * PACKET;
  constexpr int RESULTS = ROWS * WIDTH;
  typedef steel::Packet<T, PACKET> P;
  threadgroup float parts[SIMDS * RESULTS];

  const GemmParams p = params;
  const int batch = int(group_at.y);
  const int split = int(group_at.z);
  const int simd = int(simd_index);
  const int lane = int(lane_index);
  const int column_0 = int(group_at.x) * WIDTH;
  const int columns = steel_left(column_0, p.n, WIDTH);
  const int mine = lane * PACKET;
  const bool whole = mine + PACKET <= columns;
  const int term_0 = gemm_split_begin(split, p.split_k);
  const int terms = gemm_split_end(split, p.split_k, p.k) - term_0;
  a += gemm_batch(batch, p.batch_1, p.batch_2, p.a_batch_0, p.a_batch_1, p.a_batch_2) + gemm_operand(0, term_0, p.a_row, TA);
  b += gemm_batch(batch, p.batch_1, p.batch_2, p.b_batch_0, p.b_batch_1, p.b_batch_2) +
      gemm_operand(column_0 + mine, term_0, p.b_row, true);

  float sums[ROWS][PACKET];
  STEEL_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    STEEL_UNROLL
    for (int i = 0; i < PACKET; ++i) sums[r][i] = 0.0f;
  }
  for (int first = simd * 32; first < terms; first += SIMDS * 32) {
    const int count = steel_left(first, terms, 32);
    float left[ROWS];
    STEEL_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      left[r] = r < p.m && lane < count ? float(a[gemm_operand(r, first + lane, p.a_row, TA)]) : 0.0f;
    }
    for (int j = 0; j < count; ++j) {
      device const T* from = b + gemm_operand(0, first + j, p.b_row, true);
      P right;
      if (whole) {
        right = *reinterpret_cast<device const P*>(from);
      } else {
        STEEL_UNROLL
        for (int i = 0; i < PACKET; ++i) right.at[i] = mine + i < columns ? from[gemm_operand(i, 0, p.b_row, true)] : T(0);
      }
      STEEL_UNROLL
      for (int r = 0; r < ROWS; ++r) {
        const float term = simd_shuffle(left[r], ushort(j));
        STEEL_UNROLL
        for (int i = 0; i < PACKET; ++i) sums[r][i] = fma(term, float(right.at[i]), sums[r][i]);
      }
    }
  }

  STEEL_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    STEEL_UNROLL
    for (int i = 0; i < PACKET; ++i) parts[simd * RESULTS + r * WIDTH + mine + i] = sums[r][i];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const steel::Epilogue<O> last = gemm_epilogue(p, bias, residual, batch, 0, column_0, alpha, beta);
  out += gemm_matrix(batch * p.splits + split, p.m, p.n) + gemm_place(0, column_0, p.out_row, p.out_column);
  for (int i = int(thread_index); i < p.m * WIDTH; i += SIMDS * 32) {
    const int row = i / WIDTH;
    const int column = i % WIDTH;
    if (column >= columns) continue;
    float sum = 0.0f;
    for (int s = 0; s < SIMDS; ++s) sum += parts[s * RESULTS + i];
    out[gemm_place(row, column, p.out_row, p.out_column)] = O(last(sum, row, column));
  }
}
