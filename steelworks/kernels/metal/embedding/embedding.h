// Rows of a table, chosen by ids. An id that the table does not have gives a row of NaN; nothing outside is read.
#pragma once
#include "steel/index.h"
#include "steel/types.h"
#include "embedding/index.h"
#include "embedding/params.h"

/// I: type of the ids (int or long). N: elements of a thread. Grid: (a thread for every N columns, ids).
template <typename T, typename I, int N>
[[kernel]] void embedding(
    device const I* ids [[buffer(0)]],
    device const T* table [[buffer(1)]],
    device T* out [[buffer(2)]],
    constant EmbeddingParams& p [[buffer(3)]],
    uint2 thread_at [[thread_position_in_grid]]) {
  const int at = int(thread_at.y);
  const int first = int(thread_at.x) * N;
  if (embedding_output(at, first, p.ids, p.width) < 0) return;
  const long row = embedding_row(long(ids[steel_place(0, at, p.ids)]), p.table_rows, p.table_stride);
  const bool known = row >= 0;
  if (known && embedding_packet_inside(first, p.width, N)) {
    typedef steel::Packet<T, N> P;
    *reinterpret_cast<device P*>(out + embedding_output(at, first, p.ids, p.width)) =
        *reinterpret_cast<device const P*>(table + embedding_element(row, first));
    return;
  }
  for (int i = 0; i < N; ++i) {
    const long to = embedding_output(at, first + i, p.ids, p.width);
    if (to >= 0) out[to] = known ? table[embedding_element(row, first + i)] : T(NAN);
  }
}
