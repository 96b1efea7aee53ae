// Scans (running sums, products, extremes) of lines, in one launch or three: totals of chunks, offsets from them, the scan.
//
// With three, the input is read twice and a result is rounded once; to add offsets to finished chunks would read and
// write the output again, and round it twice. The order of combination depends on the shape only.
#pragma once
#include "reduce/index.h"
#include "scan/index.h"
#include "scan/ops.h"
#include "scan/params.h"
#include "steel/lines.h"
#include "steel/rows.h"

/// Lines whose elements are adjacent: a chunk by a team of LANES = 32 lanes, or of the whole threadgroup (LANES = 0); E
/// neighbours a thread. TOTAL: only what a chunk combines to is written. Grid: rows * chunks teams, in full threadgroups.
template <typename Op, bool TOTAL, int LANES, int E>
[[kernel]] void scan_rows(
    device const typename Op::Element* x [[buffer(0)]],
    device const typename Op::Stored* offsets [[buffer(1)]],
    device const int* offset_places [[buffer(2)]],
    device typename Op::Result* out [[buffer(3)]],
    device long* out_indices [[buffer(4)]],
    device typename Op::Stored* totals [[buffer(5)]],
    device int* total_places [[buffer(6)]],
    constant ScanParams& p [[buffer(7)]],
    uint group_at [[threadgroup_position_in_grid]],
    uint thread_at [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint simds [[simdgroups_per_threadgroup]],
    uint lane_at [[thread_index_in_simdgroup]]) {
  typedef typename Op::Value Value;
  typedef steel::Packet<typename Op::Element, E> Packet;
  static_assert(LANES == 0 || LANES == steel::kSimdWidth, "a team is a simdgroup or a threadgroup");
  threadgroup Value scratch[2][steel::kSimdWidth];  // in turns, so that a step has one barrier
  const steel::Member m = steel::member_of<LANES>(int(group_at), int(thread_at), int(threads));
  const int lane = int(lane_at);
  const int row = reduce_row(m.row, p.chunks), chunk = reduce_chunk(m.row, p.chunks);
  const int end = reduce_end(chunk, p.chunk, p.length);
  const long total_at = scan_total(row, chunk, p.rows, p.chunks);

  Value carry = Op::neutral();
  if (!TOTAL && p.chunks > 1 && total_at >= 0) carry = steel::partial_get(offsets, offset_places, total_at, carry);
  int turn = 0;
  for (int first = reduce_begin(chunk, p.chunk); first < end; first += m.of * E) {
    const int column = first + steel_member_column(m.at, 0, m.of, E);
    Value upto[E];
    if (steel_packet_inside(row, column, p.rows, end, E)) {
      const Packet packet = *reinterpret_cast<device const Packet*>(x + steel_place(row, column, p.stride));
      for (int i = 0; i < E; ++i) upto[i] = Op::take(packet.at[i], column + i);
    } else {
      for (int i = 0; i < E; ++i) {
        const long at = steel_element(row, column + i, p.rows, end, p.stride);
        upto[i] = at >= 0 ? Op::take(x[at], column + i) : Op::neutral();
      }
    }
    for (int i = 1; i < E; ++i) upto[i] = Op::combine(upto[i - 1], upto[i]);
    const Value upto_lane = steel::lanes_scan<Op>(upto[E - 1], lane);
    const Value up = steel::of_lane(upto_lane, ushort(lane > 0 ? lane - 1 : 0));
    Value before = carry, all;
    if (LANES == 0) {
      if (lane == steel::kSimdWidth - 1) scratch[turn][simd] = upto_lane;
      threadgroup_barrier(mem_flags::mem_threadgroup);
      const Value mine = lane < int(simds) ? scratch[turn][lane] : Op::neutral();
      const Value upto_simd = steel::lanes_scan<Op>(mine, lane);
      const Value simds_before = steel::of_lane(upto_simd, ushort(simd > 0 ? simd - 1 : 0));
      if (simd > 0) before = Op::combine(before, simds_before);
      all = steel::of_lane(upto_simd, ushort(simds - 1));
      turn = 1 - turn;
    } else {
      all = steel::of_lane(upto_lane, ushort(steel::kSimdWidth - 1));
    }
    if (lane > 0) before = Op::combine(before, up);
    carry = Op::combine(carry, all);
    if (TOTAL) continue;
    for (int i = 0; i < E; ++i) {
      const long to = steel_element(row, column + i, p.rows, end, p.length);
      if (to < 0) continue;
      const Value value = p.exclusive == 0 ? Op::combine(before, upto[i]) : i == 0 ? before : Op::combine(before, upto[i - 1]);
      steel::Scanned<Value>::template write<Op>(out, out_indices, to, value);
    }
  }
  if (TOTAL && m.at == 0 && total_at >= 0) steel::partial_put(totals, total_places, total_at, carry);
}

/// Lines of any dimension, a thread for each chunk of each: neighbouring threads have neighbouring lines.
/// Grid: (lines, chunks), in full threadgroups.
template <typename Op, bool TOTAL>
[[kernel]] void scan_columns(
    device const typename Op::Element* x [[buffer(0)]],
    device const typename Op::Stored* offsets [[buffer(1)]],
    device const int* offset_places [[buffer(2)]],
    device typename Op::Result* out [[buffer(3)]],
    device long* out_indices [[buffer(4)]],
    device typename Op::Stored* totals [[buffer(5)]],
    device int* total_places [[buffer(6)]],
    constant ScanParams& p [[buffer(7)]],
    uint2 group_at [[threadgroup_position_in_grid]],
    uint2 group_size [[threads_per_threadgroup]],
    uint thread_at [[thread_index_in_threadgroup]]) {
  typedef typename Op::Value Value;
  const int line = scan_line(int(group_at.x), int(thread_at), int(group_size.x)), chunk = int(group_at.y);
  const int end = reduce_end(chunk, p.chunk, p.length);
  const long total_at = scan_total(line, chunk, p.rows, p.chunks);
  if (total_at < 0) return;
  Value value = Op::neutral();
  if (!TOTAL && p.chunks > 1) value = steel::partial_get(offsets, offset_places, total_at, value);
  for (int place = reduce_begin(chunk, p.chunk); place < end; ++place) {
    const long from = steel_line_element(line, place, p.stride, p.inner);
    const long to = steel_line_element(line, place, p.length * p.inner, p.inner);
    const Value upto = Op::combine(value, Op::take(x[from], place));
    if (!TOTAL) steel::Scanned<Value>::template write<Op>(out, out_indices, to, p.exclusive == 0 ? upto : value);
    value = upto;
  }
  if (TOTAL) steel::partial_put(totals, total_places, total_at, value);
}

/// What comes before each chunk, from the totals of the chunks: a thread a line. Grid: lines, in full threadgroups.
template <typename Op>
[[kernel]] void scan_offsets(
    device const typename Op::Stored* totals [[buffer(0)]],
    device const int* total_places [[buffer(1)]],
    device typename Op::Stored* offsets [[buffer(2)]],
    device int* offset_places [[buffer(3)]],
    constant ScanParams& p [[buffer(4)]],
    uint group_at [[threadgroup_position_in_grid]],
    uint threads [[threads_per_threadgroup]],
    uint thread_at [[thread_index_in_threadgroup]]) {
  const int line = scan_line(int(group_at), int(thread_at), int(threads));
  typename Op::Value value = Op::neutral();
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    const long at = scan_total(line, chunk, p.rows, p.chunks);
    if (at < 0) return;
    steel::partial_put(offsets, offset_places, at, value);
    value = Op::combine(value, steel::partial_get(totals, total_places, at, value));
  }
}
