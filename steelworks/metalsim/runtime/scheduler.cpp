// Which GPU thread runs next. There is no scheduler context: a fiber that must wait picks its successor and switches
// straight to it, so a wait costs one switch.
#include "state.h"

#include <time.h>

#include <algorithm>

#include "faults.h"


namespace metalsim {

#if defined(__linux__)
thread_local Worker *t_worker __attribute__((tls_model("initial-exec"))) = nullptr;
#else
thread_local Worker *t_worker = nullptr;
#endif

namespace {

// A group whose every thread only polls atomics makes no progress; Metal promises none between threadgroups.
constexpr uint32_t POLLS_BEFORE_GIVING_WAY = 256;
constexpr uint64_t POLLS_BEFORE_ERROR = 20'000'000;
constexpr uint64_t SECONDS_BEFORE_ERROR = 10;

uint32_t choose_lane(const Worker &w, Simd &s, uint32_t candidates) {
    switch (w.order) {
    case MS_FORWARD: return lowest(candidates);
    case MS_REVERSE: return 31u - static_cast<uint32_t>(__builtin_clz(candidates));
    default: break;
    }
    for (;; ++s.order_at) {
        const uint32_t lane = s.order[s.order_at % MS_SIMD_WIDTH];
        if (candidates >> lane & 1) return lane;
    }
}

// Goes on to the next simdgroup, in order and round about, that can run. In the ring schedule the present one comes
// last. False if there is none.
bool next_simd(Worker &w) {
    const uint32_t count = w.group.simds;
    for (uint32_t step = 1; step <= count; ++step) {
        uint32_t at = w.simd_at + step;
        if (at >= count) at -= count;
        Simd &s = w.simds[w.simd_order[at]];
        if (!s.ready) continue;
        w.simd_at = at;
        w.simd = &s;
        s.turn = s.ready;
        return true;
    }
    return false;
}

bool wake_spinning(Worker &w) {
    bool any = false;
    for (uint32_t i = 0; i < w.group.simds; ++i) {
        Simd &s = w.simds[i];
        any |= s.spinning != 0;
        s.ready |= s.spinning;
        s.spinning = 0;
    }
    return any;
}

// A large group does not fit into the first cache: asks for what the likely next fiber needs while this one runs.
inline void fetch_ahead(const Worker &w, const Fiber *fiber) {
    const int step = w.order == MS_REVERSE ? -1 : 1;
    const Fiber *next = fiber + step;
    if (next < w.fibers || next >= w.fibers + MS_MAX_THREADS_PER_GROUP) return;
    const char *stack = static_cast<const char *>(next->sp);
    __builtin_prefetch(stack, 1);
    __builtin_prefetch(stack + 64, 1);
    __builtin_prefetch(stack + 128, 1);
    __builtin_prefetch(next + step, 1);
}

// The next fiber to run, taken out of the ready ones. Null when all groups are done.
Fiber *pick(Worker &w) {
    const bool ring = w.schedule == MS_RING;
    for (;;) {
        Simd &s = *w.simd;
        const uint32_t candidates = ring ? s.turn : s.ready;
        if (candidates) {
            const uint32_t lane = choose_lane(w, s, candidates);
            s.ready &= ~(1u << lane);
            s.turn &= ~(1u << lane);
            Fiber *fiber = &w.fibers[static_cast<uint32_t>(&s - w.simds) * MS_SIMD_WIDTH + lane];
            fetch_ahead(w, fiber);
            return fiber;
        }
        if (!s.ready && !s.spinning && (s.at_exchange | s.at_simd_barrier | s.at_quad)) {
            settle_simd(w, s);
            if (!ring && s.ready) continue;
        }
        if (next_simd(w)) continue;
        if (wake_spinning(w)) continue;
        if (w.group.live) {
            complete_barrier(w);
            if (w.run->dispatch->order == MS_SHUFFLED) reshuffle(w);
            if (ring || !w.simd->ready) next_simd(w);
            continue;
        }
        if (!start_next_group(w)) return nullptr;
    }
}

void run_threads();

// Goes on with `to` and never comes back to this context.
[[noreturn]] void jump(void *to) {
    void *discarded;
    metalsim_switch(&discarded, to);
    __builtin_unreachable();
}

Stack *stack_for_new(Worker &w) {
    Stack *stack = w.stacks->take();
    if (!stack) {
        w.run->fail("out of memory for the stacks of GPU threads");
        leave_run(w);
    }
    return stack;
}

// Starts or resumes `next`, which may be the fiber that waits: then there is nothing to do.
void go_on_with(Worker &w, Fiber &waiting, Fiber *next) {
    if (next == &waiting) return;
    w.current = next;
    void *to;
    if (next->started) {
        to = next->sp;
    } else {
        next->stack = stack_for_new(w);
        to = prepare_stack(*next->stack, run_threads);
    }
    metalsim_switch(&waiting.sp, to);
}

void describe(Worker &w, const Fiber &f, ms_thread &self) {
    const ms_uint3 place = w.places[f.index];
    self = w.common;
    self.thread_position_in_grid.x += place.x;
    self.thread_position_in_grid.y += place.y;
    self.thread_position_in_grid.z += place.z;
    self.thread_position_in_threadgroup = place;
    self.thread_index_in_threadgroup = f.index;
    self.thread_index_in_simdgroup = f.lane;
    self.simdgroup_index_in_threadgroup = f.simd;
    self.thread_index_in_quadgroup = f.lane & 3u;
    self.quadgroup_index_in_threadgroup = f.index / 4u;
}

// The fiber has ended: picks what comes next. If that is a thread that has not begun, it is started on this same stack.
void end_current(Worker &w, bool aborted) {
    Fiber &f = *w.current;
    Simd &s = w.simds[f.simd];
    s.ended |= 1u << f.lane;
    if (aborted) s.aborted |= 1u << f.lane;
    else ++w.group.returned;
    --w.group.live;
    w.group.polls = 0;
    f.started = false;
    Stack *stack = f.stack;
    Fiber *next = pick(w);
    if (next && !next->started) {
        next->stack = stack;
        w.current = next;
        return;
    }
    w.stacks->give(stack);
    if (!next) jump(w.main_sp);
    w.current = next;
    jump(next->sp);
}

// What every fiber runs: GPU threads, one after the other, for as long as they end without a wait.
__attribute__((noinline)) void run_threads_from(Worker &w) {
    ms_thread self;
    for (;;) {
        Fiber &f = *w.current;
        f.started = true;
        f.spins = 0;
        describe(w, f, self);
        f.self = &self;
        w.run->dispatch->entry(w.run->bound, &self);
        end_current(w, false);
    }
}

void run_threads() {
    run_threads_from(*t_worker);
    __builtin_unreachable();
}

}  // namespace

void abort_current() {
    Worker &w = *t_worker;
    report_fault(w);
    end_current(w, true);
    run_threads_from(w);
    __builtin_unreachable();
}

void leave_run(Worker &w) { jump(w.main_sp); }

void wait(Worker &w) {
    Fiber &f = *w.current;
    f.spins = 0;
    w.group.polls = 0;
    go_on_with(w, f, pick(w));
}

void polled(Worker &w) {
    Fiber &f = *w.current;
    if (++f.spins < POLLS_BEFORE_GIVING_WAY) return;
    f.spins = 0;
    Group &g = w.group;
    if (g.polls == 0) g.polling_since = static_cast<uint64_t>(time(nullptr));
    g.polls += POLLS_BEFORE_GIVING_WAY;
    const bool stopped = w.run->stop.load(std::memory_order_relaxed);
    const bool alone = w.run->workers == 1;
    if (stopped || (g.polls > POLLS_BEFORE_ERROR &&
                    (alone || static_cast<uint64_t>(time(nullptr)) > g.polling_since + SECONDS_BEFORE_ERROR))) {
        const std::string place =
            f.site ? std::string(f.site->file) + ":" + std::to_string(f.site->line) : std::string("an atomic");
        w.run->fail("no progress: a thread polls an atomic at " + place +
                    " that nobody changes; Metal promises no progress between threadgroups");
        leave_run(w);
    }
    Simd &s = w.simds[f.simd];
    s.spinning |= 1u << f.lane;
    go_on_with(w, f, pick(w));
}

void Run::fail(const std::string &message) {
    std::lock_guard<std::mutex> guard(error_mutex);
    if (error.empty()) error = message;
    stop.store(true);
}

void run_worker(Worker &w, Run &run) {
    w.run = &run;
    w.group.serial = run.first_serial - 1;
    w.schedule = run.dispatch->schedule;
    w.order = run.dispatch->order;
    w.next_group = w.end_group = 0;
    w.shape = {0, 0, 0};
    w.counters = ms_counters{};
    w.touching_user_memory = false;
    for (uint32_t i = 0; i < MS_MAX_THREADS_PER_GROUP; ++i) {
        Fiber &f = w.fibers[i];
        f.index = static_cast<uint16_t>(i);
        f.lane = static_cast<uint8_t>(i % MS_SIMD_WIDTH);
        f.simd = static_cast<uint8_t>(i / MS_SIMD_WIDTH);
        f.started = false;
    }
    FaultScope faults;
    if (!start_next_group(w)) return;
    t_worker = &w;
    w.current = pick(w);
    w.current->stack = w.stacks->take();
    if (w.current->stack)
        metalsim_switch(&w.main_sp, prepare_stack(*w.current->stack, run_threads));
    else
        run.fail("out of memory for the stacks of GPU threads");
    t_worker = nullptr;
    w.stacks->reclaim_all();
    w.counters.group_memory_bytes = w.memory.packed_bytes();
}

}  // namespace metalsim
