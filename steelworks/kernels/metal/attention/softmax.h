// The arithmetic of an online softmax, shared by the tiled and the vector form.
//
// The running maximum starts at the lowest finite number, never at -inf, so that no difference is inf - inf. A score of
// -inf means "excluded": it gets weight 0, and a row with no other scores has sum 0 and result 0.
#pragma once
#include <metal_stdlib>

using namespace metal;

constant constexpr float SOFTMAX_LOWEST = -3.402823466e38f;
constant constexpr float SOFTMAX_LOG2E = 1.44269504088896340736f;

enum AttentionMask { MASK_NONE = 0, MASK_BOOL = 1, MASK_ADD = 2 };

/// The score under a mask value: a boolean one excludes where it is false, another one is added.
template <int MASK, typename M>
METAL_FUNC float softmax_masked(float score, M mask) {
  if (MASK == MASK_BOOL) return mask != M(0) ? score : -INFINITY;
  return float(mask) == -INFINITY ? -INFINITY : score + float(mask);
}

METAL_FUNC bool softmax_excluded(float score) { return score == -INFINITY; }

/// exp(score - maximum) for maximum >= score, or NaN.
METAL_FUNC float softmax_weight(float score, float maximum) { return exp2((score - maximum) * SOFTMAX_LOG2E); }

/// sum / total, and 0 for a row that saw no key.
METAL_FUNC float softmax_quotient(float sum, float total) { return total == 0.0f ? 0.0f : sum / total; }
