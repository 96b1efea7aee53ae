// Packed weights to numbers.
#pragma once
#include <metal_stdlib>
#include "quantized/index.h"
#include "steel/index.h"
#include "steel/types.h"

/// The QUANTIZED_CHUNK numbers that begin at `from`: signed bytes, or nibbles 0..15 with the low one first.
template <int BITS>
METAL_FUNC void quantized_unpack(device const uchar* from, thread float (&to)[QUANTIZED_CHUNK]) {
  if (BITS == 8) {
    STEEL_UNROLL
    for (int i = 0; i < QUANTIZED_CHUNK; ++i) to[i] = float(as_type<char>(from[steel_packet_place(0, i)]));
  } else {
    STEEL_UNROLL
    for (int i = 0; i < QUANTIZED_CHUNK / 2; ++i) {
      to[2 * i] = float(from[steel_packet_place(0, i)] & 15);
      to[2 * i + 1] = float(from[steel_packet_place(0, i)] >> 4);
    }
  }
}
