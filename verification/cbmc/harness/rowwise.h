/* Rows in registers: how a team reads and writes its row (include/steel/rows.h). Used by softmax, norms, reduce, scan. */
#pragma once
#include "common.h"
#include "steel/index.h"

/* A step of a team along [begin, end): what it reads is inside, and nothing inside is missed or met twice. */
static inline void row_step(int rows, int packet, int members, int steps, int begin, int end) {
  int row = any(0, EXTENT), member = any(0, members - 1), step = any(0, steps - 1), i = any(0, packet - 1);
  int from = begin + steel_member_column(member, step, members, packet);
  int whole = steel_packet_inside(row, from, rows, end, packet);
  long at = steel_element(row, from + i, rows, end, WIDE);
  int inside = row < rows && from + i < end;
  HOLDS(from >= begin, "not before the beginning");
  if (whole) HOLDS(inside, "a packet without guards is inside");
  if (whole) HOLDS(steel_packet_place(steel_place(row, from, WIDE), i) == at, "and its elements are those with guards");
  HOLDS((at >= 0) == inside, "with guards, exactly what is inside");
  if (at >= 0) HOLDS(at == (long)row * WIDE + from + i, "the offset in 64 bits");
}
