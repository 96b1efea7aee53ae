/* Parameters of the gemm kernels: int32 fields, laid out once for host (gemm.py: _PARAMS) and device. Strides in elements. */
#pragma once

typedef struct {
  int m;                       /* rows of the result */
  int n;                       /* columns of the result */
  int k;                       /* terms of a sum */
  int a_row;                   /* a as the kernel's layout stores it: between its stored rows */
  int b_row;
  int out_row;                 /* n and 1, or 1 and m if the product is computed transposed */
  int out_column;
  int residual_row;
  int residual_column;
  int bias_row;
  int bias_column;
  int batch_1;                 /* sizes of the two inner batch dimensions */
  int batch_2;
  int a_batch_0, a_batch_1, a_batch_2;
  int b_batch_0, b_batch_1, b_batch_2;
  int residual_batch_0, residual_batch_1, residual_batch_2;
  int tiles_m;
  int tiles_n;
  int band;                    /* tiles are visited in bands of this many tile rows */
  int splits;                  /* threadgroups that share the terms of a sum; more than 1: `out` is partial sums */
  int split_k;                 /* terms of a split; the last one has what is left */
  int has_bias;
  int has_residual;
  int activation;              /* SteelActivation */
} GemmParams;
