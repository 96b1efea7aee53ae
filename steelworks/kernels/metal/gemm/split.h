// The second half of a split sum: adds the partial sums in order, and does what the epilogue does.
#pragma once
#include "steel/index.h"
#include "gemm/epilogue.h"
#include "gemm/index.h"
#include "gemm/params.h"

/// `partial` has params.splits result matrices (dense, float) for each batch.
/// Grid: (m * n / GROUP, batch) threadgroups of GROUP threads, a thread for each result.
template <typename O, int GROUP>
[[kernel]] void gemm_combine(
    device const float* partial [[buffer(0)]],
    device const O* bias [[buffer(1)]],
    device const O* residual [[buffer(2)]],
    device O* out [[buffer(3)]],
    constant GemmParams& params [[buffer(4)]],
    constant float& alpha [[buffer(5)]],
    constant float& beta [[buffer(6)]],
    uint2 group_at [[threadgroup_position_in_grid]],
    uint2 thread_at [[thread_position_in_threadgroup]]) {
  const GemmParams p = params;
  const int batch = int(group_at.y);
  const long i = long(group_at.x) * GROUP + int(thread_at.x);
  if (i >= gemm_matrix(1, p.m, p.n)) return;
  const int row = int(i / p.n);
  const int column = int(i % p.n);
  float sum = 0.0f;
  for (int s = 0; s < p.splits; ++s) sum += partial[gemm_partial(batch * p.splits + s, i, p.m, p.n)];
  const steel::Epilogue<O> last = gemm_epilogue(p, bias, residual, batch, row, column, alpha, beta);
  out[gemm_matrix(batch, p.m, p.n) + gemm_place(row, column, p.out_row, p.out_column)] = O(last(sum, 0, 0));
}
