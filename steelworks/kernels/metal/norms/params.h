/* Parameters of the norm kernels: int32 fields, laid out once for host (norms.py) and device. */
#pragma once

typedef struct {
  int rows;
  int width;            /* elements of a row, and of the weight and the bias */
  int row_stride;       /* elements from one row of the input to the next; its columns are adjacent */
  int residual_stride;  /* the same of the residual */
  int has_weight;
  int has_bias;
  int has_residual;
  int writes_sum;       /* input + residual goes to a second output */
} NormParams;
