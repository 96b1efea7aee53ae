#include "common.h"
#include "rows.h"
#include "rope/index.h"

//: rope_pairs | every element of a head is in exactly one pair, in both layouts, and no element is in two
void check_rope_pairs(void) {
  int width = any(1, EXTENT), pairs = any(0, EXTENT / 2), interleaved = any(0, 1), column = any(0, EXTENT - 1);
  GIVEN(2 * pairs <= width && column < width, "rope.py rope: 2 * pairs <= width");
  int across = pairs + ceil_div(width - 2 * pairs, 2);
  int pair = column >= 2 * pairs || interleaved ? column / 2 : column < pairs ? column : column - pairs;
  HOLDS(pair < across, "the grid has the pair");
  HOLDS(rope_first(pair, pairs, interleaved) == column || rope_second(pair, pairs, interleaved) == column, "covered");
  int other = any(0, EXTENT / 2);
  HOLDS(rope_first(other, pairs, interleaved) != rope_second(other, pairs, interleaved), "two elements");
  int met = rope_first(other, pairs, interleaved) == column || rope_second(other, pairs, interleaved) == column;
  HOLDS(!met || other == pair, "once");
  HOLDS(rope_first(other, pairs, interleaved) >= 0 && rope_second(other, pairs, interleaved) >= 0, "inside");
  REACHED();
}
//: rope_table | frequencies and offsets are read inside, and each from its own place
void check_rope_table(void) {
  int pairs = any(0, EXTENT / 2), pair = any(0, EXTENT), other = any(0, EXTENT), part = any(0, 1), half = any(0, 1);
  int batches = any(1, EXTENT), batch = any(0, EXTENT - 1), step = any(0, 1), offsets = step ? batches : 1;
  GIVEN(batch < batches, "rope.py rope: the grid has batches * chunks layers");
  HOLDS(rope_offset(batch, step) >= 0 && rope_offset(batch, step) < offsets, "an offset that there is");
  HOLDS(rope_offset(batch, step) == (step ? batch : 0), "its own, or that of all");
  GIVEN(pair < pairs && other < pairs, "rope.h: pairs behind are copied");
  int at = rope_frequency(part, pair, pairs);
  HOLDS(at >= 0 && at < 2 * pairs, "in the table");
  HOLDS(at != rope_frequency(half, other, pairs) || (part == half && pair == other), "once");
  REACHED();
}
//: rope_heads | every head is one thread's; guards are exact, offsets right in 64 bits
void check_rope_heads(void) {
  int heads = any(1, MOST), batches = any(1, MOST), z = any(0, EXTENT), chunks = ceil_div(heads, ROPE_HEADS);
  int head = any(0, MOST - 1), i = any(0, ROPE_HEADS - 1), column = any(0, EXTENT), width = any(1, EXTENT), row = any(0, MOST);
  HOLDS(head >= heads || head / ROPE_HEADS < chunks, "covered");
  long at = rope_input(MOST, head, row, column, heads, width, WIDE, 65536, 4096);
  HOLDS((at >= 0) == (head < heads && column < width), "exactly what is inside");
  if (at >= 0) HOLDS(at == (long)MOST * WIDE + (long)head * 65536 + (long)row * 4096 + column, "the offset");
  long to = rope_output(MOST, head, row, column, MOST, MOST, 65536);
  HOLDS((to >= 0) == (head < MOST && column < 65536), "output: exactly what is inside");
  if (to >= 0) HOLDS(to == (((long)MOST * MOST + head) * MOST + row) * 65536 + column, "output: the offset");
  REACHED();
}
