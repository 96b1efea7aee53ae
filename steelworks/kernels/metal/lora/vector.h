// LoRA for few rows: y = x W^T + bias + scale (x A^T) B^T in one launch.
//
// A threadgroup first computes x A^T for its rows into threadgroup memory (every threadgroup does: it is r / n of the
// work), then each simdgroup computes COLS columns of y; the low-rank part joins the lanes' partial sums, so that one
// simdgroup sum does for both.
#pragma once
#include <metal_stdlib>
#include "lora/index.h"
#include "lora/params.h"
#include "steel/types.h"

constant constexpr int LORA_MAX_RANK = 64;

/// Grid: (chunks of SIMDS * COLS columns, chunks of ROWS rows) threadgroups of SIMDS * 32 threads.
template <typename T, int ROWS, int COLS, int SIMDS, bool MULTI>
[[kernel]] void lora_vector(
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
    uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float low[ROWS * LORA_MAX_RANK];

  const LoraParams p = params;
  const int first = int(group_at.y) * ROWS;
  int adapter[ROWS];
  float factor[ROWS];
  STEEL_UNROLL
  for (int i = 0; i < ROWS; ++i) {
    adapter[i] = -1;
    factor[i] = scale;
    if (first + i >= p.m) continue;
    adapter[i] = MULTI ? lora_adapter(adapter_of[lora_place(0, first + i, p.m)], p.adapters) : 0;
    if (MULTI && adapter[i] >= 0) factor[i] = scales[lora_place(0, adapter[i], p.adapters)];
  }

  for (int rank = int(simd); rank < p.r; rank += SIMDS) {
    float sum[ROWS];
    STEEL_UNROLL
    for (int i = 0; i < ROWS; ++i) sum[i] = 0.0f;
    for (int c = int(lane); c < p.k; c += 32) {
      float shared = 0.0f;
      if (!MULTI) shared = float(a[lora_place(rank, c, p.k)]);
      STEEL_UNROLL
      for (int i = 0; i < ROWS; ++i) {
        if (adapter[i] < 0) continue;  // nor has a row outside one
        const float part = MULTI ? float(a[lora_a(adapter[i], p.r, p.k) + lora_place(rank, c, p.k)]) : shared;
        sum[i] += float(x[lora_place(first + i, c, p.x_row)]) * part;
      }
    }
    STEEL_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const float total = simd_sum(sum[i]);
      if (lane == 0) low[i * LORA_MAX_RANK + rank] = total * factor[i];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const int column = lora_vector_column(int(group_at.x), int(simd), SIMDS, COLS);
  float acc[ROWS][COLS];
  STEEL_UNROLL
  for (int i = 0; i < ROWS; ++i)
    STEEL_UNROLL
    for (int j = 0; j < COLS; ++j) acc[i][j] = 0.0f;
  for (int c = int(lane); c < p.k; c += 32) {
    float part[COLS];
    STEEL_UNROLL
    for (int j = 0; j < COLS; ++j) {
      const long at = lora_row_element(column + j, c, p.n, p.w_row);
      part[j] = at >= 0 ? float(w[at]) : 0.0f;
    }
    STEEL_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const long at = lora_row_element(first + i, c, p.m, p.x_row);
      if (at < 0) continue;
      const float value = float(x[at]);
      STEEL_UNROLL
      for (int j = 0; j < COLS; ++j) acc[i][j] += value * part[j];
    }
  }
  for (int rank = int(lane); rank < p.r; rank += 32) {
    STEEL_UNROLL
    for (int j = 0; j < COLS; ++j) {
      const long at = lora_row_element(column + j, rank, p.n, p.r);
      if (at < 0) continue;
      float shared = 0.0f;
      if (!MULTI) shared = float(b[at]);
      STEEL_UNROLL
      for (int i = 0; i < ROWS; ++i) {
        if (adapter[i] < 0) continue;
        const float part = MULTI ? float(b[lora_b(adapter[i], p.n, p.r) + at]) : shared;
        acc[i][j] += low[i * LORA_MAX_RANK + rank] * part;
      }
    }
  }
  STEEL_UNROLL
  for (int i = 0; i < ROWS; ++i) {
    STEEL_UNROLL
    for (int j = 0; j < COLS; ++j) {
      const float total = simd_sum(acc[i][j]);
      const long at = lora_element(first + i, column + j, p.m, p.n, p.n);
      if (lane == 0 && at >= 0) y[at] = T(total + (p.has_bias ? float(bias[lora_place(0, column + j, p.n)]) : 0.0f));
    }
  }
}
