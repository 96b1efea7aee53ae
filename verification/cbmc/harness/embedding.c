#include "common.h"
#include "rows.h"
#include "steel/index.h"
#include "embedding/index.h"

long nondet_long(void);

//: embedding_row | only rows that the table has are read, whatever the id; offsets in 64 bits
void check_embedding_row(void) {
  long id = nondet_long();
  int rows = any(0, EXTENT);
  long at = embedding_row(id, rows, WIDE);
  HOLDS((at >= 0) == (id >= 0 && id < rows), "exactly the rows that there are");
  if (at >= 0) HOLDS(at == id * WIDE, "the offset");
  int width = any(1, WIDE), column = any(0, WIDE - 1);
  if (at >= 0 && column < width) HOLDS(embedding_element(at, column) == id * WIDE + column, "the offset of its elements");
  REACHED();
}
//: embedding_output | every element is written by one thread, and packets without guards are inside
void check_embedding_output(void) {
  int ids = any(1, EXTENT), width = any(1, 65536), at = any(0, EXTENT), first = any(0, 32768) * EMBEDDING_PACKET;
  int i = any(0, EMBEDDING_PACKET - 1), whole = embedding_packet_inside(first, width, EMBEDDING_PACKET);
  if (whole) HOLDS(first + i < width, "a packet is inside");
  if (!whole) HOLDS(first + EMBEDDING_PACKET > width, "no packet is refused without need");
  HOLDS((embedding_output(at, first + i, ids, 65536) >= 0) == (at < ids && first + i < 65536), "exactly what is inside");
  if (embedding_output(at, first, ids, width) >= 0) HOLDS(steel_place(0, at, ids) < ids, "an id that there is");
  if (at < ids && first + i < 65536)
    HOLDS(embedding_output(at, first + i, ids, 65536) == (long)at * 65536 + first + i, "the offset in 64 bits");
  REACHED();
}
