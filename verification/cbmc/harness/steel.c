#include "common.h"
#include "rows.h"
#include "steel/index.h"

//: steel_loader_covers | every element of a tile is moved, by a thread and step that there are
static inline void steel_loader_covers(int rows, int columns, int packet, int threads) {
  int row = any(0, rows - 1), column = any(0, columns - 1);
  int at = row * (columns / packet) + column / packet;
  int step = at / threads, thread_at = at % threads;
  int from = steel_packet_column(thread_at, step, columns, packet, threads);
  HOLDS(step < ceil_div(rows * (columns / packet), threads), "the step is taken");
  HOLDS(steel_packet_row(thread_at, step, columns, packet, threads) == row, "the row");
  HOLDS(from <= column && column < from + packet, "the packet has the column");
  REACHED();
}
//: steel_loader_once | no two threads or steps move the same element; what a thread moves lies in the tile
static inline void steel_loader_once(int rows, int columns, int packet, int threads) {
  int steps = ceil_div(rows * (columns / packet), threads);
  int thread_1 = any(0, threads - 1), step_1 = any(0, steps - 1), thread_2 = any(0, threads - 1), step_2 = any(0, steps - 1);
  int row_1 = steel_packet_row(thread_1, step_1, columns, packet, threads);
  int column_1 = steel_packet_column(thread_1, step_1, columns, packet, threads);
  int row_2 = steel_packet_row(thread_2, step_2, columns, packet, threads);
  int column_2 = steel_packet_column(thread_2, step_2, columns, packet, threads);
  GIVEN(rows * (columns / packet) % threads == 0 || row_1 < rows, "loader.h: the break in each loop");
  HOLDS(row_1 >= 0 && row_1 < rows, "the row is in the tile");
  HOLDS(column_1 >= 0 && column_1 + packet <= columns, "the packet is in the tile");
  HOLDS(row_1 != row_2 || column_1 + packet <= column_2 || column_2 + packet <= column_1 ||
        (thread_1 == thread_2 && step_1 == step_2), "packets are apart");
  REACHED();
}
#define DO(i, rows, columns, packet, threads) \
  void check_steel_loader_covers_##i(void) { steel_loader_covers(rows, columns, packet, threads); } \
  void check_steel_loader_once_##i(void) { steel_loader_once(rows, columns, packet, threads); }
LOADER_ROWS(DO)
#undef DO

//: steel_fragment | the 32 lanes hold every element of a fragment exactly once
void check_steel_fragment(void) {
  int lane = any(0, 31), other = any(0, 31), row = any(0, 7), column = any(0, 7);
  int row_1 = steel_fragment_row(lane), column_1 = steel_fragment_column(lane);
  HOLDS(row_1 >= 0 && row_1 < 8 && column_1 >= 0 && column_1 + 1 < 8, "inside");
  HOLDS(lane == other || row_1 != steel_fragment_row(other) || column_1 != steel_fragment_column(other), "once");
  HOLDS(column_1 % 2 == 0, "pairs do not overlap");
  int of = lane_of(row, column);
  HOLDS(steel_fragment_row(of) == row && steel_fragment_column(of) + column % 2 == column, "covered");
  REACHED();
}

//: steel_left | never more than the tile or than what is left; positive exactly where something is left
void check_steel_left(void) {
  int first = any(0, EXTENT + MOST), size = any(0, EXTENT), tile = any(1, MOST);
  int left = steel_left(first, size, tile);
  HOLDS(left <= tile && left <= size - first, "at most");
  HOLDS(left == tile || left == size - first, "no less");
  HOLDS((left > 0) == (first < size), "positive where something is left");
  REACHED();
}

//: steel_team | each row is some team's, and each thread of the grid is one member of one team
static inline void steel_team(int lanes, int threads) {
  int group_1 = any(0, EXTENT / 32), group_2 = any(0, EXTENT / 32), thread_1 = any(0, threads - 1), thread_2 = any(0, threads - 1);
  int row_1 = steel_team_row(group_1, thread_1, threads, lanes), row_2 = steel_team_row(group_2, thread_2, threads, lanes);
  int at_1 = steel_team_member(thread_1, lanes), at_2 = steel_team_member(thread_2, lanes);
  HOLDS(at_1 >= 0 && at_1 < steel_team_size(threads, lanes), "a member of its team");
  HOLDS(row_1 != row_2 || at_1 != at_2 || (group_1 == group_2 && thread_1 == thread_2), "one thread a member");
  int row = any(0, EXTENT / 32), member = any(0, (lanes ? lanes : threads) - 1), teams = lanes ? threads / lanes : 1;
  int thread_at = lanes ? row % teams * lanes + member : member;
  HOLDS(steel_team_row(row / teams, thread_at, threads, lanes) == row, "each row has a team");
  HOLDS(steel_team_member(thread_at, lanes) == member, "with all members");
  REACHED();
}
void check_steel_team_8(void) { steel_team(8, 256); }
void check_steel_team_32(void) { steel_team(32, 256); }
void check_steel_team_all(void) { steel_team(0, 1024); }

//: steel_member_columns | each column of a row is in exactly one packet of one member
static inline void steel_member_columns(int packet, int members) {
  int member_1 = any(0, members - 1), member_2 = any(0, members - 1), step_1 = any(0, MOST), step_2 = any(0, MOST);
  int from_1 = steel_member_column(member_1, step_1, members, packet), from_2 = steel_member_column(member_2, step_2, members, packet);
  HOLDS(from_1 >= 0, "inside");
  HOLDS((member_1 == member_2 && step_1 == step_2) || from_1 + packet <= from_2 || from_2 + packet <= from_1, "once");
  int column = any(0, MOST - 1), at = column / packet;
  int from = steel_member_column(at % members, at / members, members, packet);
  HOLDS(from <= column && column < from + packet, "covered");
  REACHED();
}
#define DO(i, packet, members) void check_steel_member_columns_##i(void) { steel_member_columns(packet, members); }
MEMBER_ROWS(DO)
#undef DO

//: steel_packet_inside | true exactly where the row and all columns of the packet lie inside
void check_steel_packet_inside(void) {
  int row = any(0, EXTENT), column = any(0, EXTENT), rows = any(0, EXTENT), columns = any(0, EXTENT), packet = any(1, 8);
  int inside = steel_packet_inside(row, column, rows, columns, packet), i = any(0, 7);
  if (inside && i < packet) HOLDS(steel_element(row, column + i, rows, columns, 0) >= 0, "each element is inside");
  if (!inside) HOLDS(steel_element(row, column + packet - 1, rows, columns, 0) < 0, "no packet is refused without need");
  REACHED();
}

//: steel_place | where a guard finds an element inside, those without one are the same element, and bias and residual have it
void check_steel_place(void) {
  int row = any(0, EXTENT), column = any(0, EXTENT), rows = any(0, EXTENT), columns = any(0, EXTENT), packet = any(1, 8);
  int i = any(0, 7), whole = steel_packet_inside(row, column, rows, columns, packet);
  if (whole && i < packet)
    HOLDS(steel_packet_place(steel_place(row, column, WIDE), i) == steel_element(row, column + i, rows, columns, WIDE), "a packet");
  long at = steel_element_strided(row, column, rows, columns, WIDE, 65536);
  if (at >= 0) {
    HOLDS(steel_place_strided(row, column, WIDE, 65536) == at, "the residual of a result");
    HOLDS(steel_place_strided(row, column, 0, 1) < columns, "the bias of a column");
    HOLDS(steel_place_strided(row, column, 1, 0) < rows, "the bias of a row");
  }
  REACHED();
}

//: steel_wide | offsets are right in 64 bits, with a stride of 2^30
void check_steel_wide(void) {
  int row = any(0, MOST), column = any(0, WIDE - 1);
  long at = steel_element(row, column, MOST + 1, WIDE, WIDE);
  HOLDS(at == (long)row * WIDE + column, "steel_element");
  long other = steel_element_strided(row, column, MOST + 1, WIDE, WIDE, 1);
  HOLDS(other == at, "steel_element_strided by rows");
  HOLDS(steel_element_strided(column, row, WIDE, MOST + 1, 1, WIDE) == at, "steel_element_strided by columns");
  REACHED();
}
