// Atomics. Threadgroups run on several OS threads, so these are the processor's own; all orders are relaxed in Metal.
#include <string.h>

#include "checker.h"
#include "state.h"

namespace metalsim {
namespace {

template <class T>
T changed(ms_atomic_op op, T old, T operand) {
    switch (op) {
    case MS_ATOMIC_ADD: return static_cast<T>(old + operand);
    case MS_ATOMIC_SUB: return static_cast<T>(old - operand);
    case MS_ATOMIC_MIN: return operand < old ? operand : old;
    case MS_ATOMIC_MAX: return old < operand ? operand : old;
    default: return operand;
    }
}

template <class Bits>
Bits bitwise(ms_atomic_op op, Bits old, Bits operand) {
    switch (op) {
    case MS_ATOMIC_AND: return old & operand;
    case MS_ATOMIC_OR: return old | operand;
    case MS_ATOMIC_XOR: return old ^ operand;
    default: return operand;
    }
}

template <class Bits, class T>
Bits changed_bits(ms_atomic_op op, Bits old, Bits operand) {
    if (op == MS_ATOMIC_AND || op == MS_ATOMIC_OR || op == MS_ATOMIC_XOR) return bitwise(op, old, operand);
    T a, b;
    memcpy(&a, &old, sizeof a);
    memcpy(&b, &operand, sizeof b);
    a = changed(op, a, b);
    memcpy(&old, &a, sizeof a);
    return old;
}

// Integers of `bytes`, or float if kind says so.
template <class Bits, class Signed, class Float>
int apply(ms_atomic_op op, ms_atomic_kind kind, void *address, const void *operand, void *expected, void *old) {
    Bits *at = static_cast<Bits *>(address);
    Bits value = 0, before = 0;
    if (operand) memcpy(&value, operand, sizeof value);
    int result = 1;
    switch (op) {
    case MS_ATOMIC_LOAD: before = __atomic_load_n(at, __ATOMIC_RELAXED); break;
    case MS_ATOMIC_STORE: __atomic_store_n(at, value, __ATOMIC_RELAXED); break;
    case MS_ATOMIC_EXCHANGE: before = __atomic_exchange_n(at, value, __ATOMIC_RELAXED); break;
    case MS_ATOMIC_CAS:
        memcpy(&before, expected, sizeof before);
        result = __atomic_compare_exchange_n(at, &before, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
        memcpy(expected, &before, sizeof before);
        break;
    default:
        before = __atomic_load_n(at, __ATOMIC_RELAXED);
        for (;;) {
            const Bits after = kind == MS_FLOAT  ? changed_bits<Bits, Float>(op, before, value)
                               : kind == MS_INT ? changed_bits<Bits, Signed>(op, before, value)
                                                : changed_bits<Bits, Bits>(op, before, value);
            if (__atomic_compare_exchange_n(at, &before, after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) break;
        }
    }
    if (old) memcpy(old, &before, sizeof before);
    return result;
}

uint32_t flags_of(ms_atomic_op op) {
    switch (op) {
    case MS_ATOMIC_LOAD: return READ | ATOMIC;
    case MS_ATOMIC_STORE: return WRITE | ATOMIC | OVERWRITES;
    case MS_ATOMIC_EXCHANGE: return READ | WRITE | ATOMIC | OVERWRITES;
    default: return READ | WRITE | ATOMIC;
    }
}

}  // namespace

int atomic_access(ms_atomic_op op, ms_atomic_kind kind, void *address, uint32_t bytes, const void *operand,
                  void *expected, void *old, const ms_site *site, const void *pc) {
    Worker *worker = t_worker;
    const bool checked = worker && worker->checker;
    if (worker) {
        worker->current->site = site;
        ++worker->counters.atomics;
    }
    if (checked) {
        uint32_t flags = flags_of(op) | (site ? AT_SITE : 0u);
        const bool readable = worker->checker->readable(address, bytes);
        if (op == MS_ATOMIC_STORE && readable && memcmp(address, operand, bytes) == 0) flags |= SAME_VALUE;
        if (!worker->checker->access(address, bytes, flags, site ? static_cast<const void *>(site) : pc)) {
            if (old) memset(old, 0, bytes);
            return op != MS_ATOMIC_CAS;
        }
    }
    if (checked) {
        const bool writes = op != MS_ATOMIC_LOAD, reads = op != MS_ATOMIC_STORE;
        worker->checker->ordering().atomic(*worker, address, reads, writes, op == MS_ATOMIC_STORE);
    }
    if (worker) worker->touching_user_memory = true;
    int result;
    switch (bytes) {
    case 1: result = apply<uint8_t, int8_t, int8_t>(op, kind, address, operand, expected, old); break;
    case 2: result = apply<uint16_t, int16_t, int16_t>(op, kind, address, operand, expected, old); break;
    case 8: result = apply<uint64_t, int64_t, double>(op, kind, address, operand, expected, old); break;
    default: result = apply<uint32_t, int32_t, float>(op, kind, address, operand, expected, old); break;
    }
    if (!worker) return result;
    worker->touching_user_memory = false;
    // A load, a failed exchange and a lock that stays taken are what a waiting thread does.
    if (op == MS_ATOMIC_LOAD || (op == MS_ATOMIC_CAS && !result) ||
        (op == MS_ATOMIC_EXCHANGE && old && memcmp(old, operand, bytes) == 0)) {
        polled(*worker);
    } else {
        worker->current->spins = 0;
        worker->group.polls = 0;
    }
    return result;
}

}  // namespace metalsim

extern "C" int ms_atomic(enum ms_atomic_op op, enum ms_atomic_kind kind, void *address, uint32_t bytes,
                         const void *operand, void *expected, void *old, const ms_site *site) {
    return metalsim::atomic_access(op, kind, address, bytes, operand, expected, old, site, nullptr);
}

extern "C" void ms_atomic_fence(uint32_t fence, const ms_site *site) {
    (void)site;
    metalsim::Worker *worker = metalsim::t_worker;
    if (worker && worker->checker) worker->checker->ordering().fence(*worker, fence);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
