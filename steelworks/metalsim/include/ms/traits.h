// metal_type_traits, metal_limits, metal_utility, metal_array. In Metal, a vector counts as what its components are.
#pragma once
#include <ms/vector.h>

// The bits of a value as another type of the same size.
namespace ms {
template <bool Trivial> struct copied_bits {
  template <class To, class From> static constexpr To as(From const& value) { return __builtin_bit_cast(To, value); }
};
// Vectors in checking mode: see MS_COPIES.
template <> struct copied_bits<false> {
  template <class To, class From> static To as(From const& value) {
    To result;
    __builtin_memcpy(&result, &value, sizeof result);
    return result;
  }
};
}  // namespace ms
template <class To, class From> constexpr To as_type(From const& value) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs types of the same size");
  return ms::copied_bits<__is_trivially_copyable(To) && __is_trivially_copyable(From)>::template as<To>(value);
}

namespace metal {
using ms::vec;

template <class T, T Value> struct integral_constant {
  static constexpr T value = Value;
  typedef T value_type;
  typedef integral_constant type;
  constexpr operator T() const { return Value; }
  constexpr T operator()() const { return Value; }
};
template <bool B> using bool_constant = integral_constant<bool, B>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;

template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { typedef T type; };
template <bool B, class T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class F> struct conditional { typedef T type; };
template <class T, class F> struct conditional<false, T, F> { typedef F type; };
template <bool B, class T, class F> using conditional_t = typename conditional<B, T, F>::type;

#define MS_TRANSFORM(name)                                              \
  template <class T> struct name { typedef __##name(T) type; };         \
  template <class T> using name##_t = typename name<T>::type;
MS_TRANSFORM(remove_const)
MS_TRANSFORM(remove_volatile)
MS_TRANSFORM(remove_cv)
MS_TRANSFORM(remove_pointer)
MS_TRANSFORM(remove_extent)
MS_TRANSFORM(remove_all_extents)
MS_TRANSFORM(add_pointer)
MS_TRANSFORM(add_lvalue_reference)
MS_TRANSFORM(add_rvalue_reference)
MS_TRANSFORM(decay)
MS_TRANSFORM(make_signed)
MS_TRANSFORM(make_unsigned)
MS_TRANSFORM(underlying_type)
#undef MS_TRANSFORM
template <class T> struct remove_reference { typedef __remove_reference_t(T) type; };
template <class T> using remove_reference_t = typename remove_reference<T>::type;
template <class T> struct add_const { typedef const T type; };
template <class T> using add_const_t = typename add_const<T>::type;
template <class T> struct add_volatile { typedef volatile T type; };
template <class T> using add_volatile_t = typename add_volatile<T>::type;
template <class T> struct add_cv { typedef const volatile T type; };
template <class T> using add_cv_t = typename add_cv<T>::type;
// The constant address space is const here.
template <class T> struct remove_addrspace { typedef __remove_const(T) type; };
template <class T> using remove_addrspace_t = typename remove_addrspace<T>::type;
template <class T> struct make_scalar { typedef ms::scalar_t<T> type; };
template <class T> using make_scalar_t = typename make_scalar<T>::type;
template <class T, int N> struct make_vector { typedef vec<T, N> type; };
template <class T, int N> using make_vector_t = typename make_vector<T, N>::type;

template <class T> add_rvalue_reference_t<T> declval() noexcept;

#define MS_TRAIT(name, ...)                                                  \
  template <class T> struct name : bool_constant<(__VA_ARGS__)> {};          \
  template <class T> constexpr bool name##_v = (__VA_ARGS__);
#define MS_SCALAR ms::scalar_t<remove_cv_t<T>>
MS_TRAIT(is_integral, ms::is_integer<MS_SCALAR>::value)
MS_TRAIT(is_floating_point, ms::is_float<MS_SCALAR>::value)
MS_TRAIT(is_arithmetic, ms::is_number<MS_SCALAR>::value)
MS_TRAIT(is_signed, ms::is_number<MS_SCALAR>::value && (MS_SCALAR(-1) < MS_SCALAR(0)))
MS_TRAIT(is_unsigned, ms::is_number<MS_SCALAR>::value && !(MS_SCALAR(-1) < MS_SCALAR(0)))
MS_TRAIT(is_vector, ms::shape<remove_cv_t<T>>::size > 1)
MS_TRAIT(is_scalar, __is_scalar(T))
MS_TRAIT(is_fundamental, __is_fundamental(T))
MS_TRAIT(is_compound, !__is_fundamental(T))
MS_TRAIT(is_void, __is_void(T))
MS_TRAIT(is_pointer, __is_pointer(T))
MS_TRAIT(is_reference, __is_reference(T))
MS_TRAIT(is_lvalue_reference, __is_lvalue_reference(T))
MS_TRAIT(is_rvalue_reference, __is_rvalue_reference(T))
MS_TRAIT(is_const, __is_const(T))
MS_TRAIT(is_volatile, __is_volatile(T))
MS_TRAIT(is_array, __is_array(T))
MS_TRAIT(is_enum, __is_enum(T))
MS_TRAIT(is_class, __is_class(T))
MS_TRAIT(is_union, __is_union(T))
MS_TRAIT(is_function, __is_function(T))
MS_TRAIT(is_object, __is_object(T))
MS_TRAIT(is_trivial, __is_trivial(T))
MS_TRAIT(is_trivially_copyable, __is_trivially_copyable(T))
MS_TRAIT(is_standard_layout, __is_standard_layout(T))
#undef MS_TRAIT
#undef MS_SCALAR
template <class A, class B> struct is_same : bool_constant<ms::equal<A, B>::value> {};
template <class A, class B> constexpr bool is_same_v = ms::equal<A, B>::value;
template <class A, class B> struct is_convertible : bool_constant<__is_convertible(A, B)> {};
template <class A, class B> constexpr bool is_convertible_v = __is_convertible(A, B);
template <class A, class B> struct is_base_of : bool_constant<__is_base_of(A, B)> {};
template <class A, class B> constexpr bool is_base_of_v = __is_base_of(A, B);
template <class T, class... A> struct is_constructible : bool_constant<__is_constructible(T, A...)> {};
template <class T, class... A> constexpr bool is_constructible_v = __is_constructible(T, A...);
template <class A, class B> struct is_assignable : bool_constant<__is_assignable(A, B)> {};
template <class T> struct alignment_of : integral_constant<size_t, alignof(T)> {};
template <class T> struct rank : integral_constant<size_t, __array_rank(T)> {};
template <class T, unsigned I = 0> struct extent : integral_constant<size_t, __array_extent(T, I)> {};
template <class... T> struct common_type;
template <class T> struct common_type<T> { typedef decay_t<T> type; };
template <class A, class B> struct common_type<A, B> { typedef decay_t<decltype(false ? declval<A>() : declval<B>())> type; };
template <class A, class B, class... R> struct common_type<A, B, R...> : common_type<typename common_type<A, B>::type, R...> {};
template <class... T> using common_type_t = typename common_type<T...>::type;
template <class F, class... A> struct result_of;
template <class F, class... A> struct result_of<F(A...)> { typedef decltype(declval<F>()(declval<A>()...)) type; };
template <class T> using result_of_t = typename result_of<T>::type;

template <class T> constexpr remove_reference_t<T>&& move(T&& value) noexcept { return static_cast<remove_reference_t<T>&&>(value); }
template <class T> constexpr T&& forward(remove_reference_t<T>& value) noexcept { return static_cast<T&&>(value); }
template <class T> constexpr void swap(T& a, T& b) { T old = a; a = b; b = old; }

template <class T> struct numeric_limits { static constexpr bool is_specialized = false; };
#define MS_INTEGER_LIMITS(T)                                                                         \
  template <> struct numeric_limits<T> {                                                             \
    static constexpr bool is_specialized = true, is_integer = true, is_exact = true, has_infinity = false, \
                          has_quiet_NaN = false, is_signed = T(-1) < T(0);                           \
    static constexpr int radix = 2, digits = int(8 * sizeof(T)) - int(is_signed), digits10 = digits * 3 / 10; \
    static constexpr T min() { return is_signed ? T(1ul << (8 * sizeof(T) - 1)) : T(0); }            \
    static constexpr T max() { return T(~min()); }                                                   \
    static constexpr T lowest() { return min(); }                                                    \
    static constexpr T epsilon() { return T(0); }                                                    \
    static constexpr T infinity() { return T(0); }                                                   \
    static constexpr T quiet_NaN() { return T(0); }                                                  \
  };
MS_FOR_INTEGERS(MS_INTEGER_LIMITS)
MS_INTEGER_LIMITS(ms_schar)
#undef MS_INTEGER_LIMITS
template <> struct numeric_limits<bool> {
  static constexpr bool is_specialized = true, is_integer = true, is_exact = true, has_infinity = false,
                        has_quiet_NaN = false, is_signed = false;
  static constexpr int radix = 2, digits = 1, digits10 = 0;
  static constexpr bool min() { return false; }
  static constexpr bool max() { return true; }
  static constexpr bool lowest() { return false; }
};
#define MS_FLOAT_LIMITS(T, DIGITS, DIGITS10, EMIN, EMAX, E10MIN, E10MAX, MIN, MAX, EPSILON, DENORM)  \
  template <> struct numeric_limits<T> {                                                             \
    static constexpr bool is_specialized = true, is_integer = false, is_exact = false, has_infinity = true, \
                          has_quiet_NaN = true, has_signaling_NaN = true, is_signed = true, is_iec559 = true; \
    static constexpr int radix = 2, digits = DIGITS, digits10 = DIGITS10, min_exponent = EMIN,       \
                         max_exponent = EMAX, min_exponent10 = E10MIN, max_exponent10 = E10MAX;      \
    static constexpr T min() { return T(MIN); }                                                      \
    static constexpr T max() { return T(MAX); }                                                      \
    static constexpr T lowest() { return T(-MAX); }                                                  \
    static constexpr T epsilon() { return T(EPSILON); }                                              \
    static constexpr T round_error() { return T(0.5f); }                                             \
    static constexpr T infinity() { return T(__builtin_inff()); }                                    \
    static constexpr T quiet_NaN() { return T(__builtin_nanf("")); }                                 \
    static constexpr T signaling_NaN() { return T(__builtin_nanf("")); }                             \
    static constexpr T denorm_min() { return T(DENORM); }                                            \
  };
MS_FLOAT_LIMITS(float, 24, 6, -125, 128, -37, 38, 0x1p-126f, 0x1.fffffep127f, 0x1p-23f, 0x1p-149f)
MS_FLOAT_LIMITS(half, 11, 3, -13, 16, -4, 4, 0x1p-14f, 0x1.ffcp15f, 0x1p-10f, 0x1p-24f)
MS_FLOAT_LIMITS(bfloat, 8, 2, -125, 128, -37, 38, 0x1p-126f, 0x1.fep127f, 0x1p-7f, 0x1p-133f)
#undef MS_FLOAT_LIMITS
template <class T> struct numeric_limits<const T> : numeric_limits<T> {};

template <class T, size_t N> struct array {
  T ms_elements[N];
  typedef T value_type;
  typedef size_t size_type;
  constexpr size_t size() const { return N; }
  constexpr bool empty() const { return N == 0; }
  constexpr T& operator[](size_t i) { return ms_elements[i]; }
  constexpr const T& operator[](size_t i) const { return ms_elements[i]; }
  constexpr T* data() { return ms_elements; }
  constexpr const T* data() const { return ms_elements; }
  constexpr T* begin() { return ms_elements; }
  constexpr const T* begin() const { return ms_elements; }
  constexpr T* end() { return ms_elements + N; }
  constexpr const T* end() const { return ms_elements + N; }
  constexpr void fill(T const& value) { for (size_t i = 0; i < N; ++i) ms_elements[i] = value; }
};

template <class T> using uniform = T;
template <class T> constexpr T make_uniform(T value) { return value; }

}  // namespace metal

// metal_logging: accepted and dropped.
namespace metal {
struct os_log {
  constexpr os_log() {}
  constexpr os_log(const char*, const char*) {}
  template <class... A> void log(const char*, A...) const {}
  template <class... A> void log_debug(const char*, A...) const {}
  template <class... A> void log_info(const char*, A...) const {}
  template <class... A> void log_error(const char*, A...) const {}
  template <class... A> void log_fault(const char*, A...) const {}
};
constexpr os_log os_log_default;
}  // namespace metal
