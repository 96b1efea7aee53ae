// Barriers, simdgroup and quadgroup functions. Each meets the other lanes in one exchange.
#pragma once
#include <ms/vector.h>

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4, mem_threadgroup_imageblock = 8,
                       mem_object_data = 16 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
constexpr mem_flags operator&(mem_flags a, mem_flags b) { return mem_flags(int(a) & int(b)); }
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };

inline void threadgroup_barrier(mem_flags flags, MS_HERE) { ms_threadgroup_barrier(uint32_t(flags), ms::of(ms_at)); }
inline void simdgroup_barrier(mem_flags flags, MS_HERE) { ms_simdgroup_barrier(uint32_t(flags), ms::of(ms_at)); }

}  // namespace metal

namespace ms {

// What simdgroup functions take: numbers of at most 32 bits and vectors of them; bfloat has to be cast to float.
template <class T> struct is_lane_value {
  typedef scalar_t<T> S;
  static constexpr bool value = is_number<S>::value && sizeof(S) <= 4 && !equal<S, bool>::value && !equal<S, bfloat>::value;
};
template <class T> using lane_value = enable_t<is_lane_value<T>::value, T>;
template <class T> using lane_integer = enable_t<is_lane_value<T>::value && is_integer<scalar_t<T>>::value, T>;

// The lanes of a simdgroup, each with the value it gave.
template <class T> struct lanes {
  T at[32];
  uint32_t present;
  lanes(T const& mine, site ms_at) { present = ::ms_simd_exchange(&mine, sizeof(T), at, of(ms_at)); }
  bool has(uint32_t lane) const { return present >> lane & 1; }
  T const& read(uint32_t lane, site ms_at) const {
    if (lane >= 32 || !has(lane)) ::ms_absent_lane(lane, of(ms_at));
    return at[lane % 32];
  }
};
template <class T> struct quad_lanes {
  T at[4];
  uint32_t present;
  quad_lanes(T const& mine, site ms_at) { present = ::ms_quad_exchange(&mine, sizeof(T), at, of(ms_at)); }
  bool has(uint32_t lane) const { return present >> lane & 1; }
  T const& read(uint32_t lane, site ms_at) const {
    if (lane >= 4 || !has(lane)) ::ms_absent_lane(lane, of(ms_at));
    return at[lane % 4];
  }
};

// Barriers give a lane no number; the runtime knows it.
inline uint32_t lane() { return ::ms_self()->thread_index_in_simdgroup; }
inline uint32_t quad_lane() { return ::ms_self()->thread_index_in_quadgroup; }

template <class T> struct add_op { static T of(T a, T b) { return T(a + b); } static T zero() { return T(0); } };
template <class T> struct multiply_op { static T of(T a, T b) { return T(a * b); } static T zero() { return T(1); } };
template <class T> struct and_op { static T of(T a, T b) { return T(a & b); } };
template <class T> struct or_op { static T of(T a, T b) { return T(a | b); } };
template <class T> struct xor_op { static T of(T a, T b) { return T(a ^ b); } };
// A NaN loses, as in Metal's fmin and fmax.
template <class T> struct min_op { static T of(T a, T b) { return b < a || a != a ? b : a; } };
template <class T> struct max_op { static T of(T a, T b) { return b > a || a != a ? b : a; } };
#define MS_COMPONENTWISE(op)                                                    \
  template <class T, int N> struct op<vec<T, N>> {                              \
    static vec<T, N> of(vec<T, N> a, vec<T, N> b) {                             \
      for (int i = 0; i < N; ++i) a[i] = op<T>::of(a[i], b[i]);                 \
      return a;                                                                 \
    }                                                                           \
  };
MS_COMPONENTWISE(min_op)
MS_COMPONENTWISE(max_op)
#undef MS_COMPONENTWISE

// Runs in the runtime, for all lanes at once, and is not to be instrumented as the kernel is.
#define MS_IN_RUNTIME __attribute__((disable_sanitizer_instrumentation, noinline))

// The combination of all lanes that took part, in the order of a butterfly: every lane gets the same bits.
template <template <class> class Op, int N, class T> inline __attribute__((always_inline)) T reduced(const T* at, uint32_t present) {
  T part[N];
  for (int i = 0; i < N; ++i) part[i] = at[i];
  if (present == (N == 32 ? 0xffffffffu : (1u << N) - 1)) {
    for (int step = N / 2; step > 0; step /= 2)
      for (int i = 0; i < step; ++i) part[i] = Op<T>::of(part[i], part[i + step]);
    return part[0];
  }
  for (int step = N / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) {
      bool low = present >> i & 1, high = present >> (i + step) & 1;
      if (low && high) part[i] = Op<T>::of(part[i], part[i + step]);
      else if (high) part[i] = part[i + step];
      if (high) present |= 1u << i;
    }
  }
  return part[0];
}
template <template <class> class Op, class T> MS_IN_RUNTIME void reduce_slots(void* slots, uint32_t present) {
  T* at = static_cast<T*>(slots);
  T all = reduced<Op, 32, T>(at, present);
  for (int i = 0; i < 32; ++i) at[i] = all;
}
template <template <class> class Op, class T, bool Inclusive> MS_IN_RUNTIME void scan_slots(void* slots, uint32_t present) {
  T* at = static_cast<T*>(slots);
  T sum = Op<T>::zero();
  for (int i = 0; i < 32; ++i) {
    if (!(present >> i & 1)) continue;
    T mine = at[i];
    if (!Inclusive) at[i] = sum;
    sum = Op<T>::of(sum, mine);
    if (Inclusive) at[i] = sum;
  }
}
template <class T> inline T combined(T mine, ms_combine combine, site ms_at) {
  ::ms_simd_combine(&mine, sizeof(T), combine, of(ms_at));
  return mine;
}
template <template <class> class Op, class T> inline T quad_scan(quad_lanes<T> const& all, bool inclusive) {
  T sum = Op<T>::zero();
  for (uint32_t i = 0; i < quad_lane() + (inclusive ? 1 : 0); ++i)
    if (all.has(i)) sum = Op<T>::of(sum, all.at[i]);
  return sum;
}
template <template <class> class Op, class T> inline T quad_reduce(quad_lanes<T> const& all) {
  return reduced<Op, 4, T>(all.at, all.present);
}
MS_IN_RUNTIME inline void vote_slots(void* slots, uint32_t present) {
  uint32_t* at = static_cast<uint32_t*>(slots);
  uint32_t votes = 0;
  for (int i = 0; i < 32; ++i)
    if (present >> i & 1 && at[i]) votes |= 1u << i;
  for (int i = 0; i < 32; ++i) at[i] = votes;
}

}  // namespace ms

namespace metal {

#define MS_REDUCTION(name, op, constraint)                                             \
  template <class T> inline ms::constraint<T> simd_##name(T data, MS_HERE) {           \
    return ms::combined<T>(data, &ms::reduce_slots<ms::op, T>, ms_at);                 \
  }                                                                                    \
  template <class T> inline ms::constraint<T> quad_##name(T data, MS_HERE) {           \
    return ms::quad_reduce<ms::op, T>(ms::quad_lanes<T>(data, ms_at));                 \
  }
MS_REDUCTION(sum, add_op, lane_value)
MS_REDUCTION(product, multiply_op, lane_value)
MS_REDUCTION(min, min_op, lane_value)
MS_REDUCTION(max, max_op, lane_value)
MS_REDUCTION(and, and_op, lane_integer)
MS_REDUCTION(or, or_op, lane_integer)
MS_REDUCTION(xor, xor_op, lane_integer)
#undef MS_REDUCTION

#define MS_SCAN(name, op, inclusive)                                                            \
  template <class T> inline ms::lane_value<T> simd_##name(T data, MS_HERE) {                    \
    return ms::combined<T>(data, &ms::scan_slots<ms::op, T, inclusive>, ms_at);                 \
  }                                                                                             \
  template <class T> inline ms::lane_value<T> quad_##name(T data, MS_HERE) {                    \
    return ms::quad_scan<ms::op, T>(ms::quad_lanes<T>(data, ms_at), inclusive);                 \
  }
MS_SCAN(prefix_inclusive_sum, add_op, true)
MS_SCAN(prefix_exclusive_sum, add_op, false)
MS_SCAN(prefix_inclusive_product, multiply_op, true)
MS_SCAN(prefix_exclusive_product, multiply_op, false)
#undef MS_SCAN

// simd_ and quad_ forms of the functions that move data between lanes.
#define MS_MOVES(prefix, LANES, WIDTH, MINE)                                                              \
  template <class T> inline ms::lane_value<T> prefix##_broadcast(T data, ushort lane, MS_HERE) {          \
    return ms::LANES<T>(data, ms_at).read(lane, ms_at);                                                   \
  }                                                                                                       \
  template <class T> inline ms::lane_value<T> prefix##_broadcast_first(T data, MS_HERE) {                 \
    ms::LANES<T> all(data, ms_at);                                                                        \
    return all.at[__builtin_ctz(all.present)];                                                            \
  }                                                                                                       \
  template <class T> inline ms::lane_value<T> prefix##_shuffle(T data, ushort lane, MS_HERE) {            \
    return ms::LANES<T>(data, ms_at).read(lane, ms_at);                                                   \
  }                                                                                                       \
  template <class T> inline ms::lane_value<T> prefix##_shuffle_xor(T data, ushort mask, MS_HERE) {        \
    return ms::LANES<T>(data, ms_at).read(ms::MINE() ^ mask, ms_at);                                      \
  }                                                                                                       \
  template <class T> inline ms::lane_value<T> prefix##_shuffle_up(T data, ushort delta, MS_HERE) {        \
    ms::LANES<T> all(data, ms_at);                                                                        \
    return ms::MINE() < delta ? data : all.read(ms::MINE() - delta, ms_at);                               \
  }                                                                                                       \
  template <class T> inline ms::lane_value<T> prefix##_shuffle_down(T data, ushort delta, MS_HERE) {      \
    ms::LANES<T> all(data, ms_at);                                                                        \
    return ms::MINE() + delta >= WIDTH ? data : all.read(ms::MINE() + delta, ms_at);                      \
  }                                                                                                       \
  template <class T> inline ms::lane_value<T> prefix##_shuffle_rotate_up(T data, ushort delta, MS_HERE) { \
    return ms::LANES<T>(data, ms_at).read((ms::MINE() - delta) & (WIDTH - 1), ms_at);                     \
  }                                                                                                       \
  template <class T> inline ms::lane_value<T> prefix##_shuffle_rotate_down(T data, ushort delta, MS_HERE) { \
    return ms::LANES<T>(data, ms_at).read((ms::MINE() + delta) & (WIDTH - 1), ms_at);                     \
  }                                                                                                       \
  template <class T>                                                                                      \
  inline ms::lane_value<T> prefix##_shuffle_and_fill_up(T data, T filling, ushort delta, ushort modulo, MS_HERE) { \
    struct two { T data, filling; };                                                                      \
    ms::LANES<two> all(two{data, filling}, ms_at);                                                        \
    uint32_t me = ms::MINE(), base = me & ~uint32_t(modulo - 1), at = me - base;                          \
    if (at >= delta) return all.read(me - delta, ms_at).data;                                             \
    return all.read(base + ((modulo - delta + at) & (modulo - 1)), ms_at).filling;                        \
  }                                                                                                       \
  template <class T>                                                                                      \
  inline ms::lane_value<T> prefix##_shuffle_and_fill_up(T data, T filling, ushort delta, MS_HERE) {       \
    return prefix##_shuffle_and_fill_up(data, filling, delta, ushort(WIDTH), ms_at);                      \
  }                                                                                                       \
  template <class T>                                                                                      \
  inline ms::lane_value<T> prefix##_shuffle_and_fill_down(T data, T filling, ushort delta, ushort modulo, MS_HERE) { \
    struct two { T data, filling; };                                                                      \
    ms::LANES<two> all(two{data, filling}, ms_at);                                                        \
    uint32_t me = ms::MINE(), base = me & ~uint32_t(modulo - 1), at = me - base;                          \
    if (at + delta < modulo) return all.read(me + delta, ms_at).data;                                     \
    return all.read(base + ((at + delta) & (modulo - 1)), ms_at).filling;                                 \
  }                                                                                                       \
  template <class T>                                                                                      \
  inline ms::lane_value<T> prefix##_shuffle_and_fill_down(T data, T filling, ushort delta, MS_HERE) {     \
    return prefix##_shuffle_and_fill_down(data, filling, delta, ushort(WIDTH), ms_at);                    \
  }
MS_MOVES(simd, lanes, 32, lane)
MS_MOVES(quad, quad_lanes, 4, quad_lane)
#undef MS_MOVES

// The set of lanes for which a ballot was true.
class simd_vote {
 public:
  typedef ulong vote_t;
  constexpr simd_vote() : bits(0) {}
  explicit constexpr simd_vote(vote_t v) : bits(v) {}
  explicit constexpr operator vote_t() const { return bits; }
  constexpr bool all() const { return bits == 0xffffffffu; }
  constexpr bool any() const { return bits != 0; }

 private:
  vote_t bits;
};
class quad_vote {
 public:
  typedef ushort vote_t;
  constexpr quad_vote() : bits(0) {}
  explicit constexpr quad_vote(vote_t v) : bits(v) {}
  explicit constexpr operator vote_t() const { return bits; }
  constexpr bool all() const { return bits == 0xf; }
  constexpr bool any() const { return bits != 0; }

 private:
  vote_t bits;
};

#define MS_VOTES(prefix, MASK, MINE)                                                        \
  inline prefix##_vote prefix##_ballot(bool expr, MS_HERE) {                                \
    return prefix##_vote(prefix##_vote::vote_t(ms::MASK(expr, ms_at).votes));               \
  }                                                                                         \
  inline prefix##_vote prefix##_active_threads_mask(MS_HERE) {                              \
    return prefix##_vote(prefix##_vote::vote_t(ms::MASK(true, ms_at).present));             \
  }                                                                                         \
  inline bool prefix##_all(bool expr, MS_HERE) {                                            \
    ms::ballot votes = ms::MASK(expr, ms_at);                                               \
    return votes.votes == votes.present;                                                    \
  }                                                                                         \
  inline bool prefix##_any(bool expr, MS_HERE) { return ms::MASK(expr, ms_at).votes != 0; } \
  inline bool prefix##_is_first(MS_HERE) {                                                  \
    return uint32_t(__builtin_ctz(ms::MASK(true, ms_at).present)) == ms::MINE();            \
  }                                                                                         \
  inline bool prefix##_is_helper_thread() { return false; }

}  // namespace metal

namespace ms {

struct ballot { uint32_t votes, present; };
inline ballot simd_votes(bool expr, site ms_at) {
  uint32_t vote = expr;
  uint32_t present = ::ms_simd_combine(&vote, sizeof vote, &vote_slots, of(ms_at));
  return ballot{vote, present};
}
inline ballot quad_votes(bool expr, site ms_at) {
  quad_lanes<uchar> all(uchar(expr), ms_at);
  uint32_t votes = 0;
  for (uint32_t i = 0; i < 4; ++i)
    if (all.has(i) && all.at[i]) votes |= 1u << i;
  return ballot{votes, all.present};
}

}  // namespace ms

namespace metal {

MS_VOTES(simd, simd_votes, lane)
MS_VOTES(quad, quad_votes, quad_lane)
#undef MS_VOTES

}  // namespace metal
