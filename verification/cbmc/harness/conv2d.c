#include "tile.h"
#include "rows.h"
#include "conv2d/index.h"

//: conv2d_once | what a thread writes is inside, and no two write the same result, in both memory formats
//: conv2d_covers | every result is written, in both memory formats
//: conv2d_pixels_covered | the loader of pixels moves every (pixel, inner index) of a tile
static inline void conv2d_pixels_covered(int rows, int columns, int packet, int threads, int last) {
  int row = any(0, rows - 1), column = any(0, columns - 1);
  int at = last ? row * (columns / packet) + column / packet : column / packet * rows + row;
  int step = at / threads, thread_at = at % threads;
  int from = conv2d_packet_column(thread_at, step, rows, columns, packet, threads, last);
  HOLDS(step < rows * (columns / packet) / threads, "the step is taken");
  HOLDS(conv2d_packet_row(thread_at, step, rows, columns, packet, threads, last) == row, "the pixel");
  HOLDS(from <= column && column < from + packet, "the packet has the inner index");
  REACHED();
}
//: conv2d_pixels_once | the loader of pixels moves nothing twice, and nothing outside of the tile
static inline void conv2d_pixels_once(int rows, int columns, int packet, int threads, int last) {
  int steps = rows * (columns / packet) / threads;
  int thread_1 = any(0, threads - 1), thread_2 = any(0, threads - 1), step_1 = any(0, steps - 1), step_2 = any(0, steps - 1);
  int row_1 = conv2d_packet_row(thread_1, step_1, rows, columns, packet, threads, last);
  int row_2 = conv2d_packet_row(thread_2, step_2, rows, columns, packet, threads, last);
  int column_1 = conv2d_packet_column(thread_1, step_1, rows, columns, packet, threads, last);
  int column_2 = conv2d_packet_column(thread_2, step_2, rows, columns, packet, threads, last);
  HOLDS(row_1 >= 0 && row_1 < rows && column_1 >= 0 && column_1 + packet <= columns, "in the tile");
  HOLDS((thread_1 == thread_2 && step_1 == step_2) || row_1 != row_2 || column_1 + packet <= column_2 ||
        column_2 + packet <= column_1, "once");
  REACHED();
}
//: conv2d_weights | exactly what is inside of the weight is read, with and without guards
static inline void conv2d_weights(int bc, int bk, int packet, int threads) {
  int out_c = any(1, MOST), inner_size = any(1, MOST), first = any(0, MOST / bc) * bc, inner = any(0, MOST / bk) * bk;
  GIVEN(first < out_c, "conv2d.py: the grid");
  GIVEN(inner < inner_size, "conv2d.h: the loop over inner indices");
  int channels = out_c - first, left = inner_size - inner;
  tile_load(bc, bk, packet, threads, channels < bc ? channels : bc, left < bk ? left : bk, channels >= bc && left >= bk);
  int group = any(0, MOST), row = any(0, bc - 1), column = any(0, bk - 1);
  long at = steel_element(row, column, channels, left, WIDE);
  if (at >= 0) HOLDS(first + row < out_c && inner + column < inner_size, "a weight that there is");
  long from = conv2d_weight(group, first, 0, MOST, WIDE) + steel_place(0, inner, WIDE);
  if (at >= 0) HOLDS(from + at == conv2d_weight(group, first + row, inner + column, MOST, WIDE), "of that channel, in 64 bits");
  REACHED();
}
#define DO(i, bp, bc, bk, wm, wn, packet_x, packet_w) \
  void check_conv2d_once_last_##i(void) { TileShape t = {bp, bc, wm, wn, 0}; tile_once(t); } \
  void check_conv2d_once_first_##i(void) { TileShape t = {bc, bp, wm, wn, 0}; tile_once(t); } \
  void check_conv2d_covers_last_##i(void) { TileShape t = {bp, bc, wm, wn, 0}; tile_covers(t); } \
  void check_conv2d_covers_first_##i(void) { TileShape t = {bc, bp, wm, wn, 0}; tile_covers(t); } \
  void check_conv2d_pixels_covered_last_##i(void) { conv2d_pixels_covered(bp, bk, packet_x, wm * wn * 32, 1); } \
  void check_conv2d_pixels_covered_first_##i(void) { conv2d_pixels_covered(bp, bk, packet_x, wm * wn * 32, 0); } \
  void check_conv2d_pixels_once_last_##i(void) { conv2d_pixels_once(bp, bk, packet_x, wm * wn * 32, 1); } \
  void check_conv2d_pixels_once_first_##i(void) { conv2d_pixels_once(bp, bk, packet_x, wm * wn * 32, 0); } \
  void check_conv2d_weights_##i(void) { conv2d_weights(bc, bk, packet_w, wm * wn * 32); }
CONV2D_TILE_ROWS(DO)
#undef DO

//: conv2d_results | a result that is inside its tile has the place of its channel and pixel, and the bias of its channel
void check_conv2d_results(void) {
  int out_c = any(1, MOST), pixels = any(1, MOST), channel = any(0, MOST), pixel = any(0, MOST), image = any(0, MOST);
  int full = conv2d_full_channel(3, channel, out_c), i = any(0, MOST), j = any(0, MOST);
  long from = conv2d_place(image, full, 0, pixel, WIDE, 65536, 4096, 1), bias = full;
  long at = steel_element_strided(i, j, pixels - pixel, out_c - channel, 1, 65536); /* channels last */
  if (at >= 0) {
    HOLDS(pixel + i < pixels && channel + j < out_c, "a result that there is");
    HOLDS(from + at == conv2d_place(image, full + j, 0, pixel + i, WIDE, 65536, 4096, 1), "channels last: its place");
    HOLDS(bias + steel_place_strided(i, j, 0, 1) == conv2d_full_channel(3, channel + j, out_c), "channels last: its bias");
  }
  at = steel_element_strided(i, j, out_c - channel, pixels - pixel, 65536, 1);
  if (at >= 0) {
    HOLDS(channel + i < out_c && pixel + j < pixels, "a result that there is");
    HOLDS(from + at == conv2d_place(image, full + i, 0, pixel + j, WIDE, 65536, 4096, 1), "its place");
    HOLDS(bias + steel_place_strided(i, j, 1, 0) == conv2d_full_channel(3, channel + i, out_c), "its bias");
  }
  REACHED();
}
//: conv2d_direct | one thread a result: the bias of a channel that there is
void check_conv2d_direct(void) {
  int channels = any(1, EXTENT), channel = any(0, EXTENT);
  GIVEN(channel < channels, "conv2d.py conv2d: exactly as many threads as channels");
  HOLDS(steel_place(0, channel, 0) < channels, "inside");
  REACHED();
}

//: conv2d_source | taps of a pixel that there is reach from the upper padding to the lower one, and no further
static inline void conv2d_source_reach(int stride, int taps, int dilation) {
  int size = any(1, MOST), pad = any(0, MOST), out = any(0, 2 * MOST), tap = any(0, taps - 1);
  int room = size + 2 * pad - dilation * (taps - 1) - 1;
  GIVEN(room >= 0 && out <= room / stride, "conv2d.py _padding: the size of the result");
  int at = conv2d_source(out, tap, stride, pad, dilation);
  HOLDS(at >= -pad && at < size + pad, "within the padded input");
  HOLDS(at == out * stride + tap * dilation - pad, "the row under the tap");
  REACHED();
}
void check_conv2d_source_1(void) { conv2d_source_reach(1, 3, 1); }
void check_conv2d_source_2(void) { conv2d_source_reach(2, 7, 1); }
void check_conv2d_source_3(void) { conv2d_source_reach(3, 3, 5); }

//: conv2d_element | the input is read exactly where it is not padding, with the offset in 64 bits
void check_conv2d_element(void) {
  int row = any(-2 * MOST, 2 * MOST), column = any(-2 * MOST, 2 * MOST), height = any(1, MOST), width = any(1, MOST);
  int image = any(0, MOST), channel = any(0, MOST);
  long at = conv2d_element(image, channel, row, column, height, width, WIDE, 65536, 4096, 1);
  int inside = row >= 0 && row < height && column >= 0 && column < width;
  HOLDS((at >= 0) == inside, "exactly what is inside");
  if (inside) HOLDS(at == (long)image * WIDE + (long)channel * 65536 + (long)row * 4096 + column, "the offset in 64 bits");
  REACHED();
}
