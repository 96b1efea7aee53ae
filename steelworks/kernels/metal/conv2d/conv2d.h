// Convolution as a product: tiles of output pixels times tiles of output channels, over channels and taps of the input.
// The matrix of pixels by taps is never in memory: a loader gathers its tiles from the input.
#pragma once
#include "conv2d/index.h"
#include "conv2d/params.h"
#include "steel/epilogue.h"
#include "steel/loader.h"
#include "steel/product.h"
#include "steel/store.h"

namespace steel {

/// Gathers ROWS output pixels x COLS inner indices into threadgroup memory with rows LD apart; what lies in the padding or
/// outside becomes 0. All THREADS threads call it; it has no barrier, like TileLoader.
template <typename T, int ROWS, int COLS, int LD, int THREADS, bool LAST>
struct PixelLoader {
  STEEL_CONSTANT int kPacket = smaller(COLS, larger(ROWS * COLS / THREADS, 1));
  STEEL_CONSTANT int kPackets = ROWS * (COLS / kPacket);
  STEEL_CONSTANT int kSteps = kPackets / THREADS;
  static_assert(COLS % kPacket == 0, "a row of the tile must be whole packets");
  static_assert(kPackets % THREADS == 0, "every thread must have the same number of packets");

  int image[kSteps];
  int row[kSteps];     // of the input, under tap (0, 0); CONV2D_NO_ROW: no such pixel
  int column[kSteps];

  /// The thread's pixels do not change while the inner index goes on: their places are computed once.
  METAL_FUNC void prepare(thread const Conv2dParams& p, int first_pixel, int first_image, int thread_at) thread {
    const int pixels = conv2d_pixels(p.batch, p.out_h, p.out_w, LAST);
    STEEL_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const int pixel = first_pixel + conv2d_packet_row(thread_at, step, ROWS, COLS, kPacket, THREADS, LAST);
      image[step] = first_image + conv2d_pixel_batch(pixel, p.out_h, p.out_w);
      const int out_row = conv2d_pixel_row(pixel, p.out_h, p.out_w);
      row[step] = pixel < pixels ? conv2d_source(out_row, 0, p.stride_h, p.pad_h, p.dilation_h) : CONV2D_NO_ROW;
      column[step] = conv2d_source(conv2d_pixel_column(pixel, p.out_w), 0, p.stride_w, p.pad_w, p.dilation_w);
    }
  }

  /// `x` begins at the group's first channel.
  METAL_FUNC void load(
      device const T* x, thread const Conv2dParams& p, threadgroup T* to, int first_inner, int thread_at) const thread {
    const int inner_size = conv2d_inner(p.in_c, p.kernel_h, p.kernel_w);
    STEEL_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const int tile_row = conv2d_packet_row(thread_at, step, ROWS, COLS, kPacket, THREADS, LAST);
      const int tile_column = conv2d_packet_column(thread_at, step, ROWS, COLS, kPacket, THREADS, LAST);
      const int inner = first_inner + tile_column;
      int channel = conv2d_inner_channel(inner, p.in_c, p.kernel_h, p.kernel_w, LAST);
      int tap_row = conv2d_inner_row(inner, p.in_c, p.kernel_h, p.kernel_w, LAST);
      int tap_column = conv2d_inner_column(inner, p.in_c, p.kernel_w, LAST);
      STEEL_UNROLL
      for (int i = 0; i < kPacket; ++i) {
        const int in_row = row[step] + tap_row * p.dilation_h;
        const int in_column = column[step] + tap_column * p.dilation_w;
        const long at = inner + i < inner_size
                            ? conv2d_element(image[step], channel, in_row, in_column, p.in_h, p.in_w,
                                             p.x_n, p.x_c, p.x_h, p.x_w) : -1;
        to[tile_row * LD + tile_column + i] = at >= 0 ? x[at] : T(0);
        // The next inner index, without a division.
        if (LAST) {
          if (++channel == p.in_c) {
            channel = 0;
            if (++tap_column == p.kernel_w) {
              tap_column = 0;
              ++tap_row;
            }
          }
        } else if (++tap_column == p.kernel_w) {
          tap_column = 0;
          if (++tap_row == p.kernel_h) {
            tap_row = 0;
            ++channel;
          }
        }
      }
    }
  }
};

}  // namespace steel

/// LAST: channels are last in memory, for x, the weight and y; then a row of results is a pixel. Otherwise it is a channel.
/// The weight of a channel is dense: its inner indices in their order.
/// BP pixels by BC channels a tile; WM x WN simdgroups.
/// Grid: (ceil(pixels / BP), ceil(out_c / BC), layers) threadgroups of WM * WN * 32 threads, with a layer for each group,
/// and without LAST for each group of each image.
template <typename T, int BP, int BC, int BK, int WM, int WN, bool LAST>
[[kernel]] void conv2d(
    device const T* x [[buffer(0)]],
    device const T* w [[buffer(1)]],
    device const T* bias [[buffer(2)]],
    device T* y [[buffer(3)]],
    constant Conv2dParams& params [[buffer(4)]],
    uint3 group_at [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup_at [[simdgroup_index_in_threadgroup]],
    uint lane_at [[thread_index_in_simdgroup]]) {
  constexpr int THREADS = WM * WN * 32;
  constexpr int LD = BK + steel::Sixteen<T>::count;  // padded against bank conflicts
  constexpr int ROWS = LAST ? BP : BC;
  constexpr int COLUMNS = LAST ? BC : BP;
  constexpr int TM = ROWS / WM / 8;
  constexpr int TN = COLUMNS / WN / 8;
  static_assert(TM * WM * 8 == ROWS && TN * WN * 8 == COLUMNS && BK % 8 == 0, "tiles are whole fragments");
  typedef steel::TileLoader<T, BC, BK, LD, THREADS> LoaderW;
  threadgroup T x_tile[BP * LD];
  threadgroup T w_tile[BC * LD];

  const Conv2dParams p = params;
  const int thread_at = int(thread_index);
  const int lane = int(lane_at);
  const int image = conv2d_layer_image(int(group_at.z), p.groups, LAST);
  const int group = conv2d_layer_group(int(group_at.z), p.groups, LAST);
  const int first_pixel = int(group_at.x) * BP;
  const int first_channel = int(group_at.y) * BC;
  const int channels = p.out_c - first_channel;
  const int inner_size = conv2d_inner(p.in_c, p.kernel_h, p.kernel_w);
  device const T* x_from = x + conv2d_group(group, p.in_c, p.x_c);
  device const T* w_from = w + conv2d_weight(group, first_channel, 0, p.out_c, inner_size);
  steel::PixelLoader<T, BP, BK, LD, THREADS, LAST> pixel_loader;
  pixel_loader.prepare(p, first_pixel, image, thread_at);

  float2 sums[TM][TN];
  STEEL_UNROLL
  for (int i = 0; i < TM; ++i)
    STEEL_UNROLL
    for (int j = 0; j < TN; ++j) sums[i][j] = float2(0.0f);
  const int own_row = int(simdgroup_at) / WN * (ROWS / WM);
  const int own_column = int(simdgroup_at) % WN * (COLUMNS / WN);
  const threadgroup T* left = (LAST ? x_tile : w_tile) + own_row * LD;
  const threadgroup T* right = (LAST ? w_tile : x_tile) + own_column * LD;
  for (int inner = 0; inner < inner_size; inner += BK) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the tiles of the last step have been read
    pixel_loader.load(x_from, p, x_tile, inner, thread_at);
    if (channels >= BC && inner_size - inner >= BK)
      LoaderW::full(w_from + steel_place(0, inner, inner_size), inner_size, w_tile, thread_at);
    else
      LoaderW::edge(
          w_from + steel_place(0, inner, inner_size), inner_size, w_tile, thread_at, channels, inner_size - inner);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    steel::tiles_multiply<T, TM, TN, 8, 8, BK, LD, LD>(sums, left, right, lane);
  }

  const int pixel = first_pixel + (LAST ? own_row : own_column);
  const int channel = first_channel + (LAST ? own_column : own_row);
  const int pixels = conv2d_pixels(p.batch, p.out_h, p.out_w, LAST);
  const int full_channel = conv2d_full_channel(group, channel, p.out_c);
  steel::Epilogue<T> last;
  last.bias = bias + (p.has_bias ? full_channel : 0);
  last.bias_row_stride = LAST ? 0 : 1;
  last.bias_column_stride = LAST ? 1 : 0;
  last.residual = bias;
  last.residual_row_stride = 0;
  last.has_bias = p.has_bias;
  last.has_residual = 0;
  last.activation = p.activation;
  last.alpha = 1.0f;
  last.beta = 0.0f;
  // Pixels of one image (of all images, with LAST) are y_w apart, as rows of an image follow each other without a gap.
  device T* to = y + conv2d_place(image, full_channel, 0, pixel, p.y_n, p.y_c, p.y_h, p.y_w);
  if (LAST)
    steel::fragments_store<T, TM, TN, 8, 8>(sums, to, p.y_w, lane, pixels - pixel, p.out_c - channel, last, p.y_c);
  else
    steel::fragments_store<T, TM, TN, 8, 8>(sums, to, p.y_c, lane, p.out_c - channel, pixels - pixel, last, p.y_w);
}

/// One thread an output element: for groups of few channels (depthwise), where a tile would be mostly empty.
/// Grid: exactly (channels, pixels of an image, images) threads with LAST, else (pixels of an image, channels, images).
template <typename T, bool LAST>
[[kernel]] void conv2d_direct(
    device const T* x [[buffer(0)]],
    device const T* w [[buffer(1)]],
    device const T* bias [[buffer(2)]],
    device T* y [[buffer(3)]],
    constant Conv2dParams& params [[buffer(4)]],
    uint3 at [[thread_position_in_grid]]) {
  const Conv2dParams p = params;
  const int channel = int(LAST ? at.x : at.y);
  const int pixel = int(LAST ? at.y : at.x);
  const int image = int(at.z);
  const int out_row = conv2d_pixel_row(pixel, p.out_h, p.out_w);
  const int out_column = conv2d_pixel_column(pixel, p.out_w);
  const int group = channel / p.out_c;
  device const T* x_from = x + conv2d_group(group, p.in_c, p.x_c);
  float sum = 0.0f;
  for (int tap_row = 0; tap_row < p.kernel_h; ++tap_row) {
    const int in_row = conv2d_source(out_row, tap_row, p.stride_h, p.pad_h, p.dilation_h);
    for (int tap_column = 0; tap_column < p.kernel_w; ++tap_column) {
      const int in_column = conv2d_source(out_column, tap_column, p.stride_w, p.pad_w, p.dilation_w);
      for (int c = 0; c < p.in_c; ++c) {
        const long from =
            conv2d_element(image, c, in_row, in_column, p.in_h, p.in_w, p.x_n, p.x_c, p.x_h, p.x_w);
        if (from < 0) continue;
        const long weight = conv2d_place(channel, c, tap_row, tap_column, p.w_n, p.w_c, p.w_h, p.w_w);
        sum += float(x_from[from]) * float(w[weight]);
      }
    }
  }
  if (p.has_bias) sum += float(bias[steel_place(0, channel, 0)]);
  y[conv2d_place(image, channel, out_row, out_column, p.y_n, p.y_c, p.y_h, p.y_w)] = T(steel::activate(sum, p.activation));
}
