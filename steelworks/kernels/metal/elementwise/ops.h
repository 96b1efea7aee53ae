// The operations: a functor of a line or two each, on float, int or long (narrow integers compute as int and wrap when
// stored, as in torch). What C++ leaves undefined for integers is defined here: overflow wraps, division by 0 gives 0.
#pragma once
#include "steel/math.h"
#include "steel/types.h"

namespace steel {

METAL_FUNC float plus(float a, float b) { return a + b; }
METAL_FUNC int plus(int a, int b) { return int(uint(a) + uint(b)); }
METAL_FUNC long plus(long a, long b) { return long(ulong(a) + ulong(b)); }
METAL_FUNC float minus(float a, float b) { return a - b; }
METAL_FUNC int minus(int a, int b) { return int(uint(a) - uint(b)); }
METAL_FUNC long minus(long a, long b) { return long(ulong(a) - ulong(b)); }
METAL_FUNC float times(float a, float b) { return a * b; }
METAL_FUNC int times(int a, int b) { return int(uint(a) * uint(b)); }
METAL_FUNC long times(long a, long b) { return long(ulong(a) * ulong(b)); }

/// The remainder with the sign of a.
METAL_FUNC float truncated_remainder(float a, float b) { return precise::fmod(a, b); }
METAL_FUNC int truncated_remainder(int a, int b) { return b == 0 || b == -1 ? 0 : a % b; }
METAL_FUNC long truncated_remainder(long a, long b) { return b == 0 || b == -1 ? 0 : a % b; }

METAL_FUNC float power(float a, float b) { return precise::pow(a, b); }
/// A negative exponent gives 0, but for the bases 1 and -1.
template <typename C> METAL_FUNC C whole_power(C a, C b) {
  if (b < C(0)) return a == C(1) ? C(1) : a == C(-1) ? (b % C(2) == C(0) ? C(1) : C(-1)) : C(0);
  C result = C(1);
  for (C left = b; left > C(0); left /= C(2)) {
    if (left % C(2) == C(1)) result = times(result, a);
    a = times(a, a);
  }
  return result;
}
METAL_FUNC int power(int a, int b) { return whole_power(a, b); }
METAL_FUNC long power(long a, long b) { return whole_power(a, b); }

// One operand; float, int or long.
struct Neg { template <typename C> static METAL_FUNC C of(C a) { return minus(C(0), a); } };
template <> METAL_FUNC float Neg::of<float>(float a) { return -a; }
struct Abs { template <typename C> static METAL_FUNC C of(C a) { return a < C(0) ? minus(C(0), a) : a; } };
template <> METAL_FUNC float Abs::of<float>(float a) { return fabs(a); }
struct Sign { template <typename C> static METAL_FUNC C of(C a) { return a > C(0) ? C(1) : a < C(0) ? C(-1) : C(0); } };
struct Square { template <typename C> static METAL_FUNC C of(C a) { return times(a, a); } };
struct Relu { template <typename C> static METAL_FUNC C of(C a) { return a < C(0) ? C(0) : a; } };
struct LogicalNot { template <typename C> static METAL_FUNC bool of(C a) { return a == C(0); } };

// One operand; float.
struct Floor { static METAL_FUNC float of(float a) { return floor(a); } };
struct Ceil { static METAL_FUNC float of(float a) { return ceil(a); } };
struct Round { static METAL_FUNC float of(float a) { return rint(a); } };  // halves to even, as torch
struct Trunc { static METAL_FUNC float of(float a) { return trunc(a); } };
struct Exp { static METAL_FUNC float of(float a) { return precise::exp(a); } };
struct Log { static METAL_FUNC float of(float a) { return precise::log(a); } };
struct Sqrt { static METAL_FUNC float of(float a) { return precise::sqrt(a); } };
struct Rsqrt { static METAL_FUNC float of(float a) { return precise::rsqrt(a); } };
struct Sin { static METAL_FUNC float of(float a) { return precise::sin(a); } };
struct Cos { static METAL_FUNC float of(float a) { return precise::cos(a); } };
struct Tanh { static METAL_FUNC float of(float a) { return precise::tanh(a); } };
struct Erf { static METAL_FUNC float of(float a) { return erf_float(a); } };
struct Reciprocal { static METAL_FUNC float of(float a) { return 1.0f / a; } };
struct Sigmoid { static METAL_FUNC float of(float a) { return 1.0f / (1.0f + precise::exp(-a)); } };
struct Silu { static METAL_FUNC float of(float a) { return silu(a); } };
struct Gelu { static METAL_FUNC float of(float a) { return gelu(a); } };
/// x * sigmoid(2 u) = x / 2 * (1 + tanh(u)), without its cancellation for negative x.
struct GeluTanh {
  static METAL_FUNC float of(float a) {
    const float twice = 1.59576912160573071176f * fma(0.044715f * a * a, a, a);  // 2 * sqrt(2 / pi)
    return a / (1.0f + precise::exp(-twice));
  }
};

// Two operands; float, int or long.
struct Add { template <typename C> static METAL_FUNC C of(C a, C b) { return plus(a, b); } };
struct Sub { template <typename C> static METAL_FUNC C of(C a, C b) { return minus(a, b); } };
struct Mul { template <typename C> static METAL_FUNC C of(C a, C b) { return times(a, b); } };
struct Maximum { template <typename C> static METAL_FUNC C of(C a, C b) { return a != a || a > b ? a : b; } };
struct Minimum { template <typename C> static METAL_FUNC C of(C a, C b) { return a != a || a < b ? a : b; } };
struct Pow { template <typename C> static METAL_FUNC C of(C a, C b) { return power(a, b); } };
struct Fmod { template <typename C> static METAL_FUNC C of(C a, C b) { return truncated_remainder(a, b); } };
/// The remainder with the sign of b.
struct Remainder {
  template <typename C> static METAL_FUNC C of(C a, C b) {
    const C rest = truncated_remainder(a, b);
    return rest != C(0) && (rest < C(0)) != (b < C(0)) ? plus(rest, b) : rest;
  }
};

// Two operands; float.
struct Div { static METAL_FUNC float of(float a, float b) { return a / b; } };
struct Atan2 { static METAL_FUNC float of(float a, float b) { return precise::atan2(a, b); } };

// Two operands; bool comes out.
struct Eq { template <typename C> static METAL_FUNC bool of(C a, C b) { return a == b; } };
struct Ne { template <typename C> static METAL_FUNC bool of(C a, C b) { return a != b; } };
struct Lt { template <typename C> static METAL_FUNC bool of(C a, C b) { return a < b; } };
struct Le { template <typename C> static METAL_FUNC bool of(C a, C b) { return a <= b; } };
struct Gt { template <typename C> static METAL_FUNC bool of(C a, C b) { return a > b; } };
struct Ge { template <typename C> static METAL_FUNC bool of(C a, C b) { return a >= b; } };
struct LogicalAnd { template <typename C> static METAL_FUNC bool of(C a, C b) { return a != C(0) && b != C(0); } };
struct LogicalOr { template <typename C> static METAL_FUNC bool of(C a, C b) { return a != C(0) || b != C(0); } };
struct LogicalXor { template <typename C> static METAL_FUNC bool of(C a, C b) { return (a != C(0)) != (b != C(0)); } };

}  // namespace steel
