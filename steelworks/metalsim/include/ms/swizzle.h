// The swizzles of a vector, as properties: reading calls a getter, assigning a setter. No storage.
//
// MS_SWIZZLES_n(T) declares all of them for a vector with n components. A setter for a repeated component does not
// compile when used.
#pragma once

#define MS_DIFFERENT(a, b) (#a[0] != #b[0])
#define MS_SWIZZLE_PROPERTY(name) __declspec(property(get = ms_get_##name, put = ms_put_##name))

#define MS_S2(i, I, j, J)                                                                              \
  constexpr vec<T, 2> ms_get_##i##j() const { return vec<T, 2>(i, j); }                                \
  constexpr void ms_put_##i##j(vec<T, 2> v) {                                                          \
    static_assert(sizeof(T) && MS_DIFFERENT(i, j), "a swizzle that repeats a component is read only"); \
    i = v.x;                                                                                           \
    j = v.y;                                                                                           \
  }                                                                                                    \
  MS_SWIZZLE_PROPERTY(i##j) vec<T, 2> i##j;                                                         \
  MS_SWIZZLE_PROPERTY(i##j) vec<T, 2> I##J;
#define MS_S3(i, I, j, J, k, K)                                                     \
  constexpr vec<T, 3> ms_get_##i##j##k() const { return vec<T, 3>(i, j, k); }       \
  constexpr void ms_put_##i##j##k(vec<T, 3> v) {                                    \
    static_assert(sizeof(T) && MS_DIFFERENT(i, j) && MS_DIFFERENT(i, k) && MS_DIFFERENT(j, k), \
                  "a swizzle that repeats a component is read only");               \
    i = v.x;                                                                        \
    j = v.y;                                                                        \
    k = v.z;                                                                        \
  }                                                                                 \
  MS_SWIZZLE_PROPERTY(i##j##k) vec<T, 3> i##j##k;                                \
  MS_SWIZZLE_PROPERTY(i##j##k) vec<T, 3> I##J##K;
#define MS_S4(i, I, j, J, k, K, l, L)                                                   \
  constexpr vec<T, 4> ms_get_##i##j##k##l() const { return vec<T, 4>(i, j, k, l); }     \
  constexpr void ms_put_##i##j##k##l(vec<T, 4> v) {                                     \
    static_assert(sizeof(T) && MS_DIFFERENT(i, j) && MS_DIFFERENT(i, k) && MS_DIFFERENT(i, l) && \
                      MS_DIFFERENT(j, k) && MS_DIFFERENT(j, l) && MS_DIFFERENT(k, l),   \
                  "a swizzle that repeats a component is read only");                   \
    i = v.x;                                                                            \
    j = v.y;                                                                            \
    k = v.z;                                                                            \
    l = v.w;                                                                            \
  }                                                                                     \
  MS_SWIZZLE_PROPERTY(i##j##k##l) vec<T, 4> i##j##k##l;                              \
  MS_SWIZZLE_PROPERTY(i##j##k##l) vec<T, 4> I##J##K##L;

// MS_ij: all swizzles of j components out of the first i.
#define MS_22_(i, I) MS_S2(i, I, x, r) MS_S2(i, I, y, g)
#define MS_22 MS_22_(x, r) MS_22_(y, g)
#define MS_23__(i, I, j, J) MS_S3(i, I, j, J, x, r) MS_S3(i, I, j, J, y, g)
#define MS_23_(i, I) MS_23__(i, I, x, r) MS_23__(i, I, y, g)
#define MS_23 MS_23_(x, r) MS_23_(y, g)
#define MS_24___(i, I, j, J, k, K) MS_S4(i, I, j, J, k, K, x, r) MS_S4(i, I, j, J, k, K, y, g)
#define MS_24__(i, I, j, J) MS_24___(i, I, j, J, x, r) MS_24___(i, I, j, J, y, g)
#define MS_24_(i, I) MS_24__(i, I, x, r) MS_24__(i, I, y, g)
#define MS_24 MS_24_(x, r) MS_24_(y, g)

#define MS_32_(i, I) MS_22_(i, I) MS_S2(i, I, z, b)
#define MS_32 MS_32_(x, r) MS_32_(y, g) MS_32_(z, b)
#define MS_33__(i, I, j, J) MS_23__(i, I, j, J) MS_S3(i, I, j, J, z, b)
#define MS_33_(i, I) MS_33__(i, I, x, r) MS_33__(i, I, y, g) MS_33__(i, I, z, b)
#define MS_33 MS_33_(x, r) MS_33_(y, g) MS_33_(z, b)
#define MS_34___(i, I, j, J, k, K) MS_24___(i, I, j, J, k, K) MS_S4(i, I, j, J, k, K, z, b)
#define MS_34__(i, I, j, J) MS_34___(i, I, j, J, x, r) MS_34___(i, I, j, J, y, g) MS_34___(i, I, j, J, z, b)
#define MS_34_(i, I) MS_34__(i, I, x, r) MS_34__(i, I, y, g) MS_34__(i, I, z, b)
#define MS_34 MS_34_(x, r) MS_34_(y, g) MS_34_(z, b)

#define MS_42_(i, I) MS_32_(i, I) MS_S2(i, I, w, a)
#define MS_42 MS_42_(x, r) MS_42_(y, g) MS_42_(z, b) MS_42_(w, a)
#define MS_43__(i, I, j, J) MS_33__(i, I, j, J) MS_S3(i, I, j, J, w, a)
#define MS_43_(i, I) MS_43__(i, I, x, r) MS_43__(i, I, y, g) MS_43__(i, I, z, b) MS_43__(i, I, w, a)
#define MS_43 MS_43_(x, r) MS_43_(y, g) MS_43_(z, b) MS_43_(w, a)
#define MS_44___(i, I, j, J, k, K) MS_34___(i, I, j, J, k, K) MS_S4(i, I, j, J, k, K, w, a)
#define MS_44__(i, I, j, J) \
  MS_44___(i, I, j, J, x, r) MS_44___(i, I, j, J, y, g) MS_44___(i, I, j, J, z, b) MS_44___(i, I, j, J, w, a)
#define MS_44_(i, I) MS_44__(i, I, x, r) MS_44__(i, I, y, g) MS_44__(i, I, z, b) MS_44__(i, I, w, a)
#define MS_44 MS_44_(x, r) MS_44_(y, g) MS_44_(z, b) MS_44_(w, a)

#define MS_SWIZZLES_2 MS_22 MS_23 MS_24
#define MS_SWIZZLES_3 MS_32 MS_33 MS_34
#define MS_SWIZZLES_4 MS_42 MS_43 MS_44
