// metal_math, metal_common, metal_integer, metal_relational, metal_geometric.
//
// Scalars are overloads for float and half (and the integer types), as in Metal: a call that is ambiguous there is
// ambiguous here. A vector argument makes the function work by component; scalars beside it are spread.
#pragma once
#include <ms/traits.h>

namespace ms {

// The vector type of a call: that of its vector arguments, which must agree. No type if all are scalars.
template <class A> struct as_vector { static constexpr bool value = false; typedef void type; };
template <class T, int N> struct as_vector<vec<T, N>> { static constexpr bool value = true; typedef vec<T, N> type; };
template <class T, int N> struct as_vector<packed_vec<T, N>> : as_vector<vec<T, N>> {};
template <class... A> struct first_vector { typedef void type; };
template <bool Is, class A, class... R> struct first_of : first_vector<R...> {};
template <class A, class... R> struct first_of<true, A, R...> : as_vector<A> {};
template <class A, class... R> struct first_vector<A, R...> : first_of<as_vector<A>::value, A, R...> {};
template <class V, class... A> struct agree { static constexpr bool value = true; };
template <class V, class A, class... R> struct agree<V, A, R...> {
  static constexpr bool value = (is_number<A>::value || equal<typename as_vector<A>::type, V>::value) && agree<V, R...>::value;
};
template <class V, class... A> struct joined_as : enable<agree<V, A...>::value, V> {};
template <class... A> struct joined_as<void, A...> {};
template <class... A> using joined = typename joined_as<typename first_vector<A...>::type, A...>::type;
template <class V> struct bools { typedef vec<bool, shape<V>::size> type; };
template <class V> using bools_t = typename bools<V>::type;

}  // namespace ms

// By component, for one to three arguments.
#define MS_VECTOR_1(name)                                                        \
  template <class A, class V = ms::joined<A>> inline V name(A const& a) {        \
    V p = V(a), r;                                                               \
    for (int i = 0; i < ms::shape<V>::size; ++i) r[i] = ms::scalar_t<V>(name(p[i])); \
    return r;                                                                    \
  }
#define MS_VECTOR_2(name)                                                                      \
  template <class A, class B, class V = ms::joined<A, B>> inline V name(A const& a, B const& b) { \
    V p = V(a), q = V(b), r;                                                                   \
    for (int i = 0; i < ms::shape<V>::size; ++i) r[i] = ms::scalar_t<V>(name(p[i], q[i]));     \
    return r;                                                                                  \
  }
#define MS_VECTOR_3(name)                                                                                     \
  template <class A, class B, class C, class V = ms::joined<A, B, C>> inline V name(A const& a, B const& b, C const& c) { \
    V p = V(a), q = V(b), s = V(c), r;                                                                        \
    for (int i = 0; i < ms::shape<V>::size; ++i) r[i] = ms::scalar_t<V>(name(p[i], q[i], s[i]));              \
    return r;                                                                                                 \
  }
// Scalars for float and half, computed in float.
#define MS_FLOAT_1(name, ...)                                           \
  inline float name(float x) { return __VA_ARGS__; }                    \
  inline half name(half h) { float x = h; return half(__VA_ARGS__); }   \
  MS_VECTOR_1(name)
#define MS_FLOAT_2(name, ...)                                                             \
  inline float name(float x, float y) { return __VA_ARGS__; }                             \
  inline half name(half g, half h) { float x = g, y = h; return half(__VA_ARGS__); }      \
  MS_VECTOR_2(name)
#define MS_FLOAT_3(name, ...)                                                                               \
  inline float name(float x, float y, float z) { return __VA_ARGS__; }                                      \
  inline half name(half f, half g, half h) { float x = f, y = g, z = h; return half(__VA_ARGS__); }         \
  MS_VECTOR_3(name)
// Scalars for every integer type.
#define MS_EACH_INTEGER(M, ...)                                                                      \
  M(char, __VA_ARGS__) M(ms_schar, __VA_ARGS__) M(uchar, __VA_ARGS__) M(short, __VA_ARGS__) M(ushort, __VA_ARGS__) \
  M(int, __VA_ARGS__) M(uint, __VA_ARGS__) M(long, __VA_ARGS__) M(ulong, __VA_ARGS__)
#define MS_INTEGER_1_(T, name, ...) inline constexpr T name(T x) { return T(__VA_ARGS__); }
#define MS_INTEGER_2_(T, name, ...) inline constexpr T name(T x, T y) { return T(__VA_ARGS__); }
#define MS_INTEGER_3_(T, name, ...) inline constexpr T name(T x, T y, T z) { return T(__VA_ARGS__); }
#define MS_INTEGER_1(name, ...) MS_EACH_INTEGER(MS_INTEGER_1_, name, __VA_ARGS__)
#define MS_INTEGER_2(name, ...) MS_EACH_INTEGER(MS_INTEGER_2_, name, __VA_ARGS__)
#define MS_INTEGER_3(name, ...) MS_EACH_INTEGER(MS_INTEGER_3_, name, __VA_ARGS__)

namespace ms {
inline float fract(float x) {
  float r = x - __builtin_floorf(x);
  return r < 1.0f ? r : 0x1.fffffep-1f;
}
inline float median(float x, float y, float z) {
  return __builtin_fmaxf(__builtin_fminf(x, y), __builtin_fminf(__builtin_fmaxf(x, y), z));
}
// Exact at multiples of a half, where pi * x is not.
inline float sinpi(float x) {
  float r = x - 2.0f * __builtin_rintf(0.5f * x);
  if (r > 0.5f) r = 1.0f - r;
  if (r < -0.5f) r = -1.0f - r;
  return __builtin_sinf(3.14159265358979323846f * r);
}
inline float cospi(float x) {
  float r = __builtin_fabsf(x - 2.0f * __builtin_rintf(0.5f * x));
  return sinpi(0.5f - r);
}
inline float powr(float x, float y) { return x < 0 ? __builtin_nanf("") : __builtin_powf(x, y); }
inline float sign(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x == 0 ? x : 0.0f; }
inline float smoothstep(float low, float high, float x) {
  float t = __builtin_fminf(__builtin_fmaxf((x - low) / (high - low), 0.0f), 1.0f);
  return t * t * (3.0f - 2.0f * t);
}
template <class T> struct wide { typedef long type; };
template <> struct wide<uchar> { typedef ulong type; };
template <> struct wide<ushort> { typedef ulong type; };
template <> struct wide<uint> { typedef ulong type; };
template <> struct wide<ulong> { typedef unsigned __int128 type; };
template <> struct wide<long> { typedef __int128 type; };
template <class T> struct bits { typedef T type; };
template <> struct bits<char> { typedef uchar type; };
template <> struct bits<ms_schar> { typedef uchar type; };
template <> struct bits<short> { typedef ushort type; };
template <> struct bits<int> { typedef uint type; };
template <> struct bits<long> { typedef ulong type; };
template <class T> using bits_t = typename bits<T>::type;
template <class T> constexpr bool is_signed = T(-1) < T(0);
template <class T> constexpr T lowest = is_signed<T> ? T(1ul << (8 * sizeof(T) - 1)) : T(0);
template <class T> constexpr T highest = T(~lowest<T>);
template <class T> constexpr T saturated(typename wide<T>::type v) {
  return v < typename wide<T>::type(lowest<T>) ? lowest<T> : v > typename wide<T>::type(highest<T>) ? highest<T> : T(v);
}
template <class T> constexpr T add_saturated(T x, T y) {
  T r{};
  if (!__builtin_add_overflow(x, y, &r)) return r;
  return is_signed<T> && y < T(0) ? lowest<T> : highest<T>;
}
template <class T> constexpr T subtract_saturated(T x, T y) {
  T r{};
  if (!__builtin_sub_overflow(x, y, &r)) return r;
  return is_signed<T> && y < T(0) ? highest<T> : lowest<T>;
}
template <class T> constexpr T multiply_high(T x, T y) {
  typedef typename wide<T>::type W;
  return T((W(x) * W(y)) >> (8 * sizeof(T)));
}
template <class T> constexpr T half_sum(T x, T y, int up) {
  typedef typename wide<T>::type W;
  return T((W(x) + W(y) + W(up)) >> 1);
}
template <class T> constexpr T leading_zeros(T x) {
  return x == T(0) ? T(8 * sizeof(T)) : T(__builtin_clzll(bits_t<T>(x)) - int(64 - 8 * sizeof(T)));
}
template <class T> constexpr T trailing_zeros(T x) {
  return x == T(0) ? T(8 * sizeof(T)) : T(__builtin_ctzll(bits_t<T>(x)));
}
template <class T> constexpr T reversed(T x) {
  bits_t<T> in = bits_t<T>(x), out = 0;
  for (unsigned i = 0; i < 8 * sizeof(T); ++i) out = bits_t<T>(out << 1 | (in >> i & 1));
  return T(out);
}
template <class T> constexpr T rotated(T x, T by) {
  unsigned n = unsigned(by) & (8 * sizeof(T) - 1);
  bits_t<T> v = bits_t<T>(x);
  return n == 0 ? x : T(bits_t<T>(v << n | v >> (8 * sizeof(T) - n)));
}
template <class T> constexpr T extracted(T x, uint offset, uint count) {
  if (count == 0) return T(0);
  unsigned left = 8 * sizeof(T) - count - offset, right = 8 * sizeof(T) - count;
  return T(T(bits_t<T>(bits_t<T>(x) << left)) >> right);
}
template <class T> constexpr T inserted(T base, T insert, uint offset, uint count) {
  if (count == 0) return base;
  bits_t<T> mask = count >= 8 * sizeof(T) ? bits_t<T>(~bits_t<T>(0)) : bits_t<T>(((bits_t<T>(1) << count) - 1) << offset);
  return T((bits_t<T>(base) & bits_t<T>(~mask)) | (bits_t<T>(bits_t<T>(insert) << offset) & mask));
}
}  // namespace ms

namespace metal {

// The integer side of metal_common; before the float side, whose vector versions use it.
MS_INTEGER_1(abs, x < 0 ? -x : x)
MS_INTEGER_2(max, x < y ? y : x)
MS_INTEGER_2(min, y < x ? y : x)
MS_INTEGER_3(max3, x < y ? (y < z ? z : y) : (x < z ? z : x))
MS_INTEGER_3(min3, y < x ? (z < y ? z : y) : (z < x ? z : x))
MS_INTEGER_3(median3, max(min(x, y), min(max(x, y), z)))
MS_INTEGER_3(clamp, x < y ? y : z < x ? z : x)

// metal_math. What Metal lacks (erf, expm1, log1p, hypot, cbrt ...) is absent here too.
#define MS_MATH_FUNCTIONS                                                                     \
  MS_FLOAT_1(acos, __builtin_acosf(x)) MS_FLOAT_1(acosh, __builtin_acoshf(x))                 \
  MS_FLOAT_1(asin, __builtin_asinf(x)) MS_FLOAT_1(asinh, __builtin_asinhf(x))                 \
  MS_FLOAT_1(atan, __builtin_atanf(x)) MS_FLOAT_1(atanh, __builtin_atanhf(x))                 \
  MS_FLOAT_2(atan2, __builtin_atan2f(x, y)) MS_FLOAT_1(ceil, __builtin_ceilf(x))              \
  MS_FLOAT_2(copysign, __builtin_copysignf(x, y)) MS_FLOAT_1(cos, __builtin_cosf(x))          \
  MS_FLOAT_1(cosh, __builtin_coshf(x)) MS_FLOAT_1(cospi, ms::cospi(x))                        \
  MS_FLOAT_2(divide, x / y) MS_FLOAT_1(exp, __builtin_expf(x))                                \
  MS_FLOAT_1(exp10, __builtin_powf(10.0f, x)) MS_FLOAT_1(exp2, __builtin_exp2f(x))            \
  MS_FLOAT_1(fabs, __builtin_fabsf(x)) MS_FLOAT_1(abs, __builtin_fabsf(x))                    \
  MS_FLOAT_2(fdim, __builtin_fdimf(x, y)) MS_FLOAT_1(floor, __builtin_floorf(x))              \
  MS_FLOAT_3(fma, __builtin_fmaf(x, y, z)) MS_FLOAT_2(fmax, __builtin_fmaxf(x, y))            \
  MS_FLOAT_2(fmin, __builtin_fminf(x, y)) MS_FLOAT_2(max, __builtin_fmaxf(x, y))              \
  MS_FLOAT_2(min, __builtin_fminf(x, y))                                                      \
  MS_FLOAT_3(fmax3, __builtin_fmaxf(x, __builtin_fmaxf(y, z)))                                \
  MS_FLOAT_3(fmin3, __builtin_fminf(x, __builtin_fminf(y, z)))                                \
  MS_FLOAT_3(max3, __builtin_fmaxf(x, __builtin_fmaxf(y, z)))                                 \
  MS_FLOAT_3(min3, __builtin_fminf(x, __builtin_fminf(y, z)))                                 \
  MS_FLOAT_3(fmedian3, ms::median(x, y, z)) MS_FLOAT_3(median3, ms::median(x, y, z))          \
  MS_FLOAT_2(fmod, __builtin_fmodf(x, y)) MS_FLOAT_1(fract, ms::fract(x))                     \
  MS_FLOAT_1(log, __builtin_logf(x)) MS_FLOAT_1(log10, __builtin_log10f(x))                   \
  MS_FLOAT_1(log2, __builtin_log2f(x)) MS_FLOAT_2(nextafter, __builtin_nextafterf(x, y))      \
  MS_FLOAT_2(pow, __builtin_powf(x, y)) MS_FLOAT_2(powr, ms::powr(x, y))                      \
  MS_FLOAT_1(rint, __builtin_rintf(x)) MS_FLOAT_1(round, __builtin_roundf(x))                 \
  MS_FLOAT_1(rsqrt, 1.0f / __builtin_sqrtf(x)) MS_FLOAT_1(sin, __builtin_sinf(x))             \
  MS_FLOAT_1(sinh, __builtin_sinhf(x)) MS_FLOAT_1(sinpi, ms::sinpi(x))                        \
  MS_FLOAT_1(sqrt, __builtin_sqrtf(x)) MS_FLOAT_1(tan, __builtin_tanf(x))                     \
  MS_FLOAT_1(tanh, __builtin_tanhf(x)) MS_FLOAT_1(tanpi, ms::sinpi(x) / ms::cospi(x))         \
  MS_FLOAT_1(trunc, __builtin_truncf(x))                                                      \
  MS_FLOAT_1(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f))                       \
  MS_FLOAT_1(sign, ms::sign(x)) MS_FLOAT_2(step, y < x ? 0.0f : 1.0f)                         \
  MS_FLOAT_3(clamp, __builtin_fminf(__builtin_fmaxf(x, y), z))                                \
  MS_FLOAT_3(mix, x + (y - x) * z) MS_FLOAT_3(smoothstep, ms::smoothstep(x, y, z))            \
  inline float sincos(float x, float& cosine) { cosine = __builtin_cosf(x); return __builtin_sinf(x); }        \
  inline float frexp(float x, int& exponent) { return __builtin_frexpf(x, &exponent); }                        \
  inline float modf(float x, float& whole) { whole = __builtin_truncf(x); return __builtin_copysignf(__builtin_isinf(x) ? 0.0f : x - whole, x); } \
  inline float ldexp(float x, int exponent) { return __builtin_ldexpf(x, exponent); }                          \
  inline int ilogb(float x) { return __builtin_ilogbf(x); }                                                    \
  template <int N> inline vec<float, N> sincos(vec<float, N> const& v, vec<float, N>& cosine) { cosine = cos(v); return sin(v); } \
  template <int N> inline vec<float, N> ldexp(vec<float, N> v, vec<int, N> e) { for (int i = 0; i < N; ++i) v[i] = ldexp(v[i], e[i]); return v; }

MS_MATH_FUNCTIONS
inline half sincos(half x, half& cosine) { cosine = cos(x); return sin(x); }
inline half frexp(half x, int& exponent) { return half(__builtin_frexpf(x, &exponent)); }
inline half modf(half x, half& whole) { float w, f = modf(float(x), w); whole = half(w); return half(f); }
inline half ldexp(half x, int exponent) { return half(__builtin_ldexpf(x, exponent)); }
inline int ilogb(half x) { return __builtin_ilogbf(x); }

// Metal's fast and precise variants take float only; their accuracy is not told apart here.
#pragma push_macro("MS_FLOAT_1")
#pragma push_macro("MS_FLOAT_2")
#pragma push_macro("MS_FLOAT_3")
#undef MS_FLOAT_1
#undef MS_FLOAT_2
#undef MS_FLOAT_3
#define MS_FLOAT_1(name, ...) inline float name(float x) { return __VA_ARGS__; } MS_VECTOR_1(name)
#define MS_FLOAT_2(name, ...) inline float name(float x, float y) { return __VA_ARGS__; } MS_VECTOR_2(name)
#define MS_FLOAT_3(name, ...) inline float name(float x, float y, float z) { return __VA_ARGS__; } MS_VECTOR_3(name)
namespace precise { MS_MATH_FUNCTIONS }
namespace fast { MS_MATH_FUNCTIONS }
#pragma pop_macro("MS_FLOAT_1")
#pragma pop_macro("MS_FLOAT_2")
#pragma pop_macro("MS_FLOAT_3")

// metal_integer.
#define MS_ABSDIFF(T, _) inline constexpr ms::bits_t<T> absdiff(T x, T y) { typedef ms::bits_t<T> U; return x < y ? U(U(y) - U(x)) : U(U(x) - U(y)); }
MS_EACH_INTEGER(MS_ABSDIFF, _)
#undef MS_ABSDIFF
MS_INTEGER_2(addsat, ms::add_saturated(x, y)) MS_VECTOR_2(addsat)
MS_INTEGER_2(subsat, ms::subtract_saturated(x, y)) MS_VECTOR_2(subsat)
MS_INTEGER_1(clz, ms::leading_zeros(x)) MS_VECTOR_1(clz)
MS_INTEGER_1(ctz, ms::trailing_zeros(x)) MS_VECTOR_1(ctz)
MS_INTEGER_1(popcount, __builtin_popcountll(ms::bits_t<decltype(x)>(x))) MS_VECTOR_1(popcount)
MS_INTEGER_1(reverse_bits, ms::reversed(x)) MS_VECTOR_1(reverse_bits)
MS_INTEGER_2(hadd, ms::half_sum(x, y, 0)) MS_VECTOR_2(hadd)
MS_INTEGER_2(rhadd, ms::half_sum(x, y, 1)) MS_VECTOR_2(rhadd)
MS_INTEGER_2(mulhi, ms::multiply_high(x, y)) MS_VECTOR_2(mulhi)
MS_INTEGER_3(madhi, ms::multiply_high(x, y) + z) MS_VECTOR_3(madhi)
MS_INTEGER_3(madsat, ms::saturated<decltype(x)>(typename ms::wide<decltype(x)>::type(x) * y + z)) MS_VECTOR_3(madsat)
MS_INTEGER_2(rotate, ms::rotated(x, y)) MS_VECTOR_2(rotate)
#define MS_BITS(T, _)                                                                                         \
  inline constexpr T extract_bits(T x, uint offset, uint count) { return ms::extracted(x, offset, count); }   \
  inline constexpr T insert_bits(T base, T insert, uint offset, uint count) { return ms::inserted(base, insert, offset, count); }
MS_EACH_INTEGER(MS_BITS, _)
#undef MS_BITS
inline constexpr int mul24(int x, int y) { return int((uint(x) << 8 >> 8) * (uint(y) << 8 >> 8)); }
inline constexpr uint mul24(uint x, uint y) { return (x & 0xffffff) * (y & 0xffffff); }
inline constexpr int mad24(int x, int y, int z) { return mul24(x, y) + z; }
inline constexpr uint mad24(uint x, uint y, uint z) { return mul24(x, y) + z; }

// metal_relational.
#define MS_TEST_1(name, ...)                                                                  \
  inline bool name(float x) { return __VA_ARGS__; }                                           \
  inline bool name(half h) { float x = h; return __VA_ARGS__; }                               \
  template <class A, class V = ms::joined<A>> inline ms::bools_t<V> name(A const& a) {        \
    V p = V(a);                                                                               \
    ms::bools_t<V> r;                                                                         \
    for (int i = 0; i < ms::shape<V>::size; ++i) r[i] = name(p[i]);                           \
    return r;                                                                                 \
  }
#define MS_TEST_2(name, ...)                                                                          \
  inline bool name(float x, float y) { return __VA_ARGS__; }                                          \
  inline bool name(half g, half h) { float x = g, y = h; return __VA_ARGS__; }                        \
  template <class A, class B, class V = ms::joined<A, B>> inline ms::bools_t<V> name(A const& a, B const& b) { \
    V p = V(a), q = V(b);                                                                             \
    ms::bools_t<V> r;                                                                                 \
    for (int i = 0; i < ms::shape<V>::size; ++i) r[i] = name(p[i], q[i]);                             \
    return r;                                                                                         \
  }
MS_TEST_1(isnan, __builtin_isnan(x))
MS_TEST_1(isinf, __builtin_isinf(x))
MS_TEST_1(isfinite, __builtin_isfinite(x))
// A normal half is no denormal half, though it is a normal float.
MS_TEST_1(signbit, __builtin_signbit(x) != 0)
MS_TEST_2(isordered, !__builtin_isunordered(x, y))
MS_TEST_2(isunordered, __builtin_isunordered(x, y))
inline bool isnormal(float x) { return __builtin_isnormal(x); }
inline bool isnormal(half x) { return __builtin_isfinite(float(x)) && __builtin_fabsf(x) >= 0x1p-14f; }
template <class A, class V = ms::joined<A>> inline ms::bools_t<V> isnormal(A const& a) {
  V p = V(a);
  ms::bools_t<V> r;
  for (int i = 0; i < ms::shape<V>::size; ++i) r[i] = isnormal(p[i]);
  return r;
}
inline constexpr bool all(bool x) { return x; }
inline constexpr bool any(bool x) { return x; }
template <int N> inline constexpr bool all(vec<bool, N> v) {
  bool r = true;
  for (int i = 0; i < N; ++i) r = r && v[i];
  return r;
}
template <int N> inline constexpr bool any(vec<bool, N> v) {
  bool r = false;
  for (int i = 0; i < N; ++i) r = r || v[i];
  return r;
}
#define MS_SELECT(T, _) inline constexpr T select(T a, T b, bool c) { return c ? b : a; }
MS_EACH_INTEGER(MS_SELECT, _)
MS_SELECT(float, _)
MS_SELECT(half, _)
MS_SELECT(bfloat, _)
MS_SELECT(bool, _)
#undef MS_SELECT
template <class A, class B, class V = ms::joined<A, B>> inline V select(A const& a, B const& b, ms::same<ms::bools_t<V>> c) {
  V p = V(a), q = V(b);
  for (int i = 0; i < ms::shape<V>::size; ++i) p[i] = c[i] ? q[i] : p[i];
  return p;
}

// metal_geometric.
template <class A, class B, class V = ms::joined<A, B>> inline ms::scalar_t<V> dot(A const& a, B const& b) {
  V p = V(a), q = V(b);
  ms::scalar_t<V> sum = ms::scalar_t<V>(p[0] * q[0]);
  for (int i = 1; i < ms::shape<V>::size; ++i) sum = ms::scalar_t<V>(sum + p[i] * q[i]);
  return sum;
}
template <class T> inline vec<T, 3> cross(vec<T, 3> a, vec<T, 3> b) {
  return vec<T, 3>(T(a.y * b.z - a.z * b.y), T(a.z * b.x - a.x * b.z), T(a.x * b.y - a.y * b.x));
}
template <class A, class V = ms::joined<A>> inline ms::scalar_t<V> length_squared(A const& a) { return dot(a, a); }
template <class A, class V = ms::joined<A>> inline ms::scalar_t<V> length(A const& a) { return sqrt(dot(a, a)); }
template <class A, class B, class V = ms::joined<A, B>> inline ms::scalar_t<V> distance_squared(A const& a, B const& b) { return length_squared(V(a) - V(b)); }
template <class A, class B, class V = ms::joined<A, B>> inline ms::scalar_t<V> distance(A const& a, B const& b) { return length(V(a) - V(b)); }
template <class A, class V = ms::joined<A>> inline V normalize(A const& a) { return V(a) * rsqrt(dot(a, a)); }
template <class T, int N> inline vec<T, N> faceforward(vec<T, N> n, vec<T, N> i, vec<T, N> ref) { return dot(ref, i) < T(0) ? n : -n; }
template <class T, int N> inline vec<T, N> reflect(vec<T, N> i, vec<T, N> n) { return i - T(2) * dot(n, i) * n; }
template <class T, int N> inline vec<T, N> refract(vec<T, N> i, vec<T, N> n, ms::same<T> eta) {
  T k = T(1) - eta * eta * (T(1) - dot(n, i) * dot(n, i));
  return k < T(0) ? vec<T, N>(T(0)) : eta * i - (eta * dot(n, i) + sqrt(k)) * n;
}

}  // namespace metal
