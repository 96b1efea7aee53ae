/* Where elements lie. A subset of C: kernels and proofs include it. Offsets are in elements; -1 is "outside: do not touch".
 * Rows and columns come from positions of threads and from counters: no caller passes a negative one. */
#pragma once

/* Element (row, column) of a matrix with `rows` rows and `columns` columns. */
static inline long steel_element(int row, int column, int rows, int columns, int row_stride) {
  return row < rows && column < columns ? (long)row * row_stride + column : -1;
}
/* The same where neighbours in a row are `column_stride` apart. */
static inline long steel_element_strided(int row, int column, int rows, int columns, int row_stride, int column_stride) {
  return row < rows && column < columns ? (long)row * row_stride + (long)column * column_stride : -1;
}

/* The same of elements that are inside: a caller has looked, or a tile or a packet is inside as a whole. */
static inline long steel_place(int row, int column, int row_stride) { return (long)row * row_stride + column; }
static inline long steel_place_strided(int row, int column, int row_stride, int column_stride) {
  return (long)row * row_stride + (long)column * column_stride;
}

/* What of `size` is left from `first` on, at most `tile`; 0 or less: nothing. */
static inline int steel_left(int first, int size, int tile) {
  return size - first < tile ? size - first : tile;
}

/* A tile is moved packet by packet: the row and the first column of packet `step` of a thread.
 * (`thread` by itself is a word of Metal.) */
static inline int steel_packet_row(int thread_at, int step, int columns, int packet, int threads) {
  return (thread_at + step * threads) / (columns / packet);
}
static inline int steel_packet_column(int thread_at, int step, int columns, int packet, int threads) {
  return (thread_at + step * threads) % (columns / packet) * packet;
}

/* Where a lane stands in an 8x8 fragment: the row, and the first of two adjacent columns. */
static inline int steel_fragment_row(int lane) { return (lane >> 4 & 1) * 4 + (lane >> 1 & 3); }
static inline int steel_fragment_column(int lane) { return (lane >> 3 & 1) * 4 + (lane & 1) * 2; }

/* Rows in registers: a team is `lanes` neighbours of a simdgroup, or with 0 the whole threadgroup. Which row a thread's
 * team has, the thread's place in the team, and the size of the team. */
static inline int steel_team_row(int group, int thread_at, int threads, int lanes) {
  return lanes == 0 ? group : group * (threads / lanes) + thread_at / lanes;
}
static inline int steel_team_member(int thread_at, int lanes) { return lanes == 0 ? thread_at : thread_at % lanes; }
static inline int steel_team_size(int threads, int lanes) { return lanes == 0 ? threads : lanes; }

/* The first column of packet `step` of a member: neighbours have neighbouring packets. */
static inline int steel_member_column(int member, int step, int members, int packet) {
  return (member + step * members) * packet;
}

/* Whether columns [column, column + packet) of a row lie inside. */
static inline int steel_packet_inside(int row, int column, int rows, int columns, int packet) {
  return row < rows && column <= columns - packet;
}
/* Element `i` of a packet that begins at `at` and is inside as a whole. */
static inline long steel_packet_place(long at, int i) { return at + i; }
