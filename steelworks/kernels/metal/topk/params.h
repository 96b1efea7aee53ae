/* Parameters of the top-k kernel: int32 fields, laid out once for host (topk.py) and device. */
#pragma once

typedef struct {
  int length;      /* elements of a line, or candidates of it */
  int chunk;       /* elements of a line that one threadgroup looks at */
  int k;           /* how many are wanted */
  int kept;        /* how many this pass writes for a line, over all chunks */
  int x_stride;    /* elements from one outermost entry of x to the next */
  int inner;       /* elements from one element of a line to the next, in x and in the outputs */
  int flip;        /* -1: the largest, 0: the smallest */
  int place_bytes; /* bytes in which places differ */
} TopkParams;
