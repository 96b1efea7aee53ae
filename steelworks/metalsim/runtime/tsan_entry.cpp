// The entry points that -fsanitize=thread calls, in place of those of libtsan. Each call comes before the access.
// Compile kernels with -mllvm -tsan-instrument-read-before-write=1, else the read in `x += 1` is not seen.
#include <string.h>

#include "checker.h"
#include "state.h"

using namespace metalsim;

namespace {

// A fiber that has less than this left has no room for the calls of the runtime.
constexpr size_t LEAST_STACK_LEFT = 6 * 1024;

inline void check(const void *address, uint64_t bytes, uint32_t flags, const void *pc) {
    Worker *worker = t_worker;
    if (!worker || !worker->checker) return;
    worker->checker->access(address, bytes, flags, pc);
}

// Large pieces that would fault are not copied; the finding is there.
inline bool may(const void *address, uint64_t bytes, uint32_t flags, const void *pc) {
    Worker *worker = t_worker;
    if (!worker || !worker->checker) return true;
    return worker->checker->access(address, bytes, flags | ANY_ALIGNMENT | RANGE, pc);
}

template <class T>
int atomic(ms_atomic_op op, ms_atomic_kind kind, volatile void *address, T operand, T *expected, T *old, void *pc) {
    return atomic_access(op, kind, const_cast<void *>(address), sizeof(T), &operand, expected, old, nullptr, pc);
}

}  // namespace

#define PC __builtin_return_address(0)

extern "C" {

void __tsan_init(void) {}
void __tsan_func_exit(void) {}
void __tsan_ignore_thread_begin(void) {}
void __tsan_ignore_thread_end(void) {}

void __tsan_func_entry(void *) {
    Worker *worker = t_worker;
    if (!worker || !worker->current->stack) return;
    const Stack &stack = *worker->current->stack;
    if (static_cast<char *>(__builtin_frame_address(0)) >= stack.low + LEAST_STACK_LEFT) return;
    worker->fault = {reinterpret_cast<uint64_t>(PC), 0, true, 0};
    void *discarded;
    metalsim_switch(&discarded, prepare_stack(stack, abort_current));
}

#define ACCESS(size)                                                                                             \
    void __tsan_read##size(void *p) { check(p, size, READ, PC); }                                                \
    void __tsan_write##size(void *p) { check(p, size, WRITE, PC); }                                              \
    void __tsan_read_write##size(void *p) { check(p, size, READ | WRITE, PC); }                                  \
    void __tsan_volatile_read##size(void *p) { check(p, size, READ, PC); }                                       \
    void __tsan_volatile_write##size(void *p) { check(p, size, WRITE, PC); }                                     \
    void __tsan_unaligned_read##size(void *p) { check(p, size, READ | ANY_ALIGNMENT, PC); }                      \
    void __tsan_unaligned_write##size(void *p) { check(p, size, WRITE | ANY_ALIGNMENT, PC); }                    \
    void __tsan_unaligned_read_write##size(void *p) { check(p, size, READ | WRITE | ANY_ALIGNMENT, PC); }        \
    void __tsan_unaligned_volatile_read##size(void *p) { check(p, size, READ | ANY_ALIGNMENT, PC); }             \
    void __tsan_unaligned_volatile_write##size(void *p) { check(p, size, WRITE | ANY_ALIGNMENT, PC); }

ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

void __tsan_read_range(void *p, unsigned long bytes) { check(p, bytes, READ | ANY_ALIGNMENT | RANGE, PC); }
void __tsan_write_range(void *p, unsigned long bytes) { check(p, bytes, WRITE | ANY_ALIGNMENT | RANGE, PC); }
void __tsan_vptr_read(void **p) { check(p, sizeof *p, READ, PC); }
void __tsan_vptr_update(void **p, void *) { check(p, sizeof *p, WRITE, PC); }

void *__tsan_memcpy(void *to, const void *from, size_t bytes) {
    const bool reads = may(from, bytes, READ, PC), writes = may(to, bytes, WRITE, PC);
    return reads && writes ? memmove(to, from, bytes) : to;
}

void *__tsan_memmove(void *to, const void *from, size_t bytes) {
    const bool reads = may(from, bytes, READ, PC), writes = may(to, bytes, WRITE, PC);
    return reads && writes ? memmove(to, from, bytes) : to;
}

void *__tsan_memset(void *to, int value, size_t bytes) {
    return may(to, bytes, WRITE, PC) ? memset(to, value, bytes) : to;
}

void __tsan_atomic_thread_fence(int) {}
void __tsan_atomic_signal_fence(int) {}

#define ATOMICS(bits, T)                                                                                         \
    T __tsan_atomic##bits##_load(const volatile T *a, int) {                                                     \
        T old;                                                                                                   \
        atomic<T>(MS_ATOMIC_LOAD, MS_UINT, const_cast<T *>(a), 0, nullptr, &old, PC);                            \
        return old;                                                                                              \
    }                                                                                                            \
    void __tsan_atomic##bits##_store(volatile T *a, T v, int) {                                                  \
        atomic<T>(MS_ATOMIC_STORE, MS_UINT, a, v, nullptr, nullptr, PC);                                         \
    }                                                                                                            \
    T __tsan_atomic##bits##_exchange(volatile T *a, T v, int) {                                                  \
        T old;                                                                                                   \
        atomic<T>(MS_ATOMIC_EXCHANGE, MS_UINT, a, v, nullptr, &old, PC);                                         \
        return old;                                                                                              \
    }                                                                                                            \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile T *a, T *c, T v, int, int) {                      \
        return atomic<T>(MS_ATOMIC_CAS, MS_UINT, a, v, c, nullptr, PC);                                          \
    }                                                                                                            \
    int __tsan_atomic##bits##_compare_exchange_weak(volatile T *a, T *c, T v, int, int) {                        \
        return atomic<T>(MS_ATOMIC_CAS, MS_UINT, a, v, c, nullptr, PC);                                          \
    }                                                                                                            \
    T __tsan_atomic##bits##_compare_exchange_val(volatile T *a, T c, T v, int, int) {                            \
        atomic<T>(MS_ATOMIC_CAS, MS_UINT, a, v, &c, nullptr, PC);                                                \
        return c;                                                                                                \
    }

#define FETCH(bits, T, name, op)                                                                                 \
    T __tsan_atomic##bits##_fetch_##name(volatile T *a, T v, int) {                                              \
        T old;                                                                                                   \
        atomic<T>(op, MS_UINT, a, v, nullptr, &old, PC);                                                         \
        return old;                                                                                              \
    }

#define ALL_ATOMICS(bits, T)                                                                                     \
    ATOMICS(bits, T)                                                                                             \
    FETCH(bits, T, add, MS_ATOMIC_ADD)                                                                           \
    FETCH(bits, T, sub, MS_ATOMIC_SUB)                                                                           \
    FETCH(bits, T, and, MS_ATOMIC_AND)                                                                           \
    FETCH(bits, T, or, MS_ATOMIC_OR)                                                                             \
    FETCH(bits, T, xor, MS_ATOMIC_XOR)

ALL_ATOMICS(8, uint8_t)
ALL_ATOMICS(16, uint16_t)
ALL_ATOMICS(32, uint32_t)
ALL_ATOMICS(64, uint64_t)

}  // extern "C"
