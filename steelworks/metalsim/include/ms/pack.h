// metal_pack: the conversions between normalised integers and floats.
#pragma once
#include <ms/math.h>

namespace metal {

inline uint pack_float_to_unorm4x8(float4 v) {
  uint r = 0;
  for (int i = 0; i < 4; ++i) r |= uint(rint(saturate(v[i]) * 255.0f)) << (8 * i);
  return r;
}
inline uint pack_float_to_snorm4x8(float4 v) {
  uint r = 0;
  for (int i = 0; i < 4; ++i) r |= (uint(int(rint(clamp(v[i], -1.0f, 1.0f) * 127.0f))) & 0xff) << (8 * i);
  return r;
}
inline uint pack_float_to_unorm2x16(float2 v) {
  return uint(rint(saturate(v.x) * 65535.0f)) | uint(rint(saturate(v.y) * 65535.0f)) << 16;
}
inline uint pack_float_to_snorm2x16(float2 v) {
  return (uint(int(rint(clamp(v.x, -1.0f, 1.0f) * 32767.0f))) & 0xffff) | uint(int(rint(clamp(v.y, -1.0f, 1.0f) * 32767.0f))) << 16;
}
inline float4 unpack_unorm4x8_to_float(uint x) {
  return float4(float(x & 0xff), float(x >> 8 & 0xff), float(x >> 16 & 0xff), float(x >> 24)) / 255.0f;
}
inline float4 unpack_snorm4x8_to_float(uint x) {
  float4 r;
  for (int i = 0; i < 4; ++i) r[i] = max(float((signed char)(x >> (8 * i))) / 127.0f, -1.0f);
  return r;
}
inline float2 unpack_unorm2x16_to_float(uint x) { return float2(float(x & 0xffff), float(x >> 16)) / 65535.0f; }
inline float2 unpack_snorm2x16_to_float(uint x) {
  return float2(max(float(short(x)) / 32767.0f, -1.0f), max(float(short(x >> 16)) / 32767.0f, -1.0f));
}

}  // namespace metal
