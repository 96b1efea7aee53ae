// Which threadgroup comes next, its threads, and the orders in which its simdgroups and lanes run.
#include <algorithm>

#include "state.h"

namespace metalsim {
namespace {

uint64_t random64(uint64_t &state) {  // splitmix64
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

void fill_order(uint8_t *order, uint32_t count, uint32_t kind, uint64_t &random) {
    for (uint32_t i = 0; i < count; ++i) order[i] = static_cast<uint8_t>(kind == MS_REVERSE ? count - 1 - i : i);
    if (kind != MS_SHUFFLED) return;
    for (uint32_t i = count; i > 1; --i) std::swap(order[i - 1], order[random64(random) % i]);
}

// A permutation of 0..count-1 without a table: a Feistel network over the next even number of bits, walked until the
// value falls into the range.
uint64_t shuffled_number(uint64_t value, uint64_t count, uint64_t seed) {
    uint32_t half = 1;
    while ((uint64_t(1) << (2 * half)) < count) ++half;
    const uint64_t mask = (uint64_t(1) << half) - 1;
    do {
        uint64_t left = value >> half, right = value & mask;
        for (uint64_t round = 0; round < 4; ++round) {
            uint64_t state = seed + round * 0x632BE59BD9B4E019u + right;
            const uint64_t next = left ^ (random64(state) & mask);
            left = right;
            right = next;
        }
        value = left << half | right;
    } while (value >= count);
    return value;
}

uint64_t number_in_order(const Run &run, uint64_t step) {
    if (run.dispatch->order == MS_REVERSE) return run.group_count - 1 - step;
    if (run.dispatch->order == MS_SHUFFLED) return shuffled_number(step, run.group_count, run.dispatch->seed);
    return step;
}

void start_group(Worker &w, uint64_t step) {
    const Run &run = *w.run;
    const ms_dispatch &dispatch = *run.dispatch;
    const Place place = place_of_group(run, step);
    const ms_uint3 shape = place.shape;
    Group &g = w.group;
    const bool reshaped = shape.x != w.shape.x || shape.y != w.shape.y || shape.z != w.shape.z;
    if (reshaped) {
        w.shape = shape;
        g.threads = shape.x * shape.y * shape.z;
        g.simds = (g.threads + MS_SIMD_WIDTH - 1) / MS_SIMD_WIDTH;
        uint32_t i = 0;
        for (uint32_t z = 0; z < shape.z; ++z)
            for (uint32_t y = 0; y < shape.y; ++y)
                for (uint32_t x = 0; x < shape.x; ++x) w.places[i++] = {x, y, z};
        ms_thread &c = w.common;
        c.threads_per_grid = dispatch.threads;
        c.threadgroups_per_grid = run.groups;
        c.threads_per_threadgroup = shape;
        c.dispatch_threads_per_threadgroup = dispatch.group;
        c.simdgroups_per_threadgroup = g.simds;
        c.dispatch_simdgroups_per_threadgroup =
            (dispatch.group.x * dispatch.group.y * dispatch.group.z + MS_SIMD_WIDTH - 1) / MS_SIMD_WIDTH;
        c.threads_per_simdgroup = MS_SIMD_WIDTH;
        c.quadgroups_per_threadgroup = (g.threads + 3) / 4;
    }
    w.common.threadgroup_position_in_grid = place.position;
    w.common.thread_position_in_grid = place.origin;  // the thread's own place is added when it starts
    ++g.serial;
    g.position = place.position;
    g.live = g.threads;
    g.returned = 0;
    g.barrier_site = nullptr;
    g.barrier_mixed = g.diverged = false;
    g.epoch[DEVICE] = g.epoch[GROUP] = 0;
    g.polls = 0;
    const bool reorder = reshaped || dispatch.order == MS_SHUFFLED;
    if (dispatch.order == MS_SHUFFLED) w.random = dispatch.seed * 0x9E3779B97F4A7C15u + place.number;
    if (reorder) fill_order(w.simd_order, g.simds, dispatch.order, w.random);
    for (uint32_t i = 0; i < g.simds; ++i) {
        Simd &s = w.simds[i];
        const uint32_t lanes = std::min<uint32_t>(MS_SIMD_WIDTH, g.threads - i * MS_SIMD_WIDTH);
        s.present = lanes == 32 ? 0xFFFFFFFFu : (1u << lanes) - 1;
        s.ready = s.present;
        s.turn = s.spinning = s.ended = s.aborted = 0;
        s.at_barrier = s.at_simd_barrier = s.at_exchange = s.at_quad = 0;
        s.mixed = s.diverged = false;
        s.order_at = 0;
        s.site = nullptr;
        s.epoch[DEVICE] = s.epoch[GROUP] = 0;
        if (reorder && w.order == MS_SHUFFLED) fill_order(s.order, MS_SIMD_WIDTH, MS_SHUFFLED, w.random);
    }
    w.simd_at = 0;
    w.simd = &w.simds[w.simd_order[0]];
    w.simd->turn = w.simd->ready;
    w.memory.start_group();
    w.counters.groups += 1;
    w.counters.threads += g.threads;
}

}  // namespace

Place place_of_group(const Run &run, uint64_t step) {
    const ms_dispatch &d = *run.dispatch;
    Place place;
    place.number = number_in_order(run, step);
    const ms_uint3 at = {static_cast<uint32_t>(place.number % run.groups.x),
                         static_cast<uint32_t>(place.number / run.groups.x % run.groups.y),
                         static_cast<uint32_t>(place.number / run.groups.x / run.groups.y)};
    place.position = at;
    place.origin = {at.x * d.group.x, at.y * d.group.y, at.z * d.group.z};
    place.shape = {std::min(d.group.x, d.threads.x - place.origin.x), std::min(d.group.y, d.threads.y - place.origin.y),
                   std::min(d.group.z, d.threads.z - place.origin.z)};
    return place;
}

bool start_next_group(Worker &w) {
    Run &run = *w.run;
    if (run.stop.load(std::memory_order_relaxed)) return false;
    if (w.next_group == w.end_group) {
        w.next_group = run.next_group.fetch_add(run.chunk, std::memory_order_relaxed);
        if (w.next_group >= run.group_count) {
            w.end_group = w.next_group;
            return false;
        }
        w.end_group = std::min(run.group_count, w.next_group + run.chunk);
    }
    start_group(w, w.next_group++);
    return true;
}

void reshuffle(Worker &w) {
    const uint8_t here = w.simd_order[w.simd_at];
    fill_order(w.simd_order, w.group.simds, MS_SHUFFLED, w.random);
    for (uint32_t i = 0; i < w.group.simds; ++i) {
        if (w.simd_order[i] == here) w.simd_at = i;
        Simd &s = w.simds[i];
        fill_order(s.order, MS_SIMD_WIDTH, MS_SHUFFLED, w.random);
    }
}

}  // namespace metalsim
