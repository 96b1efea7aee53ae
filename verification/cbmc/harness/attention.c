#include "tile.h"
#include "rows.h"
#include "attention/index.h"

//: attention_once | tiled: what a thread writes is inside, and no two write the same element
//: attention_covers | tiled: every element of the output is written
//: attention_loads | tiled: exactly the queries, keys and values inside are read, with and without guards
static inline void attention_loads(int bq, int bk, int bd, int packet_q, int packet_k, int threads) {
  int q_len = any(1, MOST), k_len = any(0, MOST), d = any(1, 256), first = any(0, MOST / bq) * bq, causal = any(0, 1);
  GIVEN(d <= bd, "attention.py: tuning.pick by head_size");
  GIVEN(first < q_len, "attention.py: the grid has ceil(q_len / queries) threadgroups");
  int end = attention_block_limit(first, bq, q_len, k_len, causal), block = any(0, MOST / bk) * bk;
  GIVEN(block < end, "attention.h: the loop over blocks");
  int keys = k_len - block;
  HOLDS(keys >= 1, "a block has a key");
  int own = any(0, (bq > bk ? bq : bk) - 1), column = any(0, bd - 1);
  long at = steel_element(own, column, keys, d, WIDE);
  if (at >= 0) HOLDS(block + own < k_len, "a key that there is");
  if (at >= 0) HOLDS(attention_row(block, WIDE) + at == attention_key_element(0, block + own, column, d, WIDE), "of that key");
  at = steel_element(own, column, q_len - first, d, WIDE);
  if (at >= 0)
    HOLDS(attention_row(first, WIDE) + at == attention_element(0, first + own, column, q_len, d, WIDE), "a query that there is");
  if (any(0, 1)) tile_load(bk, bd, packet_k, threads, keys < bk ? keys : bk, d, keys >= bk && d == bd);
  else tile_load(bq, bd, packet_q, threads, q_len - first < bq ? q_len - first : bq, d, 0);
  REACHED();
}
//: attention_keys | tiled: the mask is read inside only, and no key that a row sees is left out
static inline void attention_keys(int bq, int bk) {
  int q_len = any(1, MOST), k_len = any(0, MOST), first = any(0, MOST / bq) * bq, causal = any(0, 1);
  GIVEN(first < q_len, "attention.py: the grid has ceil(q_len / queries) threadgroups");
  int end = attention_block_limit(first, bq, q_len, k_len, causal), block = any(0, MOST / bk) * bk;
  int row = first + any(0, bq - 1), key = block + any(0, bk - 1);
  GIVEN(block < MOST + bk, "a block of the loop, or one that it does not come to");
  if (key < attention_key_limit(row, q_len, k_len, causal)) HOLDS(row < q_len && key < k_len, "the mask is read inside");
  if (row < q_len && key < attention_key_limit(row, q_len, k_len, causal)) HOLDS(key < end, "no key of a row is left out");
  REACHED();
}
//: attention_query | tiled: a lane reads exactly the elements of its query that there are
static inline void attention_query(int bq, int bd, int simds) {
  int q_len = any(1, MOST), d = any(1, 256), first = any(0, MOST / bq) * bq, simd = any(0, simds - 1), lane = any(0, 31);
  GIVEN(d <= bd, "attention.py: tuning.pick by head_size");
  int row = first + simd * 8 + steel_fragment_row(lane), column = any(0, bd / 8 - 1) * 8 + steel_fragment_column(lane) + any(0, 1);
  long head = any(0, WIDE), at = attention_element(head, row, column, q_len, d, WIDE);
  HOLDS((at >= 0) == (row < q_len && column < d), "exactly what is inside");
  if (at >= 0) HOLDS(at == head + (long)row * WIDE + column, "the offset in 64 bits");
  REACHED();
}
#define DO(i, bq, bk, bd, simds, packet_q, packet_k) \
  void check_attention_once_##i(void) { TileShape t = {bq, bd, simds, 1, 0}; tile_once(t); } \
  void check_attention_covers_##i(void) { TileShape t = {bq, bd, simds, 1, 0}; tile_covers(t); } \
  void check_attention_loads_##i(void) { attention_loads(bq, bk, bd, packet_q, packet_k, simds * 32); } \
  void check_attention_keys_##i(void) { attention_keys(bq, bk); } \
  void check_attention_query_##i(void) { attention_query(bq, bd, simds); }
ATTENTION_TILE_ROWS(DO)
#undef DO

//: attention_vector_keys | vector form: every key of a split is some simdgroup's, and only keys that there are are read
static inline void attention_vector_keys(int rows, int elements, int simds) {
  int k_len = any(0, MOST), q_len = any(1, 8), causal = any(0, 1), d = any(1, 32 * elements), limit = 0, r = any(0, rows - 1);
  int row = any(0, 8), splits = any(1, 16), split = any(0, 15);
  GIVEN(split < splits && row < q_len, "attention.py _vector: the grid");
  int split_keys = ceil_div(k_len, splits) > 1 ? ceil_div(k_len, splits) : 1;
  int last = attention_key_limit(row, q_len, k_len, causal);
  int begin = attention_split_begin(split, split_keys), end = attention_split_begin(split + 1, split_keys);
  if (last < end) end = last;
  int simd = any(0, simds - 1), key = begin + simd + any(0, MOST / 8) * simds, lane = any(0, 31), i = any(0, elements - 1);
  GIVEN(key < end, "vector.h: the loop over keys");
  HOLDS(key >= 0 && key < k_len, "a key that there is");
  int column = lane * elements + i;
  long at = attention_key_element(0, key, column, d, WIDE);
  HOLDS((at >= 0) == (column < d), "exactly the elements inside");
  if (at >= 0) HOLDS(at == (long)key * WIDE + column, "the offset in 64 bits");
  HOLDS((key - begin) % simds == simd, "a key has one simdgroup");
  REACHED();
}
//: attention_vector_outputs | vector form: every element of a row is written by exactly one thread
static inline void attention_vector_outputs(int simds, int elements) {
  int dv = any(1, 32 * elements), thread_1 = any(0, simds * 32 - 1), thread_2 = any(0, simds * 32 - 1), turn_1 = any(0, 8), turn_2 = any(0, 8);
  int c_1 = thread_1 + turn_1 * simds * 32, c_2 = thread_2 + turn_2 * simds * 32, c = any(0, 32 * elements - 1);
  HOLDS(c_1 != c_2 || (thread_1 == thread_2 && turn_1 == turn_2), "once");
  GIVEN(c < dv, "an element that there is");
  HOLDS(c % (simds * 32) + c / (simds * 32) * (simds * 32) == c, "covered");
  HOLDS(attention_output(0, 0, MOST, c, 1, MOST + 1, 256) == (long)MOST * 256 + c, "the offset");
  HOLDS(attention_partial(15, WIDE, WIDE - 1, dv + 1, dv) > 0, "the offset of a partial result in 64 bits");
  REACHED();
}
#define DO(i, rows, elements, simds) \
  void check_attention_vector_keys_##i(void) { attention_vector_keys(rows, elements, simds); } \
  void check_attention_vector_outputs_##i(void) { attention_vector_outputs(simds, elements); }
ATTENTION_VECTOR_ROWS(DO)
#undef DO
