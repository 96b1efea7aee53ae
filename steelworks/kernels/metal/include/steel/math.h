// Scalar functions in float that Metal's library lacks, and the activations.
#pragma once
#include "steel/types.h"

namespace steel {

/// erf(x) / x for |x| < 1, as a polynomial in x * x (Chebyshev fit of degree 7; within 3 units of the last place).
METAL_FUNC float erf_quotient(float square) {
  float sum = -9.67359119e-06f;
  sum = fma(sum, square, 0.000112682537f);
  sum = fma(sum, square, -0.000848439639f);
  sum = fma(sum, square, 0.00522105349f);
  sum = fma(sum, square, -0.0268654376f);
  sum = fma(sum, square, 0.112837829f);
  sum = fma(sum, square, -0.376126379f);
  return fma(sum, square, 1.12837923f);
}

/// erfc(x) for x >= 1: exp(-x * x) times a polynomial in t = 1 / (1 + x / 2) (Chebyshev fit of degree 9 of
/// erfc(x) * exp(x * x) / t up to x = 10.6; beyond, the result is 0 in float). Within 5e-6 of the result.
METAL_FUNC float erfc_tail(float x) {
  const float t = 1.0f / fma(0.5f, x, 1.0f);
  float sum = -0.0704847202f;
  sum = fma(sum, t, 0.221572518f);
  sum = fma(sum, t, -0.19580026f);
  sum = fma(sum, t, -0.0259091277f);
  sum = fma(sum, t, 0.00605479069f);
  sum = fma(sum, t, 0.0747002065f);
  sum = fma(sum, t, 0.179076433f);
  sum = fma(sum, t, 0.246380419f);
  sum = fma(sum, t, 0.282134026f);
  sum = fma(sum, t, 0.282093376f);
  return t * sum * exp(-x * x);
}

/// The error function.
METAL_FUNC float erf_float(float x) {
  const float size = fabs(x);
  if (size < 1.0f) return x * erf_quotient(x * x);
  const float value = 1.0f - erfc_tail(size);
  return x < 0.0f ? -value : value;
}
/// 1 - erf(x), without cancellation where it is small.
METAL_FUNC float erfc_float(float x) {
  const float size = fabs(x);
  if (size < 1.0f) return 1.0f - x * erf_quotient(x * x);
  const float tail = erfc_tail(size);
  return x < 0.0f ? 2.0f - tail : tail;
}

METAL_FUNC float relu(float x) { return x < 0.0f ? 0.0f : x; }  // a NaN stays one
METAL_FUNC float silu(float x) { return x / (1.0f + exp(-x)); }
/// x times the normal distribution function: the exact form, as torch's default.
METAL_FUNC float gelu(float x) { return 0.5f * x * erfc_float(-0.70710678118654752440f * x); }

}  // namespace steel
