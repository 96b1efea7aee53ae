/* Parameters of the softmax kernels: int32 fields, laid out once for host (softmax.py) and device. */
#pragma once

typedef struct {
  int rows;         /* how many softmaxes */
  int length;       /* elements of each */
  int row_stride;   /* row form: elements from one row to the next of the input; its columns are adjacent */
  int inner;        /* column form: columns that lie side by side; 1 otherwise */
} SoftmaxParams;
