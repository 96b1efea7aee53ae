// vec<T, N> and packed_vec<T, N>: Metal's vector types.
//
// Own classes rather than the compiler's vector types, because Metal's rules are not those of clang's: conversion is by
// value and explicit, a comparison gives a vector of bool, and T(a, b) works for any T.
#pragma once
#include <ms/base.h>
#include <ms/swizzle.h>

namespace ms {

// Writes the components of scalars and vectors one after another.
template <class T, int N> struct filler {
  T at[N]{};
  int used = 0;
  template <class U> constexpr enable_t<is_number<U>::value> add(U value) { at[used++] = cast<T>(value); }
  template <class U, int M> constexpr void add(vec<U, M> const& value) {
    for (int i = 0; i < M; ++i) at[used++] = cast<T>(value[i]);
  }
  template <class U, int M> constexpr void add(packed_vec<U, M> const& value) {
    for (int i = 0; i < M; ++i) at[used++] = cast<T>(value[i]);
  }
};
// {a, b} for a longer vector: the rest is zero.
template <class T> constexpr T listed(std::initializer_list<T> v, unsigned i) { return i < v.size() ? v.begin()[i] : T(0); }
template <class... A> struct total;
template <> struct total<> { static constexpr int value = 0; };
template <class A, class... R> struct total<A, R...> { static constexpr int value = shape<A>::size + total<R...>::value; };
template <int N, class... A> using fills = enable_t<(sizeof...(A) > 1) && total<A...>::value == N>;

#define MS_LIST_2(E) E(x), E(y)
#define MS_LIST_3(E) E(x), E(y), E(z)
#define MS_LIST_4(E) E(x), E(y), E(z), E(w)

#define MS_OPERATORS_OF(V, R, LIST)                                                                  \
  friend constexpr V operator+(V a, V b) { return V(LIST(MS_ADD)); }                                 \
  friend constexpr V operator-(V a, V b) { return V(LIST(MS_SUB)); }                                 \
  friend constexpr V operator*(V a, V b) { return V(LIST(MS_MUL)); }                                 \
  friend constexpr V operator/(V a, V b) { return V(LIST(MS_DIV)); }                                 \
  friend constexpr V operator%(V a, V b) { return V(LIST(MS_MOD)); }                                 \
  friend constexpr V operator&(V a, V b) { return V(LIST(MS_AND)); }                                 \
  friend constexpr V operator|(V a, V b) { return V(LIST(MS_OR)); }                                  \
  friend constexpr V operator^(V a, V b) { return V(LIST(MS_XOR)); }                                 \
  friend constexpr V operator<<(V a, V b) { return V(LIST(MS_SHL)); }                                \
  friend constexpr V operator>>(V a, V b) { return V(LIST(MS_SHR)); }                                \
  friend constexpr R operator==(V a, V b) { return R(LIST(MS_EQ)); }                                 \
  friend constexpr R operator!=(V a, V b) { return R(LIST(MS_NE)); }                                 \
  friend constexpr R operator<(V a, V b) { return R(LIST(MS_LT)); }                                  \
  friend constexpr R operator>(V a, V b) { return R(LIST(MS_GT)); }                                  \
  friend constexpr R operator<=(V a, V b) { return R(LIST(MS_LE)); }                                 \
  friend constexpr R operator>=(V a, V b) { return R(LIST(MS_GE)); }                                 \
  friend constexpr R operator&&(V a, V b) { return R(LIST(MS_ALSO)); }                               \
  friend constexpr R operator||(V a, V b) { return R(LIST(MS_ELSE)); }                               \
  friend constexpr R operator!(V a) { return R(LIST(MS_NOT)); }                                      \
  friend constexpr V operator+(V a) { return a; }                                                    \
  friend constexpr V operator-(V a) { return V(LIST(MS_NEG)); }                                      \
  friend constexpr V operator~(V a) { return V(LIST(MS_INV)); }                                      \
  constexpr V& operator+=(V b) { return *this = *this + b; }                                         \
  constexpr V& operator-=(V b) { return *this = *this - b; }                                         \
  constexpr V& operator*=(V b) { return *this = *this * b; }                                         \
  constexpr V& operator/=(V b) { return *this = *this / b; }                                         \
  constexpr V& operator%=(V b) { return *this = *this % b; }                                         \
  constexpr V& operator&=(V b) { return *this = *this & b; }                                         \
  constexpr V& operator|=(V b) { return *this = *this | b; }                                         \
  constexpr V& operator^=(V b) { return *this = *this ^ b; }                                         \
  constexpr V& operator<<=(V b) { return *this = *this << b; }                                       \
  constexpr V& operator>>=(V b) { return *this = *this >> b; }                                       \
  constexpr V& operator++() { return *this = *this + V(T(1)); }                                      \
  constexpr V& operator--() { return *this = *this - V(T(1)); }                                      \
  constexpr V operator++(int) { V old = *this; ++*this; return old; }                                \
  constexpr V operator--(int) { V old = *this; --*this; return old; }
#define MS_ADD(c) static_cast<T>(a.c + b.c)
#define MS_SUB(c) static_cast<T>(a.c - b.c)
#define MS_MUL(c) static_cast<T>(a.c * b.c)
#define MS_DIV(c) static_cast<T>(a.c / b.c)
#define MS_MOD(c) static_cast<T>(a.c % b.c)
#define MS_AND(c) static_cast<T>(a.c & b.c)
#define MS_OR(c) static_cast<T>(a.c | b.c)
#define MS_XOR(c) static_cast<T>(a.c ^ b.c)
#define MS_SHL(c) static_cast<T>(a.c << (b.c & (8 * sizeof(T) - 1)))
#define MS_SHR(c) static_cast<T>(a.c >> (b.c & (8 * sizeof(T) - 1)))
#define MS_EQ(c) a.c == b.c
#define MS_NE(c) a.c != b.c
#define MS_LT(c) a.c < b.c
#define MS_GT(c) a.c > b.c
#define MS_LE(c) a.c <= b.c
#define MS_GE(c) a.c >= b.c
#define MS_ALSO(c) bool(a.c) && bool(b.c)
#define MS_ELSE(c) bool(a.c) || bool(b.c)
#define MS_NOT(c) !bool(a.c)
#define MS_NEG(c) static_cast<T>(-a.c)
#define MS_INV(c) static_cast<T>(~a.c)

// A component by number: a chain of constants when constant, an address otherwise.
#define MS_SUBSCRIPT(N)                                                     \
  constexpr T& operator[](int i) {                                          \
    if (__builtin_is_constant_evaluated()) return *ms_component(i);         \
    return (&x)[i];                                                         \
  }                                                                         \
  constexpr const T& operator[](int i) const {                              \
    if (__builtin_is_constant_evaluated()) return *ms_component(i);         \
    return (&x)[i];                                                         \
  }

#define MS_CAST(c) cast<T>(v.c)

// In checking mode a vector is copied by functions of its own: clang looks whether the address given to a function is
// aligned, but not at that of a trivial copy. The bytes are copied as in the other mode, padding too.
#ifdef MS_CHECK
#define MS_COPIES(LIST)                                                                             \
  __attribute__((always_inline)) constexpr vec(vec const& v) { ms_copy(v); }                        \
  __attribute__((always_inline)) constexpr vec& operator=(vec const& v) { ms_copy(v); return *this; } \
  __attribute__((always_inline)) constexpr void ms_copy(vec const& v) {                             \
    if (__builtin_is_constant_evaluated()) (void)(LIST(MS_COPY));                                   \
    else __builtin_memcpy(this, &v, sizeof v);                                                      \
  }
#define MS_COPY(c) c = v.c
#else
#define MS_COPIES(LIST)
#endif

template <class T> struct alignas(2 * sizeof(T)) vec<T, 2> {
  T x, y;
  vec() = default;
  MS_COPIES(MS_LIST_2)
  constexpr vec(T s) : x(s), y(s) {}
  constexpr vec(T a, T b) : x(a), y(b) {}
  template <class U> constexpr explicit vec(vec<U, 2> const& v) : vec(MS_LIST_2(MS_CAST)) {}
  constexpr vec(packed_vec<T, 2> const& v) : vec(MS_LIST_2(MS_CAST)) {}
  constexpr T* ms_component(int i) { return i == 0 ? &x : &y; }
  constexpr const T* ms_component(int i) const { return i == 0 ? &x : &y; }
  __declspec(property(get = ms_get_x, put = ms_put_x)) T r;
  __declspec(property(get = ms_get_y, put = ms_put_y)) T g;
  constexpr T ms_get_x() const { return x; }
  constexpr T ms_get_y() const { return y; }
  constexpr void ms_put_x(T v) { x = v; }
  constexpr void ms_put_y(T v) { y = v; }
  typedef vec<bool, 2> ms_bool;
  MS_SUBSCRIPT(2)
  MS_OPERATORS_OF(vec, ms_bool, MS_LIST_2)
  MS_SWIZZLES_2
};

template <class T> struct alignas(4 * sizeof(T)) vec<T, 3> {
  T x, y, z;
  vec() = default;
  MS_COPIES(MS_LIST_3)
  constexpr vec(T s) : x(s), y(s), z(s) {}
  constexpr vec(T a, T b, T c) : x(a), y(b), z(c) {}
  constexpr vec(std::initializer_list<T> v) : x(listed(v, 0)), y(listed(v, 1)), z(listed(v, 2)) {}
  template <class A, class... R, class = fills<3, A, R...>> constexpr vec(A const& a, R const&... r) : x(), y(), z() {
    filler<T, 3> f;
    int order[] = {(f.add(a), 0), (f.add(r), 0)...};
    (void)order;
    x = f.at[0];
    y = f.at[1];
    z = f.at[2];
  }
  template <class U> constexpr explicit vec(vec<U, 3> const& v) : vec(MS_LIST_3(MS_CAST)) {}
  constexpr vec(packed_vec<T, 3> const& v) : vec(MS_LIST_3(MS_CAST)) {}
  constexpr T* ms_component(int i) { return i == 0 ? &x : i == 1 ? &y : &z; }
  constexpr const T* ms_component(int i) const { return i == 0 ? &x : i == 1 ? &y : &z; }
  __declspec(property(get = ms_get_x, put = ms_put_x)) T r;
  __declspec(property(get = ms_get_y, put = ms_put_y)) T g;
  __declspec(property(get = ms_get_z, put = ms_put_z)) T b;
  constexpr T ms_get_x() const { return x; }
  constexpr T ms_get_y() const { return y; }
  constexpr T ms_get_z() const { return z; }
  constexpr void ms_put_x(T v) { x = v; }
  constexpr void ms_put_y(T v) { y = v; }
  constexpr void ms_put_z(T v) { z = v; }
  typedef vec<bool, 3> ms_bool;
  MS_SUBSCRIPT(3)
  MS_OPERATORS_OF(vec, ms_bool, MS_LIST_3)
  MS_SWIZZLES_3
};

template <class T> struct alignas(4 * sizeof(T)) vec<T, 4> {
  T x, y, z, w;
  vec() = default;
  MS_COPIES(MS_LIST_4)
  constexpr vec(T s) : x(s), y(s), z(s), w(s) {}
  constexpr vec(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
  constexpr vec(std::initializer_list<T> v) : x(listed(v, 0)), y(listed(v, 1)), z(listed(v, 2)), w(listed(v, 3)) {}
  template <class A, class... R, class = fills<4, A, R...>>
  constexpr vec(A const& a, R const&... r) : x(), y(), z(), w() {
    filler<T, 4> f;
    int order[] = {(f.add(a), 0), (f.add(r), 0)...};
    (void)order;
    x = f.at[0];
    y = f.at[1];
    z = f.at[2];
    w = f.at[3];
  }
  template <class U> constexpr explicit vec(vec<U, 4> const& v) : vec(MS_LIST_4(MS_CAST)) {}
  constexpr vec(packed_vec<T, 4> const& v) : vec(MS_LIST_4(MS_CAST)) {}
  constexpr T* ms_component(int i) { return i == 0 ? &x : i == 1 ? &y : i == 2 ? &z : &w; }
  constexpr const T* ms_component(int i) const { return i == 0 ? &x : i == 1 ? &y : i == 2 ? &z : &w; }
  __declspec(property(get = ms_get_x, put = ms_put_x)) T r;
  __declspec(property(get = ms_get_y, put = ms_put_y)) T g;
  __declspec(property(get = ms_get_z, put = ms_put_z)) T b;
  __declspec(property(get = ms_get_w, put = ms_put_w)) T a;
  constexpr T ms_get_x() const { return x; }
  constexpr T ms_get_y() const { return y; }
  constexpr T ms_get_z() const { return z; }
  constexpr T ms_get_w() const { return w; }
  constexpr void ms_put_x(T v) { x = v; }
  constexpr void ms_put_y(T v) { y = v; }
  constexpr void ms_put_z(T v) { z = v; }
  constexpr void ms_put_w(T v) { w = v; }
  typedef vec<bool, 4> ms_bool;
  MS_SUBSCRIPT(4)
  MS_OPERATORS_OF(vec, ms_bool, MS_LIST_4)
  MS_SWIZZLES_4
};

// The same components without the alignment of a vector; computes as one.
#define MS_PACKED(N, MEMBERS, ...)                                                        \
  template <class T> struct packed_vec<T, N> {                                            \
    typedef vec<T, N> V;                                                                  \
    T MEMBERS;                                                                            \
    packed_vec() = default;                                                               \
    template <class... A> constexpr packed_vec(T a, A... r) : packed_vec(V(a, r...)) {}   \
    constexpr packed_vec(V const& v) : __VA_ARGS__ {}                                     \
    template <class U> constexpr explicit packed_vec(vec<U, N> const& v) : packed_vec(V(v)) {}  \
    constexpr T& operator[](int i) { return (&x)[i]; }                                    \
    constexpr const T& operator[](int i) const { return (&x)[i]; }                        \
    constexpr packed_vec& operator+=(V b) { return *this = V(*this) + b; }                \
    constexpr packed_vec& operator-=(V b) { return *this = V(*this) - b; }                \
    constexpr packed_vec& operator*=(V b) { return *this = V(*this) * b; }                \
    constexpr packed_vec& operator/=(V b) { return *this = V(*this) / b; }                \
    friend constexpr V operator-(packed_vec a) { return -V(a); }                          \
    MS_PACKED_OPERATOR(+) MS_PACKED_OPERATOR(-) MS_PACKED_OPERATOR(*) MS_PACKED_OPERATOR(/) \
    MS_PACKED_COMPARISON(==) MS_PACKED_COMPARISON(!=) MS_PACKED_COMPARISON(<)             \
    MS_PACKED_COMPARISON(>) MS_PACKED_COMPARISON(<=) MS_PACKED_COMPARISON(>=)             \
  };
#define MS_PACKED_OPERATOR(op)                                                    \
  friend constexpr V operator op(packed_vec a, packed_vec b) { return V(a) op V(b); } \
  friend constexpr V operator op(packed_vec a, V b) { return V(a) op b; }         \
  friend constexpr V operator op(V a, packed_vec b) { return a op V(b); }         \
  friend constexpr V operator op(packed_vec a, T b) { return V(a) op V(b); }      \
  friend constexpr V operator op(T a, packed_vec b) { return V(a) op V(b); }
#define MS_PACKED_COMPARISON(op)                                                                       \
  friend constexpr vec<bool, shape<V>::size> operator op(packed_vec a, packed_vec b) { return V(a) op V(b); } \
  friend constexpr vec<bool, shape<V>::size> operator op(packed_vec a, V b) { return V(a) op b; }      \
  friend constexpr vec<bool, shape<V>::size> operator op(V a, packed_vec b) { return a op V(b); }
#define MS_COMMA ,
MS_PACKED(2, x MS_COMMA y, x(v.x), y(v.y))
MS_PACKED(3, x MS_COMMA y MS_COMMA z, x(v.x), y(v.y), z(v.z))
MS_PACKED(4, x MS_COMMA y MS_COMMA z MS_COMMA w, x(v.x), y(v.y), z(v.z), w(v.w))

}  // namespace ms

#define MS_VECTOR_TYPES(T)              \
  typedef ms::vec<T, 2> T##2;           \
  typedef ms::vec<T, 3> T##3;           \
  typedef ms::vec<T, 4> T##4;
#define MS_PACKED_TYPES(T)                        \
  typedef ms::packed_vec<T, 2> packed_##T##2;     \
  typedef ms::packed_vec<T, 3> packed_##T##3;     \
  typedef ms::packed_vec<T, 4> packed_##T##4;
#define MS_FOR_INTEGERS(M) M(char) M(uchar) M(short) M(ushort) M(int) M(uint) M(long) M(ulong)
#define MS_FOR_FLOATS(M) M(float) M(half)
MS_FOR_INTEGERS(MS_VECTOR_TYPES)
MS_FOR_FLOATS(MS_VECTOR_TYPES)
MS_VECTOR_TYPES(bool)
MS_VECTOR_TYPES(bfloat)
MS_FOR_INTEGERS(MS_PACKED_TYPES)
MS_FOR_FLOATS(MS_PACKED_TYPES)
MS_PACKED_TYPES(bool)
MS_PACKED_TYPES(bfloat)
