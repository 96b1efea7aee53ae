// Stable sorting of lines: tiles in threadgroup memory, then passes that merge sorted runs two by two (merge path).
//
// A pass moves pairs (key, place); the last one writes values, which it reads from x, and indices.
#pragma once
#include "sort/order.h"
#include "sort/params.h"

namespace steel {

STEEL_CONSTANT int kSortThreads = 256;

/// Where sorted pairs go: as a value and an index (LAST), or as they are.
template <typename T, bool LAST> struct Sorted {
  device const T* x;
  device key_t<T>* keys;
  device int* places;
  device T* values;
  device long* indices;
  METAL_FUNC void put(Pair<key_t<T>> pair, int row, int at, constant SortParams& p) const thread {
    if (LAST) {
      const long to = steel_line_element(row, at, p.length * p.inner, p.inner);
      values[to] = x[steel_line_element(row, pair.place, p.x_stride, p.inner)];
      indices[to] = pair.place;
    } else {
      const long to = sort_pair(row, at, p.length);
      keys[to] = pair.key;
      places[to] = pair.place;
    }
  }
};

}  // namespace steel

/// Sorts tiles of E * threads pairs: of x (FIRST), or of keys and places. Grid: (tiles, rows) threadgroups.
template <typename T, bool FIRST, bool LAST, int E>
[[kernel]] void sort_block(
    device const T* x [[buffer(0)]],
    device const steel::key_t<T>* keys_in [[buffer(1)]],
    device const int* places_in [[buffer(2)]],
    device steel::key_t<T>* keys_out [[buffer(3)]],
    device int* places_out [[buffer(4)]],
    device T* values [[buffer(5)]],
    device long* indices [[buffer(6)]],
    constant SortParams& p [[buffer(7)]],
    uint2 group_at [[threadgroup_position_in_grid]],
    uint2 group_size [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  typedef steel::key_t<T> K;
  threadgroup K keys[steel::kSortThreads * E];
  threadgroup int places[steel::kSortThreads * E];
  const int row = int(group_at.y), first = int(group_at.x) * p.tile, count = sort_edge(first, p.tile, p.length) - first;
  const int thread_at = int(thread_index), threads = int(group_size.x);
  for (int i = thread_at; i < count; i += threads) {
    if (FIRST) {
      keys[i] = steel::Order<T>::of(x[steel_line_element(row, first + i, p.x_stride, p.inner)], p.flip);
      places[i] = first + i;
    } else {
      const long from = sort_pair(row, first + i, p.length);
      keys[i] = keys_in[from];
      places[i] = places_in[from];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  steel::group_sort<K, E>(keys, places, count, thread_at);
  const steel::Sorted<T, LAST> sorted{x, keys_out, places_out, values, indices};
  for (int i = thread_at; i < count; i += threads) sorted.put(steel::Pair<K>{keys[i], places[i]}, row, first + i, p);
}

/// Merges runs of p.width pairs two by two; a threadgroup makes p.tile pairs of a result. Grid: (tiles, rows) threadgroups.
template <typename T, bool LAST, int E>
[[kernel]] void sort_merge(
    device const T* x [[buffer(0)]],
    device const steel::key_t<T>* keys_in [[buffer(1)]],
    device const int* places_in [[buffer(2)]],
    device steel::key_t<T>* keys_out [[buffer(3)]],
    device int* places_out [[buffer(4)]],
    device T* values [[buffer(5)]],
    device long* indices [[buffer(6)]],
    constant SortParams& p [[buffer(7)]],
    uint2 group_at [[threadgroup_position_in_grid]],
    uint2 group_size [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  typedef steel::key_t<T> K;
  threadgroup K keys[steel::kSortThreads * E];
  threadgroup int places[steel::kSortThreads * E];
  threadgroup int of_first[2];  // of the first run, before this tile and up to its end
  const int row = int(group_at.y), first = int(group_at.x) * p.tile, count = sort_edge(first, p.tile, p.length) - first;
  const int thread_at = int(thread_index), threads = int(group_size.x);
  const int begin = sort_pair_begin(first, p.width), middle = sort_edge(begin, p.width, p.length);
  const int end = sort_edge(middle, p.width, p.length);
  const steel::Pairs<K, device const K*, device const int*> source{keys_in, places_in};
  const long base = long(row) * p.length;
  if (thread_at < 2)
    of_first[thread_at] = steel::merge_split<K>(
        source, base + begin, middle - begin, base + middle, end - middle, first - begin + (thread_at == 0 ? 0 : count));
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const int firsts = of_first[1] - of_first[0], seconds = count - firsts;
  const int first_from = begin + of_first[0], second_from = middle + (first - begin - of_first[0]);
  for (int i = thread_at; i < count; i += threads) {
    const long from = sort_pair(row, sort_source(i, firsts, first_from, second_from), p.length);
    keys[i] = keys_in[from];
    places[i] = places_in[from];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  steel::Pair<K> mine[E];
  const steel::Pairs<K, threadgroup K*, threadgroup int*> tile{keys, places};
  steel::merge_some<K, E>(mine, tile, 0, firsts, firsts, seconds, thread_at * E);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = 0; i < E; ++i) {  // all of the tile: what lies behind `count` is not looked at
    keys[thread_at * E + i] = mine[i].key;
    places[thread_at * E + i] = mine[i].place;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const steel::Sorted<T, LAST> sorted{x, keys_out, places_out, values, indices};
  for (int i = thread_at; i < count; i += threads) sorted.put(steel::Pair<K>{keys[i], places[i]}, row, first + i, p);
}
