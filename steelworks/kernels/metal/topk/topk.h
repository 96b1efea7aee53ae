// The k first of each line: the k-th is found byte by byte (radix select), then the winners are gathered and sorted.
//
// Bytes of the key come first; if they leave more equal elements than are wanted, bytes of the place decide, so that of
// equal elements the first win. In which order threads find winners does not matter: they are sorted afterwards.
#pragma once
#include "sort/order.h"
#include "topk/index.h"
#include "topk/params.h"

namespace steel {

STEEL_CONSTANT int kBins = 256;
STEEL_CONSTANT int kLaneBins = kBins / kSimdWidth;

/// The elements of a chunk: of x (FIRST), or candidates. A place of -1 is "none".
template <typename T, bool FIRST> struct Chunk {
  typedef Pair<key_t<T>> P;
  device const T* x;
  device const key_t<T>* keys;
  device const int* places;
  int row;
  int end;
  METAL_FUNC P get(int column, constant TopkParams& p) const thread {
    if (column >= end) return P{0, -1};
    if (FIRST) return P{Order<T>::of(x[steel_line_element(row, column, p.x_stride, p.inner)], p.flip), column};
    const long at = sort_pair(row, column, p.length);
    return P{keys[at], places[at]};
  }
};

/// A thread's elements: E in registers, read once; or with E = 0 read whenever they are wanted.
template <typename C, int E> struct Elements {
  typename C::P kept[E];
  METAL_FUNC Elements(C chunk, int first, int threads, constant TopkParams& p) {
    for (int i = 0; i < E; ++i) kept[i] = chunk.get(topk_column(first, 0, i, threads), p);
  }
  METAL_FUNC int steps(int, int) const thread { return E; }
  METAL_FUNC typename C::P get(C, int, int step, int, constant TopkParams&) const thread { return kept[step]; }
};
template <typename C> struct Elements<C, 0> {
  METAL_FUNC Elements(C, int, int, constant TopkParams&) {}
  METAL_FUNC int steps(int count, int threads) const thread { return ceil_div(count, threads); }
  METAL_FUNC typename C::P get(C chunk, int first, int step, int threads, constant TopkParams& p) const thread {
    return chunk.get(topk_column(first, 0, step, threads), p);
  }
};

/// What is known of the k-th: its leading bytes.
template <typename K> struct Cut {
  K key, key_mask;
  uint place, place_mask;
  METAL_FUNC bool open(Pair<K> pair) const thread {
    return (pair.key & key_mask) == key && (uint(pair.place) & place_mask) == place;
  }
  METAL_FUNC bool wins(Pair<K> pair) const thread {
    return (pair.key & key_mask) < key || ((pair.key & key_mask) == key && (uint(pair.place) & place_mask) <= place);
  }
};

}  // namespace steel

/// E: elements of a thread, or 0 for any number. STAGE: winners that fit threadgroup memory, for LAST; threads * 8 >= STAGE
/// or k. Without LAST, the winners are written as pairs, in any order. Grid: (chunks, rows) threadgroups.
template <typename T, bool FIRST, bool LAST, int E, int STAGE>
[[kernel]] void topk_select(
    device const T* x [[buffer(0)]],
    device const steel::key_t<T>* keys_in [[buffer(1)]],
    device const int* places_in [[buffer(2)]],
    device steel::key_t<T>* keys_out [[buffer(3)]],
    device int* places_out [[buffer(4)]],
    device T* values [[buffer(5)]],
    device long* indices [[buffer(6)]],
    constant TopkParams& p [[buffer(7)]],
    uint2 group_at [[threadgroup_position_in_grid]],
    uint2 group_size [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  typedef steel::key_t<T> K;
  typedef steel::Chunk<T, FIRST> C;
  threadgroup atomic_uint bins[steel::kBins];
  threadgroup atomic_uint taken;
  threadgroup int found[3];  // the bin of the k-th, how many come before it, how many are in it
  threadgroup K keys[STAGE];
  threadgroup int places[STAGE];
  const int row = int(group_at.y), chunk_at = int(group_at.x), thread_at = int(thread_index), threads = int(group_size.x);
  const int begin = topk_begin(chunk_at, p.chunk), end = topk_end(begin, p.chunk, p.length);
  const int winners = topk_winners(begin, end, p.k);
  const C chunk{x, keys_in, places_in, row, end};
  const int mine = topk_column(begin, thread_at, 0, threads);
  const steel::Elements<C, E> elements(chunk, mine, threads, p);
  const int steps = elements.steps(end - begin, threads);

  if (thread_at == 0) atomic_store_explicit(&taken, 0u, memory_order_relaxed);
  for (int bin = thread_at; bin < steel::kBins; bin += threads) atomic_store_explicit(&bins[bin], 0u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  steel::Cut<K> cut{0, 0, 0, 0};
  int wanted = winners;  // of those that are open
  bool done = winners == end - begin;
  for (int digit = 0; digit < steel::Order<T>::kBytes + p.place_bytes && !done; ++digit) {
    const bool of_key = digit < steel::Order<T>::kBytes;
    const int shift = 8 * (steel::Order<T>::kBytes + (of_key ? 0 : p.place_bytes) - 1 - digit);
    for (int step = 0; step < steps; ++step) {
      const steel::Pair<K> pair = elements.get(chunk, mine, step, threads, p);
      if (pair.place < 0 || !cut.open(pair)) continue;
      const uint bin = of_key ? uint(pair.key >> shift) & 255u : uint(pair.place) >> shift & 255u;
      atomic_fetch_add_explicit(&bins[bin], 1u, memory_order_relaxed);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simd == 0) {
      int count[steel::kLaneBins], sum = 0;
      for (int i = 0; i < steel::kLaneBins; ++i) {
        // Empty again for the next digit.
        count[i] = int(atomic_exchange_explicit(&bins[int(lane) * steel::kLaneBins + i], 0u, memory_order_relaxed));
        sum += count[i];
      }
      int before = simd_prefix_exclusive_sum(sum);
      for (int i = 0; i < steel::kLaneBins; ++i) {
        if (before < wanted && wanted <= before + count[i]) {  // one bin of one lane
          found[0] = int(lane) * steel::kLaneBins + i;
          found[1] = before;
          found[2] = count[i];
        }
        before += count[i];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (of_key) {
      cut.key |= K(found[0]) << shift;
      cut.key_mask |= K(255) << shift;
    } else {
      cut.place |= uint(found[0]) << shift;
      cut.place_mask |= 255u << shift;
    }
    wanted -= found[1];
    done = of_key && wanted == found[2];  // bytes of places seldom cut between two of their values
  }

  for (int step = 0; step < steps; ++step) {
    const steel::Pair<K> pair = elements.get(chunk, mine, step, threads, p);
    if (pair.place < 0 || !cut.wins(pair)) continue;
    const int slot = int(atomic_fetch_add_explicit(&taken, 1u, memory_order_relaxed));
    if (LAST) {
      keys[slot] = pair.key;
      places[slot] = pair.place;
    } else {
      const long to = topk_candidate(row, chunk_at, slot, p.k, p.kept);
      keys_out[to] = pair.key;
      places_out[to] = pair.place;
    }
  }
  if (!LAST) return;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  steel::group_sort<K, 8>(keys, places, winners, thread_at);
  for (int i = thread_at; i < winners; i += threads) {
    const long to = steel_line_element(row, i, p.kept * p.inner, p.inner);
    values[to] = x[steel_line_element(row, places[i], p.x_stride, p.inner)];
    indices[to] = places[i];
  }
}
