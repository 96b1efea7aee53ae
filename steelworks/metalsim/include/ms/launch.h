// From a bound dispatch to the call of a kernel: which argument comes from where.
#pragma once
#include <ms/vector.h>

namespace ms {

// The roles of kernel parameters. Values below 100 are buffer indices.
enum role : int {
  role_thread_position_in_grid = 100,
  role_thread_position_in_threadgroup,
  role_threadgroup_position_in_grid,
  role_threads_per_grid,
  role_threadgroups_per_grid,
  role_threads_per_threadgroup,
  role_dispatch_threads_per_threadgroup,
  role_thread_index_in_threadgroup,
  role_thread_index_in_simdgroup,
  role_simdgroup_index_in_threadgroup,
  role_simdgroups_per_threadgroup,
  role_dispatch_simdgroups_per_threadgroup,
  role_threads_per_simdgroup,
  role_thread_index_in_quadgroup,
  role_quadgroup_index_in_threadgroup,
  role_quadgroups_per_threadgroup
};

template <class T> struct is_index { static constexpr bool value = equal<T, uint>::value || equal<T, ushort>::value; };

// What a parameter of type P with this role is given.
template <int Role, class P> struct argument {
  static_assert(Role >= 100, "a kernel argument in a buffer must be a pointer or a reference");
};
template <int Role, class T> struct argument<Role, T*> {
  static_assert(Role < 100, "a thread position or index must be ushort, uint or a vector of them");
  static T* get(void* const* buffers, const ms_thread*) { return static_cast<T*>(buffers[Role]); }
};
template <int Role, class T> struct argument<Role, T&> {
  static_assert(Role < 100, "a thread position or index must be ushort, uint or a vector of them");
  // An address that does not suit T is told where the kernel uses it.
  __attribute__((no_sanitize("alignment"))) static T& get(void* const* buffers, const ms_thread*) {
    return *static_cast<T*>(buffers[Role]);
  }
};

template <class P> struct position {
  static_assert(is_index<P>::value, "a thread position must be ushort, uint or a vector of them");
  static P from(ms_uint3 p) { return static_cast<P>(p.x); }
};
template <class T> struct position<vec<T, 2>> {
  static_assert(is_index<T>::value, "a thread position must be ushort, uint or a vector of them");
  static vec<T, 2> from(ms_uint3 p) { return vec<T, 2>(T(p.x), T(p.y)); }
};
template <class T> struct position<vec<T, 3>> {
  static_assert(is_index<T>::value, "a thread position must be ushort, uint or a vector of them");
  static vec<T, 3> from(ms_uint3 p) { return vec<T, 3>(T(p.x), T(p.y), T(p.z)); }
};
template <class P> struct index_in {
  static_assert(is_index<P>::value, "a thread index must be ushort or uint");
  static P from(uint32_t i) { return static_cast<P>(i); }
};
template <class P> struct unqualified { typedef P type; };
template <class P> struct unqualified<const P> { typedef P type; };

#define MS_ARGUMENT(name, kind)                                              \
  template <class P> struct argument<role_##name, P> {                       \
    static P get(void* const*, const ms_thread* self) {                      \
      return kind<typename unqualified<P>::type>::from(self->name);          \
    }                                                                        \
  };                                                                         \
  template <class T> struct argument<role_##name, T*> {                      \
    static_assert(sizeof(T) == 0, "a thread position or index is a value, not a pointer"); \
  };
MS_ARGUMENT(thread_position_in_grid, position)
MS_ARGUMENT(thread_position_in_threadgroup, position)
MS_ARGUMENT(threadgroup_position_in_grid, position)
MS_ARGUMENT(threads_per_grid, position)
MS_ARGUMENT(threadgroups_per_grid, position)
MS_ARGUMENT(threads_per_threadgroup, position)
MS_ARGUMENT(dispatch_threads_per_threadgroup, position)
MS_ARGUMENT(thread_index_in_threadgroup, index_in)
MS_ARGUMENT(thread_index_in_simdgroup, index_in)
MS_ARGUMENT(simdgroup_index_in_threadgroup, index_in)
MS_ARGUMENT(simdgroups_per_threadgroup, index_in)
MS_ARGUMENT(dispatch_simdgroups_per_threadgroup, index_in)
MS_ARGUMENT(threads_per_simdgroup, index_in)
MS_ARGUMENT(thread_index_in_quadgroup, index_in)
MS_ARGUMENT(quadgroup_index_in_threadgroup, index_in)
MS_ARGUMENT(quadgroups_per_threadgroup, index_in)
#undef MS_ARGUMENT

template <int... Roles> struct roles {};

template <int... Roles, class... P>
inline __attribute__((always_inline)) void launch(roles<Roles...>, void (*kernel)(P...), void* const* buffers,
                                                  const ms_thread* self) {
  static_assert(sizeof...(Roles) == sizeof...(P), "");
  kernel(argument<Roles, P>::get(buffers, self)...);
}

// A threadgroup variable: `key` is an object of the declaring function instance.
template <class T> inline T& group_variable(const unsigned& key, const char* name, unsigned align, MS_HERE) {
  return *static_cast<T*>(::ms_group_variable(&key, name, sizeof(T), align, of(ms_at)));
}
template <class T> struct alignment { static constexpr unsigned value = alignof(T); };

}  // namespace ms
