#include "common.h"
#include "rows.h"
#include "sort/index.h"
#include "steel/lines.h"

//: sort_runs | merging: the two runs of a tile follow each other, hold the tile, and stay inside
static inline void sort_runs(int width, int tile) {
  int length = any(1, EXTENT), first = any(0, EXTENT / tile) * tile;
  GIVEN(first < length, "sort.py sort_lines: the grid has ceil(length / tile) threadgroups");
  int begin = sort_pair_begin(first, width), middle = sort_edge(begin, width, length), end = sort_edge(middle, width, length);
  int count = sort_edge(first, tile, length) - first;
  HOLDS(count >= 1 && count <= tile && first + count <= length, "the tile is inside");
  HOLDS(begin >= 0 && begin <= first && begin <= middle && middle <= end && end <= length, "the runs are in order");
  HOLDS(first + count <= end, "the runs hold the tile");
  HOLDS(middle - begin == width || (middle == length && end == length), "the first run is whole, or the last one");
  int firsts = any(0, EXTENT), before = any(0, EXTENT), i = any(0, tile - 1), up_to = first - begin + count;
  /* sort/order.h merge_split: its answer is between sort_least_of_first and sort_most_of_first. */
  GIVEN(before >= sort_least_of_first(first - begin, end - middle) && before <= sort_most_of_first(first - begin, middle - begin),
        "order.h merge_split, for the pairs before the tile");
  GIVEN(before + firsts >= sort_least_of_first(up_to, end - middle) &&
        before + firsts <= sort_most_of_first(up_to, middle - begin) && firsts <= count, "order.h merge_split, for its end");
  GIVEN(i < count, "sort.h sort_merge: the loop");
  int from = sort_source(i, firsts, begin + before, middle + (first - begin - before));
  if (i < firsts) HOLDS(from >= begin && from < middle, "an element of the first run");
  if (i >= firsts) HOLDS(from >= middle && from < end, "an element of the second run");
  REACHED();
}
void check_sort_runs_0(void) { sort_runs(SORT_THREADS * SORT_ELEMENTS, SORT_THREADS * SORT_ELEMENTS); }
void check_sort_runs_1(void) { sort_runs(2 * SORT_THREADS * SORT_ELEMENTS, SORT_THREADS * SORT_ELEMENTS); }
void check_sort_runs_2(void) { sort_runs(EXTENT / 2, SORT_THREADS * SORT_ELEMENTS); }

//: sort_group | in a threadgroup: the runs that a thread merges hold its elements, and stay within the count
static inline void sort_group(int width) {
  int count = any(1, SORT_THREADS * SORT_ELEMENTS), thread_at = any(0, SORT_THREADS - 1), first = thread_at * SORT_ELEMENTS;
  GIVEN(width < count, "order.h group_sort: it returns otherwise");
  int begin = sort_pair_begin(first, width), middle = sort_edge(begin, width, count), end = sort_edge(middle, width, count);
  if (first < count) HOLDS(begin <= first && begin <= middle && middle <= end && end <= count, "the runs are in order");
  int mine = first + any(0, SORT_ELEMENTS - 1);
  if (mine < count) HOLDS(mine >= begin && mine < end, "they hold what the thread makes");
  REACHED();
}
void check_sort_group_0(void) { sort_group(SORT_ELEMENTS); }
void check_sort_group_1(void) { sort_group(64 * SORT_ELEMENTS); }
void check_sort_group_2(void) { sort_group(128 * SORT_ELEMENTS); }

//: sort_split | merge path: the bisection looks at elements of both runs only
void check_sort_split(void) {
  int first = any(0, EXTENT), second = any(0, EXTENT), diagonal = any(0, EXTENT);
  GIVEN((long)diagonal <= (long)first + second, "sort.h, order.h: no diagonal lies behind both runs");
  int least = sort_least_of_first(diagonal, second), most = sort_most_of_first(diagonal, first);
  HOLDS(least >= 0 && least <= most && most <= first && diagonal - least <= second, "what can come from each run");
  int low = any(0, EXTENT), high = any(0, EXTENT);
  GIVEN(low >= least && high <= most && low < high, "order.h merge_split: the loop");
  int half = (low + high) / 2;
  HOLDS(half < first && diagonal - 1 - half >= 0 && diagonal - 1 - half < second, "it looks inside");
  REACHED();
}

//: sort_wide | pairs lie where they should in 64 bits
void check_sort_wide(void) {
  int row = any(0, MOST), at = any(0, WIDE - 1);
  HOLDS(sort_pair(row, at, WIDE) == (long)row * WIDE + at, "a pair");
  HOLDS(steel_line_element(row, at, WIDE, 1) == (long)row * WIDE + at, "an element");
  REACHED();
}
