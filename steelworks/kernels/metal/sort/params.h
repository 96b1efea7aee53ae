/* Parameters of the sorting kernels: int32 fields, laid out once for host (sort.py) and device. */
#pragma once

typedef struct {
  int length;   /* pairs of a line */
  int x_stride; /* elements from one outermost entry of x to the next */
  int inner;    /* elements from one element of a line to the next, in x and in the outputs */
  int flip;     /* -1: descending, 0: ascending */
  int tile;     /* pairs that a threadgroup writes */
  int width;    /* merge: length of the sorted runs, a multiple of tile */
} SortParams;
