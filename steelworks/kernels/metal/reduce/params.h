/* Parameters of the reduction kernels: int32 fields, laid out once for host (reduce.py) and device. */
#pragma once

typedef struct {
  int rows;        /* results: of rows in the row form, of columns in the column form */
  int length;      /* elements that make one result */
  int row_stride;  /* row form: elements from one row of the input to the next; its columns are adjacent */
  int inner;       /* column form: columns that lie side by side */
  int chunk;       /* elements of a result that one threadgroup takes; its partial results go to a second pass */
  int chunks;      /* threadgroups that share a result: 1 if there is no second pass */
  int count;       /* elements of a result in all passes: what a mean divides by */
} ReduceParams;
