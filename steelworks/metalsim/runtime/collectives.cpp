// Barriers and exchanges. A thread that arrives notes where it is and waits; a rendezvous is settled when every live
// thread of the simdgroup (or group) waits, so a divergent one is always noticed and never hangs.
#include <string.h>

#include "checker.h"
#include "state.h"

namespace metalsim {
namespace {

void arrive(Simd &s, const Fiber &f) {
    const uint32_t waiting = s.at_simd_barrier | s.at_exchange | s.at_quad;
    if (!waiting) {
        s.site = f.site;
        s.mixed = false;
    } else if (s.site != f.site) {
        s.mixed = true;
    }
}

uint32_t first_of(const Worker &w, const Simd &s) {
    return static_cast<uint32_t>(&s - w.simds) * MS_SIMD_WIDTH;
}

// ms_simd_combine: one call does the work of all lanes.
void combine(Fiber *fibers, uint32_t taking_part, char *values) {
    const uint32_t bytes = fibers[lowest(taking_part)].bytes;
    for (uint32_t rest = taking_part; rest; rest &= rest - 1)
        memcpy(values + bytes * lowest(rest), fibers[lowest(rest)].mine, bytes);
    fibers[lowest(taking_part)].combine(values, taking_part);
    for (uint32_t rest = taking_part; rest; rest &= rest - 1) {
        Fiber &f = fibers[lowest(rest)];
        memcpy(const_cast<void *>(f.mine), values + bytes * lowest(rest), bytes);
        f.taking_part = taking_part;
    }
}

// Gives every lane of `mask` the values of all lanes of `mask`. Slot i of `all` belongs to lane base + i.
void exchange(Worker &w, const Simd &s, uint32_t mask, uint32_t base, uint32_t slots) {
    Fiber *fibers = w.fibers + first_of(w, s) + base;
    const uint32_t taking_part = mask >> base;
    const uint32_t bytes = fibers[lowest(taking_part)].bytes;
    alignas(16) char values[MS_SIMD_WIDTH * 64];
    const uint32_t full = slots == 32 ? 0xFFFFFFFFu : (1u << slots) - 1;
    if (taking_part != full) memset(values, 0xFF, slots * bytes);
    if (fibers[lowest(taking_part)].combines) {
        combine(fibers, taking_part, values);
        ++w.counters.simd_exchanges;
        return;
    }
    if (bytes == 4) {
        for (uint32_t rest = taking_part; rest; rest &= rest - 1)
            memcpy(values + 4 * lowest(rest), fibers[lowest(rest)].mine, 4);
        if (slots == 32) {
            for (uint32_t rest = taking_part; rest; rest &= rest - 1) memcpy(fibers[lowest(rest)].all, values, 128);
        } else {
            for (uint32_t rest = taking_part; rest; rest &= rest - 1) memcpy(fibers[lowest(rest)].all, values, 16);
        }
    } else {
        for (uint32_t rest = taking_part; rest; rest &= rest - 1)
            memcpy(values + bytes * lowest(rest), fibers[lowest(rest)].mine, bytes);
        for (uint32_t rest = taking_part; rest; rest &= rest - 1)
            memcpy(fibers[lowest(rest)].all, values, slots * bytes);
    }
    for (uint32_t rest = taking_part; rest; rest &= rest - 1) fibers[lowest(rest)].taking_part = taking_part;
    ++w.counters.simd_exchanges;
}

// Waits among the lanes of `waiting` and returns the mask of those that took part.
inline uint32_t exchange_at(Worker &w, Fiber &f, uint32_t &waiting, const void *mine, uint32_t bytes,
                            const ms_site *site) {
    f.site = site;
    f.mine = mine;
    f.bytes = static_cast<uint16_t>(bytes);
    arrive(*w.simd, f);
    waiting |= 1u << f.lane;
    wait(w);
    return f.taking_part;
}

void release(Simd &s, uint32_t mask) {
    s.at_simd_barrier &= ~mask;
    s.at_exchange &= ~mask;
    s.at_quad &= ~mask;
    s.ready |= mask;
}

void pass_simd_barrier(Worker &w, Simd &s, uint32_t mask) {
    uint32_t fence = MS_MEM_DEVICE | MS_MEM_THREADGROUP;
    for (uint32_t rest = mask; rest; rest &= rest - 1) fence &= w.fibers[first_of(w, s) + lowest(rest)].fence;
    if (fence & MS_MEM_DEVICE) ++s.epoch[DEVICE];
    if (fence & MS_MEM_THREADGROUP) ++s.epoch[GROUP];
    if (w.checker) w.checker->ordering().barrier(w, fence);
    ++w.counters.simdgroup_barriers;
    release(s, mask);
}

uint32_t at_same_site(Worker &w, const Simd &s, uint32_t among, const ms_site *site) {
    uint32_t same = 0;
    for (uint32_t rest = among; rest; rest &= rest - 1)
        if (w.fibers[first_of(w, s) + lowest(rest)].site == site) same |= rest & -rest;
    return same;
}

// What the fiber waits in.
const char *waits_in(const Worker &w, const Fiber &f) {
    const Simd &s = w.simds[f.simd];
    const uint32_t bit = 1u << f.lane;
    return s.at_barrier & bit        ? "threadgroup_barrier"
           : s.at_simd_barrier & bit ? "simdgroup_barrier"
           : s.at_quad & bit         ? "a quad function"
                                     : "a simd function";
}

uint32_t line_of(const ms_site *site) { return site ? site->line : 0; }

// `here` waits at its site without `elsewhere`, which waits at another one or, if `ended`, has returned.
void report_divergence(Worker &w, ms_finding_kind kind, const Fiber &here, const Fiber &elsewhere, bool ended) {
    ms_finding finding = new_finding(kind, nullptr);
    finding.first = access_of(w, here);
    finding.second = access_of(w, elsewhere);
    const Simd &s = w.simds[here.simd];
    const uint32_t bit = 1u << here.lane;
    const char *whole = s.at_barrier & bit ? "threadgroup" : s.at_quad & bit ? "quadgroup" : "simdgroup";
    if (ended) {
        finding.second.site = nullptr;
        const ms_uint3 gone = finding.second.thread;
        set_detail(finding, "a thread waits in %s (line %u) for its whole %s, but thread (%u, %u, %u) has returned",
                   waits_in(w, here), line_of(here.site), whole, gone.x, gone.y, gone.z);
    } else {
        set_detail(finding, "two threads of one %s: the first waits in %s (line %u), the second in %s (line %u)", whole,
                   waits_in(w, here), line_of(here.site), waits_in(w, elsewhere), line_of(elsewhere.site));
    }
    w.run->findings.add(finding);
}

// Lets the quadgroups go on whose four lanes are at one place. False if there is none.
bool settle_quads(Worker &w, Simd &s) {
    bool any = false;
    for (uint32_t base = 0; base < MS_SIMD_WIDTH; base += 4) {
        const uint32_t quad = s.live() & (0xFu << base);
        if (!quad || (s.at_quad & quad) != quad) continue;
        const ms_site *site = w.fibers[first_of(w, s) + lowest(quad)].site;
        if (at_same_site(w, s, quad, site) != quad) continue;
        exchange(w, s, quad, base, 4);
        release(s, quad);
        any = true;
    }
    return any;
}

// Lanes wait at different places, or not all wait here. Those at the earliest line go on: most often that is the place
// inside the branch or loop, from which they come to where the others are.
void settle_divergent(Worker &w, Simd &s) {
    Fiber *fibers = w.fibers + first_of(w, s);
    const uint32_t waiting = s.at_exchange | s.at_simd_barrier | s.at_quad;
    uint32_t first = lowest(waiting);
    for (uint32_t rest = waiting; rest; rest &= rest - 1) {
        const ms_site *site = fibers[lowest(rest)].site, *best = fibers[first].site;
        if (!site || !best) continue;
        if (site->line < best->line || (site->line == best->line && site->column < best->column)) first = lowest(rest);
    }
    const uint32_t bit = 1u << first;
    const bool barrier = s.at_simd_barrier & bit, quad = s.at_quad & bit;
    const uint32_t among = barrier ? s.at_simd_barrier : quad ? s.at_quad & (0xFu << (first & ~3u)) : s.at_exchange;
    const uint32_t whole = quad ? s.live() & (0xFu << (first & ~3u)) : s.live();
    const uint32_t together = at_same_site(w, s, among, fibers[first].site);
    // A simdgroup function works on the lanes that come to it: those that wait at a threadgroup barrier or have ended
    // are not missed. A simdgroup barrier is for all.
    const uint32_t elsewhere = whole & ~together & (barrier ? ~0u : waiting);
    const uint32_t returned = barrier ? s.ended & ~s.aborted : 0;
    // What follows a divergence of this simdgroup is its consequence.
    if ((elsewhere | returned) && !s.diverged) {
        s.diverged = true;
        report_divergence(w, barrier ? MS_DIVERGENT_BARRIER : MS_DIVERGENT_SIMD, fibers[first],
                          fibers[lowest(elsewhere ? elsewhere : returned)], elsewhere == 0);
    }
    if (barrier) {
        pass_simd_barrier(w, s, together);
    } else {
        exchange(w, s, together, quad ? first & ~3u : 0, quad ? 4 : MS_SIMD_WIDTH);
        release(s, together);
    }
}

}  // namespace

void settle_simd(Worker &w, Simd &s) {
    const uint32_t live = s.live();
    if (s.at_exchange == live && !s.mixed) {
        exchange(w, s, live, 0, MS_SIMD_WIDTH);
        release(s, live);
    } else if (s.at_simd_barrier == s.present && !s.mixed) {
        pass_simd_barrier(w, s, live);
    } else if (!s.at_quad || !settle_quads(w, s)) {
        settle_divergent(w, s);
    }
}

void complete_barrier(Worker &w) {
    Group &g = w.group;
    const Fiber *first = nullptr, *other = nullptr, *returned = nullptr;
    if (g.barrier_mixed || g.returned) {
        for (uint32_t i = 0; i < g.threads; ++i) {
            const Simd &s = w.simds[i / MS_SIMD_WIDTH];
            const uint32_t bit = 1u << (i % MS_SIMD_WIDTH);
            const Fiber &f = w.fibers[i];
            if (s.at_barrier & bit) {
                if (!first) first = &f;
                else if (!other && f.site != first->site) other = &f;
            } else if (!returned && (s.ended & ~s.aborted & bit)) {
                returned = &f;
            }
        }
        // What follows a divergent barrier is its consequence.
        if (g.diverged) first = nullptr;
        g.diverged |= first && (other || returned);
        if (first && other) report_divergence(w, MS_DIVERGENT_BARRIER, *first, *other, false);
        if (first && returned) report_divergence(w, MS_DIVERGENT_BARRIER, *first, *returned, true);
    }
    if (g.barrier_fence & MS_MEM_DEVICE) ++g.epoch[DEVICE];
    if (g.barrier_fence & MS_MEM_THREADGROUP) ++g.epoch[GROUP];
    if (w.checker) w.checker->ordering().barrier(w, g.barrier_fence);
    for (uint32_t i = 0; i < g.simds; ++i) {
        w.simds[i].ready |= w.simds[i].at_barrier;
        w.simds[i].at_barrier = 0;
    }
    g.barrier_site = nullptr;
    g.barrier_mixed = false;
    ++w.counters.barriers;
}

}  // namespace metalsim

using namespace metalsim;

extern "C" {

const ms_thread *ms_self(void) { return t_worker->current->self; }

void ms_threadgroup_barrier(uint32_t fence, const ms_site *site) {
    Worker &w = *t_worker;
    Fiber &f = *w.current;
    Group &g = w.group;
    f.site = site;
    if (!g.barrier_site) {
        g.barrier_site = site;
        g.barrier_fence = fence;
    } else {
        g.barrier_mixed |= g.barrier_site != site;
        g.barrier_fence &= fence;
    }
    w.simd->at_barrier |= 1u << f.lane;
    wait(w);
}

void ms_simdgroup_barrier(uint32_t fence, const ms_site *site) {
    Worker &w = *t_worker;
    Fiber &f = *w.current;
    f.site = site;
    f.fence = static_cast<uint8_t>(fence);
    arrive(*w.simd, f);
    w.simd->at_simd_barrier |= 1u << f.lane;
    wait(w);
}

uint32_t ms_simd_exchange(const void *mine, uint32_t bytes, void *all, const ms_site *site) {
    Worker &w = *t_worker;
    Fiber &f = *w.current;
    f.all = all;
    f.combines = false;
    return exchange_at(w, f, w.simd->at_exchange, mine, bytes, site);
}

uint32_t ms_simd_combine(void *mine, uint32_t bytes, ms_combine combine, const ms_site *site) {
    Worker &w = *t_worker;
    Fiber &f = *w.current;
    f.combine = combine;
    f.combines = true;
    return exchange_at(w, f, w.simd->at_exchange, mine, bytes, site);
}

uint32_t ms_quad_exchange(const void *mine, uint32_t bytes, void *all, const ms_site *site) {
    Worker &w = *t_worker;
    Fiber &f = *w.current;
    f.all = all;
    f.combines = false;
    return exchange_at(w, f, w.simd->at_quad, mine, bytes, site);
}

void ms_absent_lane(uint32_t lane, const ms_site *site) {
    Worker &w = *t_worker;
    ms_finding finding = new_finding(MS_ABSENT_LANE, nullptr);
    finding.first = access_of(w, *w.current);
    finding.first.site = site;
    finding.offset = lane;
    set_detail(finding, "reads the value of lane %u, which takes no part", lane);
    w.run->findings.add(finding);
}

void ms_count_mma(void) {
    Worker &w = *t_worker;
    // Every lane of the simdgroup may call; it is one operation.
    if (w.current->lane == 0) ++w.counters.mmas;
}

}  // extern "C"
