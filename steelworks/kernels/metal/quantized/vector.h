// y = x dequantize(W)^T + bias for few rows: a simdgroup computes COLS columns of y for ROWS rows.
//
// A lane takes QUANTIZED_CHUNK columns of the weight at a time: they lie in one group, so that their scale multiplies
// one sum: y += scale * sum((q - zero) * x).
#pragma once
#include <metal_stdlib>
#include "quantized/index.h"
#include "quantized/params.h"
#include "quantized/unpack.h"
#include "steel/types.h"

/// Grid: (chunks of SIMDS * COLS columns, chunks of ROWS rows) threadgroups of SIMDS * 32 threads.
template <typename T, int BITS, int ROWS, int COLS, int SIMDS>
[[kernel]] void quantized_vector(
    device const T* x [[buffer(0)]],
    device const uchar* w [[buffer(1)]],
    device const T* scales [[buffer(2)]],
    device const T* zeros [[buffer(3)]],
    device const T* bias [[buffer(4)]],
    device T* y [[buffer(5)]],
    constant QuantizedParams& params [[buffer(6)]],
    uint2 group_at [[threadgroup_position_in_grid]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const QuantizedParams p = params;
  const int first = int(group_at.y) * ROWS;
  const int column = quantized_vector_column(int(group_at.x), int(simd), SIMDS, COLS);
  float acc[ROWS][COLS];
  STEEL_UNROLL
  for (int i = 0; i < ROWS; ++i)
    STEEL_UNROLL
    for (int j = 0; j < COLS; ++j) acc[i][j] = 0.0f;

  for (int c = int(lane) * QUANTIZED_CHUNK; c < p.k; c += 32 * QUANTIZED_CHUNK) {
    float value[ROWS][QUANTIZED_CHUNK];
    STEEL_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      STEEL_UNROLL
      for (int e = 0; e < QUANTIZED_CHUNK; ++e) {
        const long at = quantized_element(first + i, c + e, p.m, p.k, p.x_row);
        value[i][e] = at >= 0 ? float(x[at]) : 0.0f;
      }
    }
    STEEL_UNROLL
    for (int j = 0; j < COLS; ++j) {
      const long at = quantized_row_byte(column + j, c, p.n, p.w_row, BITS);
      if (at < 0) continue;
      float unpacked[QUANTIZED_CHUNK];
      quantized_unpack<BITS>(w + at, unpacked);
      const long group = quantized_group(column + j, c, p.groups, p.group_shift);
      const float scale = float(scales[group]);
      const float zero = float(zeros[group]);
      STEEL_UNROLL
      for (int i = 0; i < ROWS; ++i) {
        float sum = 0.0f;
        STEEL_UNROLL
        for (int e = 0; e < QUANTIZED_CHUNK; ++e) sum += (unpacked[e] - zero) * value[i][e];
        acc[i][j] += scale * sum;
      }
    }
  }
  STEEL_UNROLL
  for (int i = 0; i < ROWS; ++i) {
    STEEL_UNROLL
    for (int j = 0; j < COLS; ++j) {
      const float total = simd_sum(acc[i][j]);
      const long at = quantized_element(first + i, column + j, p.m, p.n, p.n);
      if (lane == 0 && at >= 0) y[at] = T(total + (p.has_bias ? float(bias[quantized_place(0, column + j, p.n)]) : 0.0f));
    }
  }
}
