// Rows of a matrix, each in the registers of a team of threads.
//
// A team is LANES neighbours of a simdgroup (a power of two), so that a threadgroup has several short rows; or, with
// LANES = 0, the whole threadgroup. A member holds E elements: packets that lie as far apart as the team is wide.
#pragma once
#include "steel/index.h"
#include "steel/reduce.h"
#include "steel/types.h"

namespace steel {

/// Which row a thread works on, and as the which of how many.
struct Member {
  int row;
  int at;
  int of;
};

template <int LANES>
METAL_FUNC Member member_of(int group_at, int thread_at, int threads) {
  return Member{steel_team_row(group_at, thread_at, threads, LANES), steel_team_member(thread_at, LANES),
                steel_team_size(threads, LANES)};
}

/// The combination of the LANES neighbours of a team (all 32 lanes for LANES = 0), in each of them, the same bits in
/// each if OP is commutative. All lanes of the simdgroup call it.
template <int LANES, typename Op, typename T> METAL_FUNC T lanes_reduce(T value) {
  for (ushort step = (LANES == 0 ? 32 : LANES) / 2; step > 0; step /= 2)
    value = Op::combine(value, simd_shuffle_xor(value, step));
  return value;
}

/// One value of each simdgroup, handed to all: lane i gets that of simdgroup i, and `neutral` if there is none.
/// All threads call it, once for each `scratch`, which has room for 32 values: there is one barrier only.
template <typename T>
METAL_FUNC T group_gather(T mine, T neutral, threadgroup T* scratch, int simdgroup, int lane, int simdgroups) {
  if (lane == 0) scratch[simdgroup] = mine;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return lane < simdgroups ? scratch[lane] : neutral;
}

/// E elements of a row, as floats. Parts of tensors of different types have the same columns if they have the same PACKET.
template <typename T, int E, int PACKET = smaller(Sixteen<T>::count, E)>
struct RowPart {
  STEEL_CONSTANT int kPacket = PACKET;
  STEEL_CONSTANT int kSteps = E / kPacket;
  static_assert(E % kPacket == 0, "E must be whole packets");
  typedef Packet<T, kPacket> P;

  float at[E];

  /// The column of packet `step` (columns may be outside: see inside()).
  static METAL_FUNC int column(Member m, int step) { return steel_member_column(m.at, step, m.of, kPacket); }

  /// Reads this member's elements; those outside become `outside`, and are not read.
  METAL_FUNC void load(device const T* from, Member m, int first, int rows, int columns, int row_stride, float outside) thread {
    for (int step = 0; step < kSteps; ++step) {
      const int begin = first + column(m, step);
      if (steel_packet_inside(m.row, begin, rows, columns, kPacket)) {
        const P packet = *reinterpret_cast<device const P*>(from + steel_place(m.row, begin, row_stride));
        for (int i = 0; i < kPacket; ++i) at[step * kPacket + i] = float(packet.at[i]);
        continue;
      }
      for (int i = 0; i < kPacket; ++i) {
        const long place = steel_element(m.row, begin + i, rows, columns, row_stride);
        at[step * kPacket + i] = place >= 0 ? float(from[place]) : outside;
      }
    }
  }

  /// Writes the elements that lie inside, as O, to dense rows.
  template <typename O>
  METAL_FUNC void store(device O* to, Member m, int first, int rows, int columns) const thread {
    for (int step = 0; step < kSteps; ++step) {
      const int begin = first + column(m, step);
      for (int i = 0; i < kPacket; ++i) {
        const long place = steel_element(m.row, begin + i, rows, columns, columns);
        if (place >= 0) to[place] = O(at[step * kPacket + i]);
      }
    }
  }
};

}  // namespace steel
