// Kernels written by hand against runtime/metalsim.h, each with a defect and a corrected twin. test_runtime.py compiles
// this file with and without instrumentation. RIGHT kernels end in "_ok".
#include "metalsim.h"

#include <string.h>

typedef float float4 __attribute__((ext_vector_type(4)));

#define SITE                                                             \
    ([](const char *function) -> const ms_site * {                       \
        static const ms_site site = {__FILE__, __LINE__, 1, "kernel"};   \
        (void)function;                                                  \
        return &site;                                                    \
    }(__func__))
#define KERNEL(name) extern "C" void name(void *const *buffers, const ms_thread *self)
#define TWINS(name)                                                      \
    template <bool RIGHT> static void name##_body(void *const *buffers, const ms_thread *self); \
    KERNEL(name) { name##_body<false>(buffers, self); }                  \
    KERNEL(name##_ok) { name##_body<true>(buffers, self); }              \
    template <bool RIGHT> static inline void name##_body(void *const *buffers, const ms_thread *self)

template <class T> static inline T *buffer(void *const *buffers, int i) { return static_cast<T *>(buffers[i]); }
template <class T> static inline T *variable(const void *key, const char *name, size_t count) {
    return static_cast<T *>(ms_group_variable(key, name, count * sizeof(T), alignof(T), SITE));
}
static const char TILE = 0, OTHER = 0;

static inline float sum(float mine) {
    float all[32];
    const uint32_t mask = ms_simd_exchange(&mine, sizeof mine, all, SITE);
    float total = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) total += all[lane];
    return total;
}

// ---- what works

KERNEL(add_one) {
    const uint32_t i = self->thread_position_in_grid.x;
    buffer<float>(buffers, 1)[i] = buffer<float>(buffers, 0)[i] + 1;
}

KERNEL(describe) {
    uint32_t *out = buffer<uint32_t>(buffers, 0);
    const ms_uint3 at = self->thread_position_in_grid, grid = self->threads_per_grid;
    const uint32_t i = (at.z * grid.y + at.y) * grid.x + at.x;
    const ms_thread copy = *ms_self();
    memcpy(out + i * (sizeof copy / 4), &copy, sizeof copy);
}

KERNEL(lane_sum) {
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = sum(float(self->thread_index_in_simdgroup));
}

static void add_up(void *slots, uint32_t present) {
    float *values = static_cast<float *>(slots), total = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (present >> lane & 1) total += values[lane];
    for (int lane = 0; lane < 32; ++lane) values[lane] = total + float(lane);
}
KERNEL(combined_sum) {
    float mine = float(self->thread_index_in_simdgroup);
    ms_simd_combine(&mine, sizeof mine, add_up, SITE);
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = mine;
}

KERNEL(quad_sum) {
    const uint32_t i = self->thread_position_in_grid.x;
    float mine = float(i), all[4], total = 0;
    const uint32_t mask = ms_quad_exchange(&mine, sizeof mine, all, SITE);
    for (int lane = 0; lane < 4; ++lane)
        if (mask >> lane & 1) total += all[lane];
    buffer<float>(buffers, 0)[i] = total;
}

KERNEL(wide_exchange) {
    const uint32_t i = self->thread_position_in_grid.x;
    float mine[16], all[32][16];
    for (int j = 0; j < 16; ++j) mine[j] = float(self->thread_index_in_simdgroup * 16 + j);
    ms_simd_exchange(mine, sizeof mine, all, SITE);
    buffer<float>(buffers, 0)[i] = all[31 - self->thread_index_in_simdgroup][5];
}

// Passes the sum of a ring of 40 rotations: barriers, exchanges and a value in threadgroup memory, mixed.
KERNEL(mixed) {
    float *tile = variable<float>(&TILE, "tile", 1024);
    const uint32_t i = self->thread_index_in_threadgroup, n = self->threads_per_threadgroup.x;
    float value = float(i);
    for (int round = 0; round < 40; ++round) {
        tile[i] = value;
        ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
        value = tile[(i + 1) % n];
        sum(value);
        ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    }
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = value;
}

// One entry for each event: the thread that came, in the order they came.
KERNEL(order_of_events) {
    uint32_t one = 1, at;
    for (int round = 0; round < 2; ++round) {
        ms_atomic(MS_ATOMIC_ADD, MS_UINT, buffer<uint32_t>(buffers, 0), 4, &one, nullptr, &at, SITE);
        buffer<uint32_t>(buffers, 1)[at] = self->thread_position_in_grid.x;
        sum(1);
    }
    ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    ms_atomic(MS_ATOMIC_ADD, MS_UINT, buffer<uint32_t>(buffers, 0), 4, &one, nullptr, &at, SITE);
    buffer<uint32_t>(buffers, 1)[at] = self->thread_position_in_grid.x;
}

KERNEL(atomics) {
    const ms_site *site = SITE;
    const int32_t i = int32_t(self->thread_position_in_grid.x), bit = 1 << (i % 32), all = ~bit;
    const float f = float(i);
    int32_t *out = buffer<int32_t>(buffers, 0);
    ms_atomic(MS_ATOMIC_ADD, MS_INT, out + 0, 4, &i, nullptr, nullptr, site);
    ms_atomic(MS_ATOMIC_SUB, MS_INT, out + 1, 4, &i, nullptr, nullptr, site);
    ms_atomic(MS_ATOMIC_MIN, MS_INT, out + 2, 4, &i, nullptr, nullptr, site);
    ms_atomic(MS_ATOMIC_MAX, MS_INT, out + 3, 4, &i, nullptr, nullptr, site);
    ms_atomic(MS_ATOMIC_OR, MS_UINT, out + 4, 4, &bit, nullptr, nullptr, site);
    ms_atomic(MS_ATOMIC_AND, MS_UINT, out + 5, 4, &all, nullptr, nullptr, site);
    ms_atomic(MS_ATOMIC_XOR, MS_UINT, out + 6, 4, &bit, nullptr, nullptr, site);
    ms_atomic(MS_ATOMIC_ADD, MS_FLOAT, out + 7, 4, &f, nullptr, nullptr, site);
    int32_t expected, old;
    ms_atomic(MS_ATOMIC_LOAD, MS_INT, out + 8, 4, nullptr, nullptr, &expected, site);
    for (;;) {
        const int32_t next = expected + 2;
        if (ms_atomic(MS_ATOMIC_CAS, MS_INT, out + 8, 4, &next, &expected, nullptr, site)) break;
    }
    const uint64_t wide = uint64_t(1) << 33;
    ms_atomic(MS_ATOMIC_ADD, MS_UINT, out + 10, 8, &wide, nullptr, nullptr, site);
    if (i == 0) {
        ms_atomic(MS_ATOMIC_STORE, MS_INT, out + 12, 4, &all, nullptr, nullptr, site);
        ms_atomic(MS_ATOMIC_EXCHANGE, MS_INT, out + 12, 4, &bit, nullptr, &old, site);
        ms_atomic(MS_ATOMIC_STORE, MS_INT, out + 13, 4, &old, nullptr, nullptr, site);
    }
}

// Thread 0 is let in last: the others poll until it has come.
KERNEL(polls_in_group) {
    uint32_t *flag = buffer<uint32_t>(buffers, 0), one = 1, seen = 0;
    const bool last = self->thread_index_in_threadgroup == self->threads_per_threadgroup.x - 1;
    if (last) ms_atomic(MS_ATOMIC_STORE, MS_UINT, flag, 4, &one, nullptr, nullptr, SITE);
    while (!seen) ms_atomic(MS_ATOMIC_LOAD, MS_UINT, flag, 4, nullptr, nullptr, &seen, SITE);
}

KERNEL(polls_for_ever) {
    uint32_t seen = 0;
    while (!seen) ms_atomic(MS_ATOMIC_LOAD, MS_UINT, buffer<uint32_t>(buffers, 0), 4, nullptr, nullptr, &seen, SITE);
}

KERNEL(divides_by_zero) {
    volatile int zero = 0;
    buffer<int>(buffers, 0)[self->thread_position_in_grid.x] = 7 / zero;
}

KERNEL(in_place) {
    const uint32_t i = self->thread_position_in_grid.x;
    buffer<float>(buffers, 1)[i] = buffer<float>(buffers, 0)[i] * 2;
}

// ---- what the counters count

KERNEL(counted) {
    float *tile = variable<float>(&TILE, "tile", 64);
    const uint32_t i = self->thread_index_in_threadgroup;
    tile[i] = buffer<float>(buffers, 0)[i] + *buffer<float>(buffers, 2);
    ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    ms_simdgroup_barrier(MS_MEM_NONE, SITE);
    sum(1);
    ms_count_mma();
    buffer<float>(buffers, 1)[i] = tile[i ^ 1];
}

// ---- races

TWINS(reversed) {
    float *tile = variable<float>(&TILE, "tile", 256);
    const uint32_t i = self->thread_index_in_threadgroup, n = self->threads_per_threadgroup.x;
    tile[i] = buffer<float>(buffers, 0)[self->thread_position_in_grid.x];
    if (RIGHT) ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    else sum(1);
    buffer<float>(buffers, 1)[self->thread_position_in_grid.x] = tile[n - 1 - i];
}

TWINS(wrong_flag) {
    float *tile = variable<float>(&TILE, "tile", 256);
    const uint32_t i = self->thread_index_in_threadgroup, n = self->threads_per_threadgroup.x;
    tile[i] = 1;
    ms_threadgroup_barrier(RIGHT ? MS_MEM_THREADGROUP : MS_MEM_DEVICE, SITE);
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = tile[n - 1 - i];
}

TWINS(device_exchange) {
    float *scratch = buffer<float>(buffers, 0) + self->threadgroup_position_in_grid.x * self->threads_per_threadgroup.x;
    const uint32_t i = self->thread_index_in_threadgroup, n = self->threads_per_threadgroup.x;
    scratch[i] = float(i);
    ms_threadgroup_barrier(RIGHT ? MS_MEM_DEVICE : MS_MEM_THREADGROUP, SITE);
    buffer<float>(buffers, 1)[self->thread_position_in_grid.x] = scratch[n - 1 - i];
}

TWINS(write_after_read) {
    float *tile = variable<float>(&TILE, "tile", 256);
    const uint32_t i = self->thread_index_in_threadgroup, n = self->threads_per_threadgroup.x;
    float total = 0;
    for (int round = 0; round < 4; ++round) {
        tile[i] = float(round);
        ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
        total += tile[(i + 33) % n];
        if (RIGHT) ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    }
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = total;
}

// A simdgroup barrier orders the threads of one simdgroup: the partner is in it or, wrongly, in the next.
TWINS(simdgroup_only) {
    float *tile = variable<float>(&TILE, "tile", 256);
    const uint32_t i = self->thread_index_in_threadgroup, n = self->threads_per_threadgroup.x;
    tile[i] = float(i);
    ms_simdgroup_barrier(MS_MEM_THREADGROUP, SITE);
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = tile[(RIGHT ? i ^ 1 : i + 32) % n];
}

// All threads read one element, then thread 0 writes it: the read that conflicts is one of many.
TWINS(one_writer) {
    float *tile = variable<float>(&TILE, "tile", 1);
    const uint32_t i = self->thread_index_in_threadgroup;
    if (i == 0) *tile = 3;
    ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = *tile;
    if (RIGHT) ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    else ms_simdgroup_barrier(MS_MEM_THREADGROUP, SITE);
    if (i == 0) *tile = 4;
}

// Written as 16-bit numbers, read as words: two threads' halves each.
TWINS(halves_of_words) {
    uint16_t *tile = variable<uint16_t>(&TILE, "tile", 128);
    const uint32_t i = self->thread_index_in_threadgroup;
    tile[2 * i] = 1;
    tile[2 * i + 1] = 2;
    if (RIGHT) ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    uint32_t word;
    memcpy(&word, tile + ((2 * i + 2) & 126), 4);
    buffer<uint32_t>(buffers, 0)[i] = word;
}

TWINS(words_read_as_halves) {
    uint32_t *tile = variable<uint32_t>(&TILE, "tile", 64);
    const uint32_t i = self->thread_index_in_threadgroup;
    tile[i] = i;
    if (RIGHT) ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    buffer<uint32_t>(buffers, 0)[i] = reinterpret_cast<volatile uint16_t *>(tile)[2 * ((i + 1) % 64)];
}

// Both threadgroups read one element; the second then writes it, long after its own threads have read.
TWINS(read_then_written_elsewhere) {
    const uint32_t group = self->threadgroup_position_in_grid.x;
    float *data = buffer<float>(buffers, 0) + (RIGHT ? group : 0);
    buffer<float>(buffers, 1)[self->thread_position_in_grid.x] = *data;
    ms_threadgroup_barrier(MS_MEM_DEVICE, SITE);
    if (group == 1 && self->thread_index_in_threadgroup == 0) *data = 1;
}

TWINS(groups_collide) {
    const uint32_t i = self->thread_position_in_grid.x, n = self->threads_per_threadgroup.x;
    buffer<float>(buffers, 0)[RIGHT ? i : i % n] = 1;
}

TWINS(reads_other_group) {
    const uint32_t i = self->thread_position_in_grid.x, n = self->threads_per_grid.x;
    float *data = buffer<float>(buffers, 0);
    if (RIGHT) buffer<float>(buffers, 1)[i] = data[i];
    else buffer<float>(buffers, 1)[i] = data[(i + self->threads_per_threadgroup.x) % n];
    data[i] = 0;
}

TWINS(atomic_and_plain) {
    uint32_t *count = buffer<uint32_t>(buffers, 0), one = 1;
    if (RIGHT || self->thread_position_in_grid.x != 5)
        ms_atomic(MS_ATOMIC_ADD, MS_UINT, count, 4, &one, nullptr, nullptr, SITE);
    else
        *count += 1;
}

TWINS(store_and_add) {
    uint32_t *count = variable<uint32_t>(&TILE, "count", 1), zero = 0, one = 1, seen;
    if (self->thread_index_in_threadgroup == 0)
        ms_atomic(MS_ATOMIC_STORE, MS_UINT, count, 4, &zero, nullptr, nullptr, SITE);
    if (RIGHT) ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    ms_atomic(MS_ATOMIC_ADD, MS_UINT, count, 4, &one, nullptr, nullptr, SITE);
    ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    ms_atomic(MS_ATOMIC_LOAD, MS_UINT, count, 4, nullptr, nullptr, &seen, SITE);
    buffer<uint32_t>(buffers, 0)[self->thread_position_in_grid.x] = seen;
}

// Every thread sets a flag: to the same value, or to its own number.
TWINS(stores_by_many) {
    const uint32_t value = RIGHT ? 1 : self->thread_position_in_grid.x;
    ms_atomic(MS_ATOMIC_STORE, MS_UINT, buffer<uint32_t>(buffers, 0), 4, &value, nullptr, nullptr, SITE);
}

TWINS(exchange_by_two) {
    uint32_t *word = buffer<uint32_t>(buffers, 0), value = self->thread_position_in_grid.x + 1, old;
    if (value > (RIGHT ? 1u : 2u)) return;
    ms_atomic(MS_ATOMIC_EXCHANGE, MS_UINT, word, 4, &value, nullptr, &old, SITE);
}

// The last threadgroup to come adds up what all have written: correct with fences around the counter.
TWINS(last_group_sums) {
    float *parts = buffer<float>(buffers, 0);
    uint32_t *done = variable<uint32_t>(&TILE, "done", 1), one = 1, before;
    const uint32_t group = self->threadgroup_position_in_grid.x, groups = self->threadgroups_per_grid.x;
    if (self->thread_index_in_threadgroup == 0) {
        parts[group] = float(group);
        if (RIGHT) ms_atomic_fence(MS_MEM_DEVICE, SITE);
        ms_atomic(MS_ATOMIC_ADD, MS_UINT, buffer<uint32_t>(buffers, 1), 4, &one, nullptr, &before, SITE);
        *done = before;
        if (RIGHT) ms_atomic_fence(MS_MEM_DEVICE, SITE);
    }
    ms_threadgroup_barrier(MS_MEM_DEVICE | MS_MEM_THREADGROUP, SITE);
    if (*done != groups - 1 || self->thread_index_in_threadgroup != 7) return;
    float total = 0;
    for (uint32_t i = 0; i < groups; ++i) total += parts[i];
    *buffer<float>(buffers, 2) = total;
}

// Each buffer is touched by words, then by halves of them; a word belongs to one thread throughout, but to another one
// in the next buffer.
KERNEL(ever_finer) {
    const uint32_t i = self->thread_position_in_grid.x, last = self->threads_per_grid.x - 1;
    for (int b = 0; b < 6; ++b) {
        volatile uint32_t *word = buffer<uint32_t>(buffers, b) + (b % 2 ? last - i : i);
        *word = i;
        *reinterpret_cast<volatile uint16_t *>(word) = 1;
    }
}

// ---- out of bounds, uninitialised, misaligned

TWINS(reads_past) {
    const uint32_t i = self->thread_position_in_grid.x;
    buffer<float>(buffers, 1)[i] = buffer<float>(buffers, 0)[RIGHT ? i : i + 1];
}

TWINS(writes_past) {
    const uint32_t i = self->thread_position_in_grid.x;
    buffer<float>(buffers, 0)[i] = 1;
    if (!RIGHT && i == 3) buffer<float>(buffers, 0)[self->threads_per_grid.x + 2] = 7;
}

TWINS(writes_before) {
    const uint32_t i = self->thread_position_in_grid.x;
    buffer<uint16_t>(buffers, 0)[i] = 1;
    if (!RIGHT && i == 0) buffer<uint16_t>(buffers, 0)[int(i) - 3] = 7;
}

// Far enough away to fault: only this thread ends.
TWINS(strays_far) {
    const uint32_t i = self->thread_position_in_grid.x;
    if (!RIGHT && i == 1) buffer<float>(buffers, 0)[int64_t(1) << 30] = 7;
    buffer<float>(buffers, 0)[i] = 1;
}

TWINS(null_pointer) {
    const uint32_t i = self->thread_position_in_grid.x;
    float *volatile nowhere = nullptr;
    if (!RIGHT && i == 1) *nowhere = 7;
    buffer<float>(buffers, 0)[i] = 1;
}

TWINS(tile_too_small) {
    float *tile = variable<float>(&TILE, "tile", RIGHT ? 64 : 63), *other = variable<float>(&OTHER, "other", 64);
    const uint32_t i = self->thread_index_in_threadgroup;
    other[i] = 2;
    tile[i] = 1;
    buffer<float>(buffers, 0)[i] = other[i];
}

TWINS(tile_negative) {
    float *other = variable<float>(&OTHER, "other", 64), *tile = variable<float>(&TILE, "tile", 64);
    const int i = int(self->thread_index_in_threadgroup);
    other[i] = 2;
    tile[RIGHT ? i : i - 1] = 1;
    buffer<float>(buffers, 0)[i] = other[i];
}

TWINS(tile_unwritten) {
    float *tile = variable<float>(&TILE, "tile", 64);
    const uint32_t i = self->thread_index_in_threadgroup;
    if (RIGHT || i != 9) tile[i] = 1;
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = tile[i];
}

// What another threadgroup left there does not count.
TWINS(tile_stale) {
    float *tile = variable<float>(&TILE, "tile", 64);
    const uint32_t i = self->thread_index_in_threadgroup;
    if (RIGHT || self->threadgroup_position_in_grid.x == 0) tile[i] = 1;
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = tile[i];
}

TWINS(output_read_first) {
    float *out = buffer<float>(buffers, 0) + self->thread_position_in_grid.x;
    if (RIGHT) *out = 1;
    else *out += 1;
}

TWINS(vector_misaligned) {
    const uint32_t i = self->thread_position_in_grid.x;
    const float *in = buffer<float>(buffers, 0) + (RIGHT ? 4 : 4 * (i == 2) + 2) * 1;
    const float4 value = *reinterpret_cast<const float4 *>(in);
    buffer<float4>(buffers, 1)[i] = value;
}

TWINS(word_misaligned) {
    const uint32_t i = self->thread_position_in_grid.x;
    const char *in = buffer<char>(buffers, 0) + i * 4 + (RIGHT ? 0 : 2);
    buffer<float>(buffers, 1)[i] = *reinterpret_cast<const float *>(in);
}

TWINS(long_misaligned) {  // at multiples of four, which is enough for half of it
    const uint32_t i = self->thread_position_in_grid.x;
    const char *in = buffer<char>(buffers, 0) + i * 8 + (RIGHT ? 0 : 4);
    buffer<int64_t>(buffers, 1)[i] = *reinterpret_cast<const int64_t *>(in);
}

struct Row { float values[16]; };
TWINS(struct_copy) {
    const uint32_t i = self->thread_position_in_grid.x;
    buffer<Row>(buffers, 1)[i] = buffer<Row>(buffers, 0)[RIGHT ? i : i + 1];
}

// ---- outputs, constants, limits

TWINS(one_missing) {
    const uint32_t i = self->thread_position_in_grid.x;
    if (RIGHT || (i != 6 && i != 9)) buffer<float>(buffers, 0)[i] = 1;
}

TWINS(one_twice) {
    const uint32_t i = self->thread_position_in_grid.x;
    volatile float *out = buffer<float>(buffers, 0);
    out[i] = 1;
    if (!RIGHT && i == 5) out[i] = 2;
}

TWINS(writes_constant) {
    volatile float *parameters = buffer<float>(buffers, 1);
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = parameters[0];
    if (!RIGHT && self->thread_position_in_grid.x == 0) parameters[0] = 2;
}

TWINS(too_much_memory) {
    char *tile = variable<char>(&TILE, "tile", 32768 - 64), *other = variable<char>(&OTHER, "other", RIGHT ? 64 : 65);
    const uint32_t i = self->thread_index_in_threadgroup;
    tile[i] = other[i] = 1;
}

__attribute__((noinline)) static int deep(int n) {
    volatile char frame[512];
    memset(const_cast<char *>(frame), n, sizeof frame);
    const int below = n > 0 ? deep(n - 1) : 0;
    return below + frame[n % 512];
}
TWINS(deep_calls) {
    const uint32_t i = self->thread_position_in_grid.x;
    buffer<int>(buffers, 0)[i] = deep(!RIGHT && i == 3 ? 4000 : 10) != -1;
}

// ---- divergence

TWINS(branches_differ) {
    const bool left = self->thread_index_in_threadgroup < 40;
    if (RIGHT) {
        ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    } else if (left) {
        ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    } else {
        ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    }
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = 1;
}

TWINS(returns_early) {
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = 1;
    if (!RIGHT && self->thread_index_in_threadgroup == 17) return;
    ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
}

TWINS(trips_differ) {
    const int trips = RIGHT ? 3 : 2 + int(self->thread_index_in_threadgroup & 1);
    for (int trip = 0; trip < trips; ++trip) ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = 1;
    ms_threadgroup_barrier(MS_MEM_THREADGROUP, SITE);
}

TWINS(simd_branches) {
    const bool left = self->thread_index_in_simdgroup < 16;
    float value;
    if (RIGHT) value = sum(1);
    else if (left) value = sum(1);
    else { ms_simdgroup_barrier(MS_MEM_NONE, SITE); value = 32; }
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = value;
}

KERNEL(some_lanes_sum) {
    float value = 0;
    if (self->thread_index_in_simdgroup < 8) value = sum(1);
    ms_threadgroup_barrier(MS_MEM_NONE, SITE);
    buffer<float>(buffers, 0)[self->thread_position_in_grid.x] = value;
}

TWINS(reads_absent_lane) {
    const uint32_t i = self->thread_position_in_grid.x, lane = self->thread_index_in_simdgroup;
    float mine = 1, all[32];
    const uint32_t mask = ms_simd_exchange(&mine, 4, all, SITE), partner = RIGHT ? lane ^ 1 : lane + 1;
    if (!(mask >> partner & 1)) ms_absent_lane(partner, SITE);
    buffer<float>(buffers, 0)[i] = all[partner];
}
