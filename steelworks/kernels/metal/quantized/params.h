/* Parameters of the quantized kernels: int32 fields, laid out once for host (quantized.py) and device. */
#pragma once

typedef struct {
  int m;            /* rows of x and y */
  int n;            /* rows of the weight, columns of y */
  int k;            /* columns of x, and of the weight before padding */
  int x_row;        /* stride of the rows of x in elements */
  int w_row;        /* bytes of a packed row of the weight: k padded to whole groups */
  int groups;       /* scales in a row of the weight */
  int group_shift;  /* log2 of the columns of a group; 30: one group a row */
  int has_bias;
} QuantizedParams;
