// Keys whose order as unsigned integers is that of the values, and sorting of pairs (key, place) in a threadgroup.
//
// No two pairs of a row are equal, as their places differ: every order of merging gives the same result, and a stable one.
#pragma once
#include "sort/index.h"
#include "steel/lines.h"
#include "steel/types.h"

namespace steel {

/// The key of a value: -0 and +0 have the same, every NaN has the largest. Made of bits, so that no GPU that flushes
/// denormals or takes NaN for granted changes it. kBytes: those that differ; flip is -1 (descending) or 0.
template <typename T> struct Order;
template <> struct Order<float> {
  typedef uint Key;
  STEEL_CONSTANT int kBytes = 4;
  static METAL_FUNC Key of(float x, int flip) {
    const uint bits = as_type<uint>(x), size = bits & 0x7fffffffu;
    const uint key = size > 0x7f800000u ? 0xffffffffu : size == 0 ? 0x80000000u : bits >> 31 ? ~bits : bits | 0x80000000u;
    return key ^ uint(flip);
  }
};
/// 16 bits with `infinity` as the bits of +inf.
template <typename T, uint infinity> struct OrderOfSixteen {
  typedef uint Key;
  STEEL_CONSTANT int kBytes = 2;
  static METAL_FUNC Key of(T x, int flip) {
    const uint bits = as_type<ushort>(x), size = bits & 0x7fffu;
    const uint key = size > infinity ? 0xffffu : size == 0 ? 0x8000u : bits >> 15 ? ~bits : bits | 0x8000u;
    return (key ^ uint(flip)) & 0xffffu;
  }
};
template <> struct Order<half> : OrderOfSixteen<half, 0x7c00u> {};
template <> struct Order<bfloat> : OrderOfSixteen<bfloat, 0x7f80u> {};
template <> struct Order<int> {
  typedef uint Key;
  STEEL_CONSTANT int kBytes = 4;
  static METAL_FUNC Key of(int x, int flip) { return (uint(x) ^ 0x80000000u) ^ uint(flip); }
};
template <> struct Order<long> {
  typedef ulong Key;
  STEEL_CONSTANT int kBytes = 8;
  static METAL_FUNC Key of(long x, int flip) { return (ulong(x) ^ 0x8000000000000000ul) ^ ulong(long(flip)); }
};
template <typename T> using key_t = typename Order<T>::Key;

template <typename K> struct Pair {
  K key;
  int place;
};
template <typename K> METAL_FUNC Pair<K> last_pair() { return Pair<K>{K(~K(0)), 0x7fffffff}; }
template <typename K> METAL_FUNC bool before(Pair<K> a, Pair<K> b) {
  return a.key != b.key ? a.key < b.key : a.place < b.place;
}

/// Pairs in device or threadgroup memory: the keys, and the places behind another pointer.
template <typename K, typename Keys, typename Places> struct Pairs {
  Keys keys;
  Places places;
  METAL_FUNC Pair<K> get(long at) const thread { return Pair<K>{keys[at], places[at]}; }
};

/// How many of the first `diagonal` pairs of two merged runs come from the first run (merge path, by bisection). Behind
/// the end of both it is `diagonal - second`, as if the first run went on.
template <typename K, typename Source>
METAL_FUNC int merge_split(Source pairs, long first_from, int first, long second_from, int second, int diagonal) {
  int least = sort_least_of_first(diagonal, second), most = sort_most_of_first(diagonal, first);
  while (least < most) {
    const int half_way = (least + most) / 2;
    if (before<K>(pairs.get(first_from + half_way), pairs.get(second_from + diagonal - 1 - half_way))) least = half_way + 1;
    else most = half_way;
  }
  return least;
}

/// E pairs from `diagonal` on of two merged runs; behind their end, last_pair().
template <typename K, int E, typename Source>
METAL_FUNC void merge_some(
    thread Pair<K> (&out)[E], Source pairs, int first_from, int first, int second_from, int second, int diagonal) {
  int a = merge_split<K>(pairs, first_from, first, second_from, second, diagonal);
  int b = diagonal - a;
  for (int i = 0; i < E; ++i) {
    const Pair<K> from_a = a < first ? pairs.get(first_from + a) : last_pair<K>();
    const Pair<K> from_b = b < second ? pairs.get(second_from + b) : last_pair<K>();
    const bool take_a = before<K>(from_a, from_b);  // no pair of a row is as large as last_pair()
    out[i] = take_a ? from_a : from_b;
    if (take_a) ++a;
    else ++b;
  }
}

/// Sorts `count` <= threads * E pairs in threadgroup memory. All threads call it, behind a barrier that follows the
/// writes; it ends with a barrier.
template <typename K, int E>
METAL_FUNC void group_sort(threadgroup K* keys, threadgroup int* places, int count, int thread_at) {
  const Pairs<K, threadgroup K*, threadgroup int*> pairs{keys, places};
  const int first = thread_at * E;
  Pair<K> mine[E];
  for (int i = 0; i < E; ++i) mine[i] = first + i < count ? pairs.get(first + i) : last_pair<K>();
  for (int round = 0; round < E; ++round) {
    for (int i = round % 2; i + 1 < E; i += 2) {
      const Pair<K> a = mine[i], b = mine[i + 1];
      const bool swap = before<K>(b, a);
      mine[i] = swap ? b : a;
      mine[i + 1] = swap ? a : b;
    }
  }
  for (int width = E;; width *= 2) {
    for (int i = 0; i < E; ++i) {
      if (first + i >= count) continue;
      keys[first + i] = mine[i].key;
      places[first + i] = mine[i].place;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (width >= count) return;
    const int begin = sort_pair_begin(first, width), middle = sort_edge(begin, width, count);
    const int end = sort_edge(middle, width, count);
    merge_some<K, E>(mine, pairs, begin, middle - begin, middle, end - middle, first - begin);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

}  // namespace steel
