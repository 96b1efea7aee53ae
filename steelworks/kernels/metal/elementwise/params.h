/* Parameters of the elementwise kernels: int32 fields, laid out once for host (elementwise.py) and device. */
#pragma once

#define ELEMENTWISE_DIMS 6

typedef struct {
  int count;                       /* elements of the output, which is dense */
  int columns;                     /* size of the last dimension */
  int rows;                        /* product of the others */
  int a_step;                      /* dense form: 1, or 0 for one element that stands for all */
  int b_step;
  int b_number;                    /* 1: the second operand is an argument, not a tensor */
  int sizes[ELEMENTWISE_DIMS];     /* strided form: without the last dimension; unused ones are 1, in front */
  int a_strides[ELEMENTWISE_DIMS]; /* of the same dimensions; 0 repeats */
  int b_strides[ELEMENTWISE_DIMS];
  int a_column;                    /* strides of the last dimension */
  int b_column;
} ElementwiseParams;
