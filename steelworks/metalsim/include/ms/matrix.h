// metal_matrix: small matrices by columns. metal_simdgroup_matrix: 8x8 matrices spread over a simdgroup.
#pragma once
#include <ms/math.h>
#include <ms/simd.h>

namespace metal {

template <class T, int Cols, int Rows> struct matrix {
  vec<T, Rows> columns[Cols];
  matrix() = default;
  constexpr explicit matrix(T diagonal) : columns() {
    for (int c = 0; c < Cols; ++c) {
      columns[c] = vec<T, Rows>(T(0));
      if (c < Rows) columns[c][c] = diagonal;
    }
  }
  template <class... A, class = ms::enable_t<sizeof...(A) + 1 == Cols>>
  constexpr matrix(vec<T, Rows> first, A... rest) : columns{first, rest...} {}
  template <class... A, class = ms::enable_t<sizeof...(A) + 1 == Cols * Rows>, class = void>
  constexpr matrix(T first, A... rest) : columns() {
    T all[] = {first, T(rest)...};
    for (int i = 0; i < Cols * Rows; ++i) columns[i / Rows][i % Rows] = all[i];
  }
  template <class U> constexpr explicit matrix(matrix<U, Cols, Rows> const& m) : columns() {
    for (int c = 0; c < Cols; ++c) columns[c] = vec<T, Rows>(m[c]);
  }
  constexpr vec<T, Rows>& operator[](int c) { return columns[c]; }
  constexpr vec<T, Rows> const& operator[](int c) const { return columns[c]; }
  friend matrix operator+(matrix a, matrix const& b) { for (int c = 0; c < Cols; ++c) a[c] += b[c]; return a; }
  friend matrix operator-(matrix a, matrix const& b) { for (int c = 0; c < Cols; ++c) a[c] -= b[c]; return a; }
  friend matrix operator-(matrix a) { for (int c = 0; c < Cols; ++c) a[c] = -a[c]; return a; }
  friend matrix operator*(matrix a, T s) { for (int c = 0; c < Cols; ++c) a[c] *= s; return a; }
  friend matrix operator*(T s, matrix a) { return a * s; }
  friend vec<T, Rows> operator*(matrix const& a, vec<T, Cols> v) {
    vec<T, Rows> sum = a[0] * v[0];
    for (int c = 1; c < Cols; ++c) sum += a[c] * v[c];
    return sum;
  }
  friend vec<T, Cols> operator*(vec<T, Rows> v, matrix const& a) {
    vec<T, Cols> r;
    for (int c = 0; c < Cols; ++c) r[c] = dot(v, a[c]);
    return r;
  }
  template <int N> friend matrix<T, N, Rows> operator*(matrix const& a, matrix<T, N, Cols> const& b) {
    matrix<T, N, Rows> r;
    for (int c = 0; c < N; ++c) r[c] = a * b[c];
    return r;
  }
  matrix& operator+=(matrix const& b) { return *this = *this + b; }
  matrix& operator-=(matrix const& b) { return *this = *this - b; }
  matrix& operator*=(T s) { return *this = *this * s; }
  matrix& operator*=(matrix const& b) { return *this = *this * b; }
  friend bool operator==(matrix const& a, matrix const& b) {
    bool r = true;
    for (int c = 0; c < Cols; ++c) r = r && all(a[c] == b[c]);
    return r;
  }
  friend bool operator!=(matrix const& a, matrix const& b) { return !(a == b); }
};
template <class T, int C, int R> inline matrix<T, R, C> transpose(matrix<T, C, R> const& m) {
  matrix<T, R, C> r;
  for (int c = 0; c < C; ++c)
    for (int i = 0; i < R; ++i) r[i][c] = m[c][i];
  return r;
}
template <class T> inline T determinant(matrix<T, 2, 2> const& m) { return m[0].x * m[1].y - m[1].x * m[0].y; }
template <class T> inline T determinant(matrix<T, 3, 3> const& m) { return dot(m[0], cross(m[1], m[2])); }
template <class T> inline T determinant(matrix<T, 4, 4> const& m) {
  T sum = T(0);
  for (int skip = 0; skip < 4; ++skip) {
    vec<T, 3> c[3];
    for (int i = 0, k = 0; i < 4; ++i)
      if (i != skip) c[k++] = m[i].yzw;
    T minor = dot(c[0], cross(c[1], c[2]));
    sum = skip % 2 ? sum - m[skip].x * minor : sum + m[skip].x * minor;
  }
  return sum;
}

}  // namespace metal

#define MS_MATRIX_TYPES_OF(T, C)                                              \
  typedef metal::matrix<T, C, 2> T##C##x2;                                    \
  typedef metal::matrix<T, C, 3> T##C##x3;                                    \
  typedef metal::matrix<T, C, 4> T##C##x4;
#define MS_MATRIX_TYPES(T) MS_MATRIX_TYPES_OF(T, 2) MS_MATRIX_TYPES_OF(T, 3) MS_MATRIX_TYPES_OF(T, 4)
MS_MATRIX_TYPES(float)
MS_MATRIX_TYPES(half)

namespace ms {

// Apple's map, undocumented but relied on by everyone: lane bits 4,2,1 are the row, bit 3 the half of the columns, bit 0 the
// pair; a lane holds two adjacent columns.
inline uint matrix_row(uint lane) { return (lane >> 4 & 1) << 2 | (lane >> 1 & 3); }
inline uint matrix_column(uint lane) { return (lane >> 3 & 1) << 2 | (lane & 1) << 1; }
inline uint matrix_lane(uint row, uint column) {
  return (row >> 2 & 1) << 4 | (column >> 2 & 1) << 3 | (row & 3) << 1 | (column >> 1 & 1);
}
template <class T> struct is_matrix_value {
  static constexpr bool value = equal<T, float>::value || equal<T, half>::value || equal<T, bfloat>::value;
};

}  // namespace ms

namespace metal {

template <class T, int Cols, int Rows> struct simdgroup_matrix {
  static_assert(Cols == 8 && Rows == 8, "Metal has simdgroup_matrix of 8 by 8 only");
  static_assert(ms::is_matrix_value<T>::value, "a simdgroup_matrix holds float, half or bfloat");
  typedef T value_type;
  typedef vec<T, 2> storage_type;
  storage_type ms_elements;
  simdgroup_matrix() = default;
  // A diagonal matrix.
  explicit simdgroup_matrix(T diagonal) {
    uint row = ms::matrix_row(ms::lane()), column = ms::matrix_column(ms::lane());
    ms_elements = storage_type(row == column ? diagonal : T(0), row == column + 1 ? diagonal : T(0));
  }
  storage_type& thread_elements() { return ms_elements; }
  storage_type const& thread_elements() const { return ms_elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int C, int R> inline simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, C, R> m;
  m.thread_elements() = vec<T, 2>(value);
  return m;
}
template <class T, int C, int R> inline simdgroup_matrix<T, C, R> make_diagonal_simdgroup_matrix(T value) {
  return simdgroup_matrix<T, C, R>(value);
}

template <class T, class U, class = ms::enable_t<ms::equal<T, typename remove_cv<U>::type>::value>>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& d, U const* source, ulong elements_per_row = 8, vec<ulong, 2> origin = 0,
                           bool transpose_matrix = false) {
  ulong row = ms::matrix_row(ms::lane()), column = ms::matrix_column(ms::lane());
  U const* from = source + origin.y * elements_per_row + origin.x;
  if (transpose_matrix)
    d.thread_elements() = vec<T, 2>(from[column * elements_per_row + row], from[(column + 1) * elements_per_row + row]);
  else
    d.thread_elements() = vec<T, 2>(from[row * elements_per_row + column], from[row * elements_per_row + column + 1]);
}
template <class T>
inline void simdgroup_store(simdgroup_matrix<T, 8, 8> const& a, T* destination, ulong elements_per_row = 8, vec<ulong, 2> origin = 0,
                            bool transpose_matrix = false) {
  ulong row = ms::matrix_row(ms::lane()), column = ms::matrix_column(ms::lane());
  T* to = destination + origin.y * elements_per_row + origin.x;
  if (transpose_matrix) {
    to[column * elements_per_row + row] = a.thread_elements().x;
    to[(column + 1) * elements_per_row + row] = a.thread_elements().y;
  } else {
    to[row * elements_per_row + column] = a.thread_elements().x;
    to[row * elements_per_row + column + 1] = a.thread_elements().y;
  }
}

}  // namespace metal

namespace ms {

// What a lane gives to a multiply-accumulate, and gets back: c becomes d.
template <class A, class B> struct matrix_part { vec<A, 2> a; vec<B, 2> b; vec<float, 2> c; };

template <class A, class B> MS_IN_RUNTIME void multiply_slots(void* slots, uint32_t) {
  matrix_part<A, B>* part = static_cast<matrix_part<A, B>*>(slots);
  float a[8][8], b[8][8], d[8][8];
  for (uint lane = 0; lane < 32; ++lane) {
    uint row = matrix_row(lane), column = matrix_column(lane);
    for (uint i = 0; i < 2; ++i) {
      a[row][column + i] = float(part[lane].a[i]);
      b[row][column + i] = float(part[lane].b[i]);
      d[row][column + i] = part[lane].c[i];
    }
  }
  for (int i = 0; i < 8; ++i)
    for (int k = 0; k < 8; ++k)
      for (int j = 0; j < 8; ++j) d[i][j] = d[i][j] + a[i][k] * b[k][j];
  for (uint lane = 0; lane < 32; ++lane)
    for (uint i = 0; i < 2; ++i) part[lane].c[i] = d[matrix_row(lane)][matrix_column(lane) + i];
}

}  // namespace ms

namespace metal {

// d = a * b + c, in float.
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> const& a,
                                          simdgroup_matrix<B, 8, 8> const& b, simdgroup_matrix<C, 8, 8> const& c, MS_HERE) {
  ms::matrix_part<A, B> part{a.thread_elements(), b.thread_elements(), vec<float, 2>(c.thread_elements())};
  uint32_t present = ::ms_simd_combine(&part, sizeof part, &ms::multiply_slots<A, B>, ms::of(ms_at));
  if (present != 0xffffffffu) ::ms_absent_lane(__builtin_ctz(~present), ms::of(ms_at));
  ::ms_count_mma();
  d.thread_elements() = vec<D, 2>(part.c);
}
template <class D, class A, class B>
inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> const& a,
                               simdgroup_matrix<B, 8, 8> const& b, MS_HERE) {
  simdgroup_matrix<D, 8, 8> zero;
  zero.thread_elements() = vec<D, 2>(D(0));
  simdgroup_multiply_accumulate(d, a, b, zero, ms_at);
}

}  // namespace metal
