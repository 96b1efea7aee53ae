/* Parameters of the LoRA kernels: int32 fields, laid out once for host (lora.py) and device. */
#pragma once

typedef struct {
  int m;         /* rows of x and y */
  int n;         /* rows of the weight, columns of y */
  int k;         /* columns of x and the weight */
  int r;         /* rank */
  int adapters;  /* pairs (A, B) stacked */
  int x_row;     /* strides of rows in elements; A, B and y are dense */
  int w_row;
  int has_bias;
} LoraParams;
