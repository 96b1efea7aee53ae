// Scalar types and the little of <type_traits> that the stand-in itself needs.
#pragma once
#include <metalsim.h>

typedef signed char ms_schar;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
typedef __bf16 bfloat;

// The fields clang asks for, in the order of ms_site, so that a source location is an ms_site.
namespace std {
struct source_location {
  struct __impl {
    const char* _M_file_name;
    uint32_t _M_line;
    uint32_t _M_column;
    const char* _M_function_name;
  };
};
// What the compiler makes of { ... }; it asks for this name and these fields.
template <class T> class initializer_list {
  const T* first;
  size_t count;

 public:
  constexpr size_t size() const { return count; }
  constexpr const T* begin() const { return first; }
  constexpr const T* end() const { return first + count; }
};
}  // namespace std

namespace ms {

typedef const std::source_location::__impl* site;
static_assert(sizeof(std::source_location::__impl) == sizeof(ms_site), "a source location is an ms_site");
inline const ms_site* of(site at) { return reinterpret_cast<const ms_site*>(at); }

// As a default argument it gives the place of the call.
#define MS_HERE ::ms::site ms_at = __builtin_source_location()

template <class T> struct identity { typedef T type; };
template <class T> using same = typename identity<T>::type;  // a parameter of this type is not deduced
template <bool B, class T = void> struct enable {};
template <class T> struct enable<true, T> { typedef T type; };
template <bool B, class T = void> using enable_t = typename enable<B, T>::type;

template <class T, int N> struct vec;
template <class T, int N> struct packed_vec;

template <class T> struct is_float { static constexpr bool value = false; };
template <> struct is_float<float> { static constexpr bool value = true; };
template <> struct is_float<half> { static constexpr bool value = true; };
template <> struct is_float<bfloat> { static constexpr bool value = true; };
template <class T> struct is_integer { static constexpr bool value = false; };
template <> struct is_integer<bool> { static constexpr bool value = true; };
template <> struct is_integer<char> { static constexpr bool value = true; };
template <> struct is_integer<signed char> { static constexpr bool value = true; };
template <> struct is_integer<uchar> { static constexpr bool value = true; };
template <> struct is_integer<short> { static constexpr bool value = true; };
template <> struct is_integer<ushort> { static constexpr bool value = true; };
template <> struct is_integer<int> { static constexpr bool value = true; };
template <> struct is_integer<uint> { static constexpr bool value = true; };
template <> struct is_integer<long> { static constexpr bool value = true; };
template <> struct is_integer<ulong> { static constexpr bool value = true; };
template <class T> struct is_number { static constexpr bool value = is_float<T>::value || is_integer<T>::value; };

template <class A, class B> struct equal { static constexpr bool value = false; };
template <class A> struct equal<A, A> { static constexpr bool value = true; };

// static_cast that also goes from half to bfloat and back, which Metal allows and clang refuses.
template <class T> struct plain { typedef T type; };
template <class T> struct plain<const T> { typedef T type; };
template <class T> struct plain<T&> : plain<T> {};
template <class T> struct plain<T&&> : plain<T> {};
template <class A, class B> struct is_half_and_bfloat { static constexpr bool value = false; };
template <> struct is_half_and_bfloat<half, bfloat> { static constexpr bool value = true; };
template <> struct is_half_and_bfloat<bfloat, half> { static constexpr bool value = true; };
template <bool ByFloat> struct caster {
  template <class To, class From> static constexpr To of(From&& v) { return static_cast<To>(static_cast<From&&>(v)); }
};
template <> struct caster<true> {
  template <class To, class From> static constexpr To of(From const& v) { return static_cast<To>(static_cast<float>(v)); }
};
template <class To, class From> constexpr __attribute__((always_inline)) To cast(From&& v) {
  return caster<is_half_and_bfloat<typename plain<To>::type, typename plain<From>::type>::value>::template of<To>(
      static_cast<From&&>(v));
}

// The scalar inside, and how many: a scalar counts 1.
template <class T> struct shape { typedef T scalar; static constexpr int size = 1; };
template <class T, int N> struct shape<vec<T, N>> { typedef T scalar; static constexpr int size = N; };
template <class T, int N> struct shape<packed_vec<T, N>> { typedef T scalar; static constexpr int size = N; };
template <class T> struct shape<const T> : shape<T> {};
template <class T> using scalar_t = typename shape<T>::scalar;

}  // namespace ms
