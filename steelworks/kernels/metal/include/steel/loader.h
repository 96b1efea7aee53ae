// Moves tiles from device memory to threadgroup memory.
#pragma once
#include "steel/index.h"
#include "steel/types.h"

namespace steel {

/// Copies tiles of ROWS x COLS elements (a row is contiguous in device memory) into threadgroup memory with rows LD apart.
///
/// All THREADS threads of the threadgroup call it. Neighbours move neighbouring packets of at most 16 bytes. It has no
/// barrier: the caller puts one before a commit (the tile may still be read) and one after. `fetch` and `commit` apart let
/// the caller compute while the device memory answers; `full` and `edge` do both.
template <typename T, int ROWS, int COLS, int LD, int THREADS>
struct TileLoader {
  STEEL_CONSTANT int kPacket = smaller(smaller(Sixteen<T>::count, COLS), larger(ROWS * COLS / THREADS, 1));
  STEEL_CONSTANT int kPackets = ROWS * (COLS / kPacket);
  STEEL_CONSTANT int kSteps = ceil_div(kPackets, THREADS);
  static_assert(COLS % kPacket == 0, "a row of the tile must be whole packets");
  static_assert(LD >= COLS, "rows must not overlap");

  typedef Packet<T, kPacket> P;
  /// What a thread holds between fetch and commit.
  struct Held { P at[kSteps]; };

  /// Reads the thread's part of a tile that lies wholly inside.
  static METAL_FUNC void fetch_full(device const T* from, int row_stride, thread Held& held, int thread_at) {
    STEEL_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const int row = steel_packet_row(thread_at, step, COLS, kPacket, THREADS);
      const int column = steel_packet_column(thread_at, step, COLS, kPacket, THREADS);
      if (kPackets % THREADS != 0 && row >= ROWS) break;
      held.at[step] = *reinterpret_cast<device const P*>(from + steel_place(row, column, row_stride));
    }
  }

  /// Reads the thread's part of a tile of which only the first `rows` x `columns` elements lie inside; the others are 0.
  static METAL_FUNC void fetch_edge(
      device const T* from, int row_stride, thread Held& held, int thread_at, int rows, int columns) {
    STEEL_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const int row = steel_packet_row(thread_at, step, COLS, kPacket, THREADS);
      const int column = steel_packet_column(thread_at, step, COLS, kPacket, THREADS);
      if (kPackets % THREADS != 0 && row >= ROWS) break;
      STEEL_UNROLL
      for (int i = 0; i < kPacket; ++i) {
        const long at = steel_element(row, column + i, rows, columns, row_stride);
        held.at[step].at[i] = at >= 0 ? from[at] : T(0);
      }
    }
  }

  /// Writes what the thread holds into threadgroup memory.
  static METAL_FUNC void commit(thread const Held& held, threadgroup T* to, int thread_at) {
    STEEL_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const int row = steel_packet_row(thread_at, step, COLS, kPacket, THREADS);
      const int column = steel_packet_column(thread_at, step, COLS, kPacket, THREADS);
      if (kPackets % THREADS != 0 && row >= ROWS) break;
      *reinterpret_cast<threadgroup P*>(to + row * LD + column) = held.at[step];
    }
  }

  static METAL_FUNC void full(device const T* from, int row_stride, threadgroup T* to, int thread_at) {
    Held held;
    fetch_full(from, row_stride, held, thread_at);
    commit(held, to, thread_at);
  }
  static METAL_FUNC void edge(device const T* from, int row_stride, threadgroup T* to, int thread_at, int rows, int columns) {
    Held held;
    fetch_edge(from, row_stride, held, thread_at, rows, columns);
    commit(held, to, thread_at);
  }
};

}  // namespace steel
