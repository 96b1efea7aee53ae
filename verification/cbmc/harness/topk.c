#include "common.h"
#include "rows.h"
#include "topk/index.h"

//: topk_columns | every element of a chunk is one thread's, and no place in it is taken twice
static inline void topk_columns(int chunk, int threads) {
  int length = any(1, EXTENT), at = any(0, EXTENT), column = any(0, EXTENT);
  GIVEN((long)at * chunk < length, "topk.py _select: chunks = ceil(length / chunk)");
  int begin = topk_begin(at, chunk), end = topk_end(begin, chunk, length);
  HOLDS(begin >= 0 && begin < end && end <= length && end - begin <= chunk, "no chunk is empty, all are inside");
  HOLDS(end == length || end == topk_begin(at + 1, chunk), "the next begins where it ends");
  GIVEN(begin <= column && column < end, "an element of the chunk");
  int thread_at = (column - begin) % threads, step = (column - begin) / threads;
  HOLDS(step < TOPK_ELEMENTS, "a thread has a place for it");
  HOLDS(topk_column(begin, thread_at, step, threads) == column, "covered");
  int other = any(0, threads - 1), turn = any(0, TOPK_ELEMENTS - 1);
  HOLDS(topk_column(begin, other, turn, threads) != column || (other == thread_at && turn == step), "once");
  REACHED();
}
void check_topk_columns_0(void) { topk_columns(TOPK_CHUNK, TOPK_CHUNK / TOPK_ELEMENTS); }
void check_topk_columns_1(void) { topk_columns(256, 32); }

//: topk_winners | a chunk has at least one winner and no more than it has elements, nor than are wanted
void check_topk_winners(void) {
  int begin = any(0, EXTENT), end = any(0, EXTENT), k = any(1, EXTENT), winners;
  GIVEN(begin < end, "check topk_columns");
  winners = topk_winners(begin, end, k);
  HOLDS(winners >= 1 && winners <= k && winners <= end - begin, "no more than there are");
  HOLDS(winners == k || winners == end - begin, "all that are wanted, if there are");
  REACHED();
}

//: topk_candidates | candidates are inside what was allocated for them, and no two share a place
static inline void topk_candidates(int k, int chunk) {
  int length = any(1, 64 * TOPK_CHUNK), chunks = ceil_div(length, chunk), rest = length - (chunks - 1) * chunk;
  int kept = (chunks - 1) * k + (k < rest ? k : rest), row = any(0, 15);
  int at_1 = any(0, 2048), at_2 = any(0, 2048), slot_1 = any(0, k - 1), slot_2 = any(0, k - 1);
  GIVEN(at_1 < chunks && at_2 < chunks, "topk.py _select: the grid");
  int begin_1 = topk_begin(at_1, chunk), begin_2 = topk_begin(at_2, chunk);
  GIVEN(slot_1 < topk_winners(begin_1, topk_end(begin_1, chunk, length), k), "topk.h: slots are counted up to the winners");
  GIVEN(slot_2 < topk_winners(begin_2, topk_end(begin_2, chunk, length), k), "topk.h: slots are counted up to the winners");
  long one = topk_candidate(0, at_1, slot_1, k, kept), two = topk_candidate(0, at_2, slot_2, k, kept);
  HOLDS(one >= 0 && one < kept, "inside the row");
  HOLDS(one != two || (at_1 == at_2 && slot_1 == slot_2), "once");
  HOLDS(topk_candidate(row, at_1, slot_1, k, WIDE) == (long)row * WIDE + one, "the row's offset in 64 bits");
  REACHED();
}
void check_topk_candidates_0(void) { topk_candidates(2048, TOPK_CHUNK); }
void check_topk_candidates_1(void) { topk_candidates(50, TOPK_CHUNK); }
