/* Parameters of the rotary embedding kernel: int32 fields, laid out once for host (rope.py) and device. */
#pragma once

typedef struct {
  int heads;        /* heads of a sequence */
  int length;       /* positions of a sequence */
  int width;        /* elements of a head */
  int pairs;        /* pairs that are turned: the first 2 * pairs elements; the others are copied */
  int batch_stride; /* strides of the input in elements; the elements of a head are adjacent */
  int head_stride;
  int row_stride;
  int offset_step;  /* 1: an offset a sequence, 0: one for all */
  int inverse;      /* 1: turn backwards */
} RopeParams;
