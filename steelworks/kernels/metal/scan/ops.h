// What is scanned: the operations of reduce/ops.h, products, and extremes with their places.
#pragma once
#include "reduce/ops.h"

namespace steel {

METAL_FUNC float times(float a, float b) { return a * b; }
METAL_FUNC long times(long a, long b) { return long(ulong(a) * ulong(b)); }  // wraps

template <typename T> struct ScanProduct {
  typedef T Element;
  typedef opmath_t<T> Value;
  typedef Value Stored;
  typedef conditional_t<is_same<Value, long>::value, long, T> Result;
  static METAL_FUNC Value neutral() { return Value(1); }
  static METAL_FUNC Value take(T x, int) { return Value(x); }
  static METAL_FUNC Value combine(Value a, Value b) { return times(a, b); }
  static METAL_FUNC Result finish(Value a, int) { return Result(a); }
};

/// What the extreme of nothing is, as a value of T.
template <typename T, bool LARGEST> struct Nothing {
  static METAL_FUNC opmath_t<T> value() {
    return opmath_t<T>(LARGEST ? Max::template neutral<T>() : Min::template neutral<T>());
  }
};
template <bool LARGEST> struct Nothing<bool, LARGEST> {
  static METAL_FUNC long value() { return LARGEST ? 0 : 1; }
};

/// The extreme value so far and its index: of several equal ones, or NaN, the last, as in torch. An index of -1: nothing yet.
template <typename T, bool LARGEST> struct ScanPlace {
  typedef T Element;
  typedef opmath_t<T> Stored;
  typedef Placed<Stored> Value;
  typedef T Result;
  static METAL_FUNC Value neutral() { return Value{Nothing<T, LARGEST>::value(), -1}; }
  static METAL_FUNC Value take(T x, int index) { return Value{Stored(x), index}; }
  static METAL_FUNC Value combine(Value a, Value b) {
    return b.index < 0 || (a.index >= 0 && beats<LARGEST>(a.value, b.value)) ? a : b;
  }
};

/// Writes a result: a number, or a number and its index.
template <typename V> struct Scanned {
  template <typename Op> static METAL_FUNC void write(device typename Op::Result* out, device long*, long at, V value) {
    out[at] = Op::finish(value, 0);
  }
};
template <typename V> struct Scanned<Placed<V>> {
  template <typename Op>
  static METAL_FUNC void write(device typename Op::Result* out, device long* indices, long at, Placed<V> placed) {
    out[at] = typename Op::Result(placed.value);
    indices[at] = placed.index;
  }
};

/// The value of another lane, which is there.
METAL_FUNC float of_lane(float value, ushort lane) { return simd_shuffle(value, lane); }
METAL_FUNC int of_lane(int value, ushort lane) { return simd_shuffle(value, lane); }
METAL_FUNC long of_lane(long value, ushort lane) {  // simdgroup functions take 32 bits
  const uint low = simd_shuffle(uint(ulong(value)), lane), high = simd_shuffle(uint(ulong(value) >> 32), lane);
  return long(ulong(high) << 32 | ulong(low));
}
template <typename V> METAL_FUNC Placed<V> of_lane(Placed<V> placed, ushort lane) {
  return Placed<V>{of_lane(placed.value, lane), of_lane(placed.index, lane)};
}

/// The combination of all lanes up to this one. All lanes of the simdgroup call it.
template <typename Op, typename V> METAL_FUNC V lanes_scan(V value, int lane) {
  for (int step = 1; step < kSimdWidth; step *= 2) {
    const V earlier = of_lane(value, ushort(lane >= step ? lane - step : lane));
    if (lane >= step) value = Op::combine(earlier, value);
  }
  return value;
}

}  // namespace steel
