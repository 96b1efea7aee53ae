// Reductions of rows (adjacent elements) and of columns, in one pass or two.
//
// The order in which values are combined depends on the shape only, never on the schedule. The second pass is the same
// kernel as the first: its input are partial results.
#pragma once
#include "steel/rows.h"
#include "reduce/index.h"
#include "reduce/ops.h"
#include "reduce/params.h"

namespace steel {

/// The combination of the LANES neighbours (0: all 32 lanes), in each of them.
template <typename Op, int LANES, typename V> METAL_FUNC V combine_lanes(V value) {
  for (ushort step = (LANES == 0 ? 32 : LANES) / 2; step > 0; step /= 2) value = Op::combine(value, from_lane(value, step));
  return value;
}

/// How the elements of a pass are read: of the input (FIRST), or partial results.
template <typename Op, bool FIRST> struct Source {
  typedef typename Op::Element Element;
  device const Element* values;
  METAL_FUNC Source(device const Element* from, device const int*) : values(from) {}
  METAL_FUNC typename Op::Value get(long at, int index) const thread { return Op::take(values[at], index); }
  /// N neighbours, each combined with what there is.
  template <int N> METAL_FUNC void add(thread typename Op::Value (&part)[N], long at, int index) const thread {
    const Packet<Element, N> packet = *reinterpret_cast<device const Packet<Element, N>*>(values + at);
    for (int i = 0; i < N; ++i) part[i] = Op::combine(part[i], Op::take(packet.at[i], index + i));
  }
};
template <typename Op> struct Source<Op, false> {
  typedef typename Op::Stored Element;
  device const Element* values;
  device const int* indices;
  METAL_FUNC Source(device const Element* from, device const int* places) : values(from), indices(places) {}
  METAL_FUNC typename Op::Value get(long at, int) const thread {
    return partial_get(values, indices, at, typename Op::Value());
  }
  template <int N> METAL_FUNC void add(thread typename Op::Value (&part)[N], long at, int) const thread {
    for (int i = 0; i < N; ++i) part[i] = Op::combine(part[i], get(steel_packet_place(at, i), 0));
  }
};

/// How the results of a pass are written: finished (LAST), or as partial results.
template <typename Op, bool LAST> struct Sink {
  typedef typename Op::Result Element;
  static METAL_FUNC void put(device Element* to, device int*, long at, typename Op::Value value, int count) {
    to[at] = Op::finish(value, count);
  }
};
template <typename Op> struct Sink<Op, false> {
  typedef typename Op::Stored Element;
  static METAL_FUNC void put(device Element* to, device int* indices, long at, typename Op::Value value, int) {
    partial_put(to, indices, at, value);
  }
};

}  // namespace steel

/// A row, or a chunk of one, by a team. E: elements that a member takes side by side. Grid: rows * chunks teams, in full
/// threadgroups.
template <typename Op, bool FIRST, bool LAST, int LANES, int E>
[[kernel]] void reduce_rows(
    device const typename steel::Source<Op, FIRST>::Element* x [[buffer(0)]],
    device const int* places [[buffer(1)]],
    device typename steel::Sink<Op, LAST>::Element* out [[buffer(2)]],
    device int* out_places [[buffer(3)]],
    constant ReduceParams& p [[buffer(4)]],
    uint group_at [[threadgroup_position_in_grid]],
    uint thread_at [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint simds [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  typedef typename Op::Value Value;
  threadgroup Value scratch[32];
  const steel::Source<Op, FIRST> source(x, places);
  const steel::Member m = steel::member_of<LANES>(int(group_at), int(thread_at), int(threads));
  const int row = reduce_row(m.row, p.chunks);
  const int chunk = reduce_chunk(m.row, p.chunks);
  const int end = reduce_end(chunk, p.chunk, p.length);

  Value part[E];  // E chains of additions that do not wait for each other
  for (int i = 0; i < E; ++i) part[i] = Op::neutral();
  for (int first = reduce_begin(chunk, p.chunk); first < end; first += m.of * E) {
    const int column = first + steel_member_column(m.at, 0, m.of, E);
    if (steel_packet_inside(row, column, p.rows, end, E)) {
      source.add(part, steel_place(row, column, p.row_stride), column);
      continue;
    }
    for (int i = 0; i < E; ++i) {
      const long at = steel_element(row, column + i, p.rows, end, p.row_stride);
      if (at >= 0) part[i] = Op::combine(part[i], source.get(at, column + i));
    }
  }
  for (int i = 1; i < E; ++i) part[0] = Op::combine(part[0], part[i]);
  Value all = steel::combine_lanes<Op, LANES>(part[0]);
  if (LANES == 0) {
    all = steel::group_gather(all, Op::neutral(), scratch, int(simd), int(lane), int(simds));
    all = steel::combine_lanes<Op, 0>(all);
  }
  const long to = reduce_row_result(row, chunk, p.rows, p.chunks);
  if (m.at == 0 && to >= 0) steel::Sink<Op, LAST>::put(out, out_places, to, all, p.count);
}

/// 32 columns side by side in a threadgroup, a lane each; the simdgroups share the places of a chunk.
/// Grid: (threadgroups of 32 columns, chunks).
template <typename Op, bool FIRST, bool LAST>
[[kernel]] void reduce_columns(
    device const typename steel::Source<Op, FIRST>::Element* x [[buffer(0)]],
    device const int* places [[buffer(1)]],
    device typename steel::Sink<Op, LAST>::Element* out [[buffer(2)]],
    device int* out_places [[buffer(3)]],
    constant ReduceParams& p [[buffer(4)]],
    uint2 group_at [[threadgroup_position_in_grid]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint simds [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  typedef typename Op::Value Value;
  threadgroup Value scratch[32][32];
  const steel::Source<Op, FIRST> source(x, places);
  const int column = reduce_column(int(group_at.x), int(lane));
  const int chunk = int(group_at.y);
  const int end = reduce_end(chunk, p.chunk, p.length);
  Value part = Op::neutral();
  for (int place = reduce_begin(chunk, p.chunk) + int(simd); place < end; place += int(simds)) {
    const long at = reduce_column_element(column, place, p.rows, p.length, p.inner);
    if (at >= 0) part = Op::combine(part, source.get(at, place));
  }
  scratch[simd][lane] = part;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const long to = reduce_column_result(column, chunk, p.rows);
  if (simd != 0 || to < 0) return;
  for (int s = 1; s < int(simds); ++s) part = Op::combine(part, scratch[s][lane]);
  steel::Sink<Op, LAST>::put(out, out_places, to, part, p.count);
}
