// What is reduced: an operation has a neutral value, takes elements in, combines, and makes the result.
//
// Values are float, long or int, alone or with the index of the element.
#pragma once
#include "steel/reduce.h"
#include "steel/types.h"

namespace steel {

METAL_FUNC float from_lane(float value, ushort mask) { return simd_shuffle_xor(value, mask); }
METAL_FUNC int from_lane(int value, ushort mask) { return simd_shuffle_xor(value, mask); }
METAL_FUNC long from_lane(long value, ushort mask) {  // simdgroup functions take 32 bits
  const uint low = simd_shuffle_xor(uint(ulong(value)), mask);
  const uint high = simd_shuffle_xor(uint(ulong(value) >> 32), mask);
  return long(ulong(high) << 32 | ulong(low));
}

/// A value and where it was.
template <typename V> struct Placed {
  V value;
  int index;
};
template <typename V> METAL_FUNC Placed<V> from_lane(Placed<V> placed, ushort mask) {
  return Placed<V>{from_lane(placed.value, mask), from_lane(placed.index, mask)};
}

/// Partial results in memory: values, and for Placed a second buffer with the indices.
METAL_FUNC float partial_get(device const float* values, device const int*, long at, float) { return values[at]; }
METAL_FUNC long partial_get(device const long* values, device const int*, long at, long) { return values[at]; }
METAL_FUNC int partial_get(device const int* values, device const int*, long at, int) { return values[at]; }
template <typename V>
METAL_FUNC Placed<V> partial_get(device const V* values, device const int* indices, long at, Placed<V>) {
  return Placed<V>{values[at], indices[at]};
}
template <typename V> METAL_FUNC void partial_put(device V* values, device int*, long at, V part) { values[at] = part; }
template <typename V> METAL_FUNC void partial_put(device V* values, device int* indices, long at, Placed<V> part) {
  values[at] = part.value;
  indices[at] = part.index;
}

METAL_FUNC float plus(float a, float b) { return a + b; }
METAL_FUNC long plus(long a, long b) { return long(ulong(a) + ulong(b)); }  // wraps

/// Element: type of the input. Stored: what partial results are stored as. Result: type of the output.
template <typename T> struct ReduceSum {
  typedef T Element;
  typedef opmath_t<T> Value;
  typedef Value Stored;
  typedef conditional_t<is_same<Value, long>::value, long, T> Result;
  static METAL_FUNC Value neutral() { return Value(0); }
  static METAL_FUNC Value take(T x, int) { return Value(x); }
  static METAL_FUNC Value combine(Value a, Value b) { return plus(a, b); }
  static METAL_FUNC Result finish(Value a, int) { return Result(a); }
};
template <typename T> struct ReduceMean {
  typedef T Element;
  typedef float Value;
  typedef Value Stored;
  typedef T Result;
  static METAL_FUNC Value neutral() { return 0.0f; }
  static METAL_FUNC Value take(T x, int) { return float(x); }
  static METAL_FUNC Value combine(Value a, Value b) { return plus(a, b); }
  static METAL_FUNC Result finish(Value a, int count) { return Result(a / float(count)); }
};

/// A NaN beats all; of two values neither of which does, the larger (or smaller).
template <bool LARGEST, typename V> METAL_FUNC bool beats(V a, V b) { return (a != a && b == b) || (LARGEST ? a > b : a < b); }
template <bool LARGEST, typename V> METAL_FUNC V worst() {
  return LARGEST ? Max::template neutral<V>() : Min::template neutral<V>();
}

template <typename T, bool LARGEST> struct ReduceExtreme {
  typedef T Element;
  typedef opmath_t<T> Value;
  typedef Value Stored;
  typedef T Result;
  static METAL_FUNC Value neutral() { return worst<LARGEST, Value>(); }
  static METAL_FUNC Value take(T x, int) { return Value(x); }
  static METAL_FUNC Value combine(Value a, Value b) { return beats<LARGEST>(b, a) ? b : a; }
  static METAL_FUNC Result finish(Value a, int) { return Result(a); }
};
template <typename T> struct ReduceMax : ReduceExtreme<T, true> {};
template <typename T> struct ReduceMin : ReduceExtreme<T, false> {};

/// The index of the extreme value, the lowest one if several are equal (or NaN).
template <typename T, bool LARGEST> struct ReducePlace {
  typedef T Element;
  typedef opmath_t<T> Stored;
  typedef Placed<Stored> Value;
  typedef long Result;
  static METAL_FUNC Value neutral() { return Value{worst<LARGEST, Stored>(), 0x7fffffff}; }
  static METAL_FUNC Value take(T x, int index) { return Value{Stored(x), index}; }
  static METAL_FUNC Value combine(Value a, Value b) {
    if (beats<LARGEST>(a.value, b.value)) return a;
    if (beats<LARGEST>(b.value, a.value)) return b;
    return a.index < b.index ? a : b;
  }
  static METAL_FUNC Result finish(Value a, int) { return long(a.index); }
};
template <typename T> struct ReduceArgmax : ReducePlace<T, true> {};
template <typename T> struct ReduceArgmin : ReducePlace<T, false> {};

/// A NaN counts as true, as in torch.
template <typename T> struct ReduceAny {
  typedef T Element;
  typedef int Value;
  typedef Value Stored;
  typedef bool Result;
  static METAL_FUNC Value neutral() { return 0; }
  static METAL_FUNC Value take(T x, int) { return x != T(0) ? 1 : 0; }
  static METAL_FUNC Value combine(Value a, Value b) { return a | b; }
  static METAL_FUNC Result finish(Value a, int) { return a != 0; }
};
template <typename T> struct ReduceAll {
  typedef T Element;
  typedef int Value;
  typedef Value Stored;
  typedef bool Result;
  static METAL_FUNC Value neutral() { return 1; }
  static METAL_FUNC Value take(T x, int) { return x != T(0) ? 1 : 0; }
  static METAL_FUNC Value combine(Value a, Value b) { return a & b; }
  static METAL_FUNC Result finish(Value a, int) { return a != 0; }
};

}  // namespace steel
