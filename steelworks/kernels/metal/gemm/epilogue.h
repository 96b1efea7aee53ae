// The epilogue of a gemm kernel from its parameters.
#pragma once
#include "steel/epilogue.h"
#include "gemm/index.h"
#include "gemm/params.h"

/// For results from (row, column) on.
template <typename O>
METAL_FUNC steel::Epilogue<O> gemm_epilogue(
    thread const GemmParams& p, device const O* bias, device const O* residual, int batch, int row, int column, float alpha,
    float beta) {
  steel::Epilogue<O> last;
  last.bias = bias + gemm_place(row, column, p.bias_row, p.bias_column);
  last.residual = residual + gemm_place(row, column, p.residual_row, p.residual_column) +
      gemm_batch(batch, p.batch_1, p.batch_2, p.residual_batch_0, p.residual_batch_1, p.residual_batch_2);
  last.bias_row_stride = p.bias_row;
  last.bias_column_stride = p.bias_column;
  last.residual_row_stride = p.residual_row;
  last.residual_column_stride = p.residual_column;
  last.has_bias = p.has_bias;
  last.has_residual = p.has_residual;
  last.activation = p.activation;
  last.alpha = alpha;
  last.beta = beta;
  return last;
}
