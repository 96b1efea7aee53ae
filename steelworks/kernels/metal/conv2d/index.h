/* Which element a conv2d kernel touches. A subset of C: the kernels and the proofs include it.
 *
 * Convolution as a product: rows are output pixels (batch, row, column), columns are output channels of one group, and the
 * inner index goes over the taps: (tap row, tap column, channel) with the channel fastest for channels-last tensors, else
 * (channel, tap row, tap column). Offsets are in elements; -1 stands for "outside: do not touch", which reads as 0. */
#pragma once

static inline int conv2d_pixel_batch(int pixel, int out_h, int out_w) { return pixel / (out_h * out_w); }
static inline int conv2d_pixel_row(int pixel, int out_h, int out_w) { return pixel / out_w % out_h; }
static inline int conv2d_pixel_column(int pixel, int out_w) { return pixel % out_w; }

static inline int conv2d_inner(int in_c, int kernel_h, int kernel_w) { return in_c * kernel_h * kernel_w; }
static inline int conv2d_inner_channel(int inner, int in_c, int kernel_h, int kernel_w, int channels_last) {
  return channels_last ? inner % in_c : inner / (kernel_h * kernel_w);
}
static inline int conv2d_inner_row(int inner, int in_c, int kernel_h, int kernel_w, int channels_last) {
  return channels_last ? inner / in_c / kernel_w : inner / kernel_w % kernel_h;
}
static inline int conv2d_inner_column(int inner, int in_c, int kernel_w, int channels_last) {
  return channels_last ? inner / in_c % kernel_w : inner % kernel_w;
}

/* A channel of a group among all output channels: that of its bias and of its results. */
static inline int conv2d_full_channel(int group, int channel, int out_c) { return group * out_c + channel; }
/* Where the input channels of a group begin. */
static inline long conv2d_group(int group, int in_c, int stride_c) { return (long)group * in_c * stride_c; }
/* Inner index `inner` of the weight of a channel, which is dense. */
static inline long conv2d_weight(int group, int channel, int inner, int out_c, int inner_size) {
  return ((long)group * out_c + channel) * inner_size + inner;
}

/* The row (or column) of the input under tap `tap` of output row `out`; may lie in the padding. */
static inline int conv2d_source(int out, int tap, int stride, int pad, int dilation) {
  return out * stride - pad + tap * dilation;
}

/* The row of the input under tap 0 of an output pixel that there is not: in the padding under every tap, as a kernel
 * reaches over fewer rows. */
#define CONV2D_NO_ROW (-0x40000000)

/* An element of a four-dimensional tensor, inside of it. */
static inline long conv2d_place(int n, int c, int row, int column, int stride_n, int stride_c, int stride_h, int stride_w) {
  return (long)n * stride_n + (long)c * stride_c + (long)row * stride_h + (long)column * stride_w;
}
/* An element of the input, of an image and a channel that there are; -1 if (row, column) is in the padding. */
static inline long conv2d_element(int n, int c, int row, int column, int height, int width,
                                  int stride_n, int stride_c, int stride_h, int stride_w) {
  return row >= 0 && row < height && column >= 0 && column < width
             ? conv2d_place(n, c, row, column, stride_n, stride_c, stride_h, stride_w) : -1;
}

/* Pixels of a tile are moved in packets of adjacent inner indices. Channels last: neighbouring threads take neighbouring
 * packets of a pixel, which lie together; otherwise neighbouring pixels, which do. */
static inline int conv2d_packet_row(int thread_at, int step, int rows, int columns, int packet, int threads, int channels_last) {
  int at = thread_at + step * threads;
  return channels_last ? at / (columns / packet) : at % rows;
}
static inline int conv2d_packet_column(int thread_at, int step, int rows, int columns, int packet, int threads,
                                       int channels_last) {
  int at = thread_at + step * threads;
  return channels_last ? at % (columns / packet) * packet : at / rows * packet;
}

/* Output pixels that one grid layer counts through: those of one image, or of the whole batch if channels are last (only
 * then are the pixels of one channel one row of evenly spaced elements). */
static inline int conv2d_pixels(int batch, int out_h, int out_w, int channels_last) {
  return channels_last ? batch * out_h * out_w : out_h * out_w;
}
static inline int conv2d_layer_image(int layer, int groups, int channels_last) { return channels_last ? 0 : layer / groups; }
static inline int conv2d_layer_group(int layer, int groups, int channels_last) {
  return channels_last ? layer : layer % groups;
}
