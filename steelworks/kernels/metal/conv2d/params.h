/* Parameters of the conv2d kernels: int32 fields, laid out once for host (conv2d.py) and device. */
#pragma once

typedef struct {
  int batch;
  int in_c;      /* channels of a group */
  int in_h;
  int in_w;
  int out_c;     /* channels of a group */
  int out_h;
  int out_w;
  int groups;
  int kernel_h;
  int kernel_w;
  int stride_h;
  int stride_w;
  int pad_h;
  int pad_w;
  int dilation_h;
  int dilation_w;
  int x_n;       /* strides in elements: input */
  int x_c;
  int x_h;
  int x_w;
  int w_n;       /* weight: output channel, channel, row, column */
  int w_c;
  int w_h;
  int w_w;
  int y_n;       /* output */
  int y_c;
  int y_h;
  int y_w;
  int has_bias;
  int activation;  /* of SteelActivation */
} Conv2dParams;
