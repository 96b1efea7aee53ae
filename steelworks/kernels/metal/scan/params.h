/* Parameters of the scan kernels: int32 fields, laid out once for host (scan.py) and device. */
#pragma once

typedef struct {
  int rows;      /* lines */
  int length;    /* elements of a line */
  int stride;    /* elements from one outermost entry of the input to the next */
  int inner;     /* elements from one element of a line to the next; the row form has 1 */
  int chunk;     /* elements of a line that one threadgroup (column form: one thread) takes */
  int chunks;    /* how many share a line: with more than one, each starts from its offset */
  int exclusive; /* 1: a result covers what comes before its element, 0: and the element too */
} ScanParams;
