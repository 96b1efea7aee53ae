#include <metal_stdlib>
#include <c10/metal/utils.h>
#include <c10/metal/reduction_utils.h>
using namespace metal;
constant float table[4] = {1, 2, 3, 4};
constexpr constant int WIDTH = 8;
constant constexpr float2 pair(1, 2);
inline float first(device const float* p) { return p[0]; }
inline float first(threadgroup const float* p) { return p[0]; }
inline float first(constant const float* p) { return p[0]; }
inline float first(thread const float* p) { return p[0]; }
struct View { device const float* data; int n; float at(int i) const { return data[i]; } };
struct Params { int n; float scale; float4 bias; };
inline float bias(constant Params& p, int i) { return p.bias[i]; }
template <typename T, int N> inline void fill(threadgroup T (&tile)[N], T v, uint t) { if (t < N) tile[t] = v; }
template <typename T> struct Loader {
  device const T* src; threadgroup T* dst; int n;
  Loader(device const T* s, threadgroup T* d, int n_) : src(s), dst(d), n(n_) {}
  void load(uint t) thread const { dst[t] = int(t) < n ? src[t] : T(0); }
};
struct Sum { template <typename T> T operator()(T a, T b) const { return a + b; } };
template <typename F> inline float apply(thread const F& f, float a, float b) { return f(a, b); }
inline void swap_(thread float& a, thread float& b) { float c = a; a = b; b = c; }
inline device float* row(device float* x, int i) { return x + i * WIDTH; }
kernel void k(device float* x [[buffer(0)]], constant Params& p [[buffer(1)]], device half4* h [[buffer(2)]],
              device atomic_uint* counter [[buffer(3)]], constant float* weights [[buffer(4)]],
              uint3 gid [[thread_position_in_grid]], uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  threadgroup float other[64];
  threadgroup atomic_uint bins[4];
  fill(tile, 1.0f, t);
  Loader<float> loader(x, tile, p.n);
  loader.load(t);
  threadgroup float* current = tile;
  threadgroup float* next = other;
  { threadgroup float* keep = current; current = next; next = keep; }
  View view{x, p.n};
  View views[2] = {{x, 1}, {x + 1, 2}};
  float local[4];
  for (int i = 0; i < 4; ++i) local[i] = table[i] * weights[i];
  float s = first(x) + first(tile) + first(weights) + first(local) + first(table);
  float a = 1, b = 2;
  swap_(a, b);
  s += apply(Sum(), a, b) + view.at(0) + views[1].at(0) + bias(p, 1) + pair.x;
  auto lambda = [&](float v) { return v * p.scale; };
  s += lambda(s) + max(x[0], tile[1]) + fma(x[0], tile[0], weights[0]) + clamp(x[1], 0.0f, 1.0f);
  atomic_fetch_add_explicit(&bins[0], 1u, memory_order_relaxed);
  atomic_fetch_add_explicit(counter, 1u, memory_order_relaxed);
  s += c10::metal::simd_sum(s);
  device float* r = row(x, 2);
  for (uint i = 0; i < 4; i++) r[i] = s;
  device float4* wide = reinterpret_cast<device float4*>(r);
  wide[1] = float4(h[0]);
  bool use = p.n > 3;
  device const float* chosen = use ? (device const float*)r : (device const float*)x;
  x[gid.x] = chosen[0] * half(2) + (float)h[0].x;
  simdgroup_float8x8 m;
  simdgroup_load(m, tile, 8);
  simdgroup_store(m, x, 8);
}
