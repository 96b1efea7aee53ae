/* Which element the embedding kernel touches. A subset of C: the kernel and the proofs include it.
 *
 * Offsets are in elements; -1 stands for "outside: do not touch". The ids may be anything. */
#pragma once

/* Where row `id` of the table begins: -1 for an id that it does not have. */
static inline long embedding_row(long id, int table_rows, int table_stride) {
  return id >= 0 && id < table_rows ? id * table_stride : -1;
}

/* Element `column` of a row that begins at `row`. */
static inline long embedding_element(long row, int column) { return row + column; }

/* Element (at, column) of the output, which is dense. */
static inline long embedding_output(int at, int column, int ids, int width) {
  return at < ids && column < width ? (long)at * width + column : -1;
}
/* Whether columns [column, column + packet) lie inside. */
static inline int embedding_packet_inside(int column, int width, int packet) { return column <= width - packet; }
