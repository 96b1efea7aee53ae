// What happens to a sum before it is stored: scale, bias, residual, activation. All in float; the store rounds once.
#pragma once
#include "steel/index.h"
#include "steel/math.h"
#include "steel/types.h"

/// The numbers are those of the host's tuning.ACTIVATIONS.
enum SteelActivation { ACTIVATION_NONE = 0, ACTIVATION_RELU = 1, ACTIVATION_GELU = 2, ACTIVATION_SILU = 3 };

namespace steel {

METAL_FUNC float activate(float x, int activation) {
  switch (activation) {
    case ACTIVATION_RELU: return relu(x);
    case ACTIVATION_GELU: return gelu(x);
    case ACTIVATION_SILU: return silu(x);
    default: return x;
  }
}

/// activation(alpha * sum + bias[row, column] + beta * residual[row, column]).
///
/// The flags are arguments, not template parameters: they are the same for all threads, and are looked at once an output
/// element, after the loop over K; as template parameters they would make sixteen kernels of one.
template <typename O>
struct Epilogue {
  device const O* bias;      // of this tile's first element; followed only if has_bias
  device const O* residual;  // of this tile's first element; followed only if has_residual
  int bias_row_stride = 0;     // 0, 1: one value a column; 1, 0 where the product is computed transposed
  int bias_column_stride = 1;
  int residual_row_stride;
  int residual_column_stride = 1;
  int has_bias;
  int has_residual;
  int activation;
  float alpha;
  float beta;

  METAL_FUNC float operator()(float sum, int row, int column) const thread {
    float value = alpha * sum;
    if (has_bias) value += float(bias[steel_place_strided(row, column, bias_row_stride, bias_column_stride)]);
    if (has_residual) {
      value += beta * float(residual[steel_place_strided(row, column, residual_row_stride, residual_column_stride)]);
    }
    return activate(value, activation);
  }
};

}  // namespace steel
