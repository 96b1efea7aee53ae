// metal_atomic: every operation goes to the runtime, which knows who else is there.
#pragma once
#include <ms/simd.h>

namespace metal {

enum memory_order { memory_order_relaxed, memory_order_acquire, memory_order_release, memory_order_acq_rel, memory_order_seq_cst };

// Only these have atomics in Metal; ulong has min and max alone. atomic_bool takes 4 bytes.
template <class T> struct atomic {
  static_assert(sizeof(T) == 0, "Metal has atomic<int>, <uint>, <float>, <bool> and <ulong> only");
};
template <> struct atomic<int> { int ms_value; };
template <> struct atomic<uint> { uint ms_value; };
template <> struct atomic<float> { float ms_value; };
template <> struct atomic<bool> { uint ms_value; };
template <> struct atomic<ulong> { ulong ms_value; };
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;
typedef atomic<ulong> atomic_ulong;

}  // namespace metal

namespace ms {

template <class T> struct atomic_kind;
template <> struct atomic_kind<int> { static constexpr ms_atomic_kind value = MS_INT; typedef int stored; };
template <> struct atomic_kind<uint> { static constexpr ms_atomic_kind value = MS_UINT; typedef uint stored; };
template <> struct atomic_kind<ulong> { static constexpr ms_atomic_kind value = MS_UINT; typedef ulong stored; };
template <> struct atomic_kind<float> { static constexpr ms_atomic_kind value = MS_FLOAT; typedef float stored; };
template <> struct atomic_kind<bool> { static constexpr ms_atomic_kind value = MS_BOOL; typedef uint stored; };

template <class T> inline T atomically(ms_atomic_op op, const volatile metal::atomic<T>* object, T operand, site at) {
  typedef typename atomic_kind<T>::stored S;
  S given = S(operand), old = S();
  ::ms_atomic(op, atomic_kind<T>::value, const_cast<metal::atomic<T>*>(object), sizeof(S), &given, nullptr, &old, of(at));
  return T(old);
}
template <class T> struct counts { static constexpr bool value = equal<T, int>::value || equal<T, uint>::value; };

}  // namespace ms

namespace metal {

#define MS_RELAXED(order) \
  __attribute__((diagnose_if(order != memory_order_relaxed, "Metal's atomic operations take memory_order_relaxed only", "error")))

template <class T>
inline void atomic_store_explicit(volatile atomic<T>* object, ms::same<T> desired, memory_order order, MS_HERE) MS_RELAXED(order) {
  ms::atomically<T>(MS_ATOMIC_STORE, object, desired, ms_at);
}
template <class T>
inline T atomic_load_explicit(const volatile atomic<T>* object, memory_order order, MS_HERE) MS_RELAXED(order) {
  return ms::atomically<T>(MS_ATOMIC_LOAD, object, T(), ms_at);
}
template <class T>
inline T atomic_exchange_explicit(volatile atomic<T>* object, ms::same<T> desired, memory_order order, MS_HERE) MS_RELAXED(order) {
  return ms::atomically<T>(MS_ATOMIC_EXCHANGE, object, desired, ms_at);
}
template <class T>
inline bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* object, T* expected, ms::same<T> desired, memory_order succ,
                                                  memory_order fail, MS_HERE) MS_RELAXED(succ) MS_RELAXED(fail) {
  typedef typename ms::atomic_kind<T>::stored S;
  S given = S(desired), wanted = S(*expected);
  int done = ::ms_atomic(MS_ATOMIC_CAS, ms::atomic_kind<T>::value, const_cast<atomic<T>*>(object), sizeof(S), &given, &wanted,
                         nullptr, ms::of(ms_at));
  *expected = T(wanted);
  return done != 0;
}
#define MS_FETCH(name, op, ...)                                                                                  \
  template <class T, class = ms::enable_t<(__VA_ARGS__)>>                                                        \
  inline T atomic_fetch_##name##_explicit(volatile atomic<T>* object, ms::same<T> operand, memory_order order,   \
                                          MS_HERE) MS_RELAXED(order) {                                           \
    return ms::atomically<T>(op, object, operand, ms_at);                                                        \
  }
MS_FETCH(add, MS_ATOMIC_ADD, ms::counts<T>::value || ms::equal<T, float>::value)
MS_FETCH(sub, MS_ATOMIC_SUB, ms::counts<T>::value || ms::equal<T, float>::value)
MS_FETCH(and, MS_ATOMIC_AND, ms::counts<T>::value)
MS_FETCH(or, MS_ATOMIC_OR, ms::counts<T>::value)
MS_FETCH(xor, MS_ATOMIC_XOR, ms::counts<T>::value)
MS_FETCH(min, MS_ATOMIC_MIN, ms::counts<T>::value)
MS_FETCH(max, MS_ATOMIC_MAX, ms::counts<T>::value)
#undef MS_FETCH
inline void atomic_min_explicit(volatile atomic<ulong>* object, ulong operand, memory_order order, MS_HERE) MS_RELAXED(order) {
  ms::atomically<ulong>(MS_ATOMIC_MIN, object, operand, ms_at);
}
inline void atomic_max_explicit(volatile atomic<ulong>* object, ulong operand, memory_order order, MS_HERE) MS_RELAXED(order) {
  ms::atomically<ulong>(MS_ATOMIC_MAX, object, operand, ms_at);
}
inline void atomic_thread_fence(mem_flags flags, memory_order, thread_scope = thread_scope_device, MS_HERE) {
  ms_atomic_fence(uint32_t(flags), ms::of(ms_at));
}

}  // namespace metal
