// The state of a run: what scheduler, collectives, group memory, checks and fault handler share.
//
//   Run      one ms_run: the dispatch, the findings, the queue of threadgroups
//   Worker   an OS thread that runs one threadgroup at a time; its fibers never leave it
//   Simd     a simdgroup of the running threadgroup; sets of lanes are 32-bit masks
//   Fiber    one GPU thread
#pragma once
#include <stdint.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "fiber.h"
#include "findings.h"
#include "group_memory.h"
#include "metalsim.h"

namespace metalsim {

class Checker;
struct Run;

constexpr uint32_t MAX_SIMDS = MS_MAX_THREADS_PER_GROUP / MS_SIMD_WIDTH;
constexpr size_t DEFAULT_STACK_BYTES = 64 * 1024;

// The two memory spaces whose barriers are told apart.
enum Space : uint32_t { DEVICE = 0, GROUP = 1, SPACES = 2 };

// One cache line: a wait of every thread of a group walks through all of them.
struct alignas(64) Fiber {
    void *sp = nullptr;
    Stack *stack = nullptr;
    const ms_thread *self = nullptr;
    const ms_site *site = nullptr;  // where it waits
    const void *mine = nullptr;     // of an exchange; lives on the waiting fiber's stack
    union {
        void *all;
        ms_combine combine;         // if `combines`
    };
    uint32_t taking_part = 0;
    uint16_t bytes = 0;
    uint16_t spins = 0;             // atomic reads since it last did anything else
    uint16_t index = 0;             // in the threadgroup
    uint8_t lane = 0, simd = 0;
    uint8_t fence = 0;
    bool started = false, combines = false;

    Fiber() : all(nullptr) {}
};
static_assert(sizeof(Fiber) == 64, "a fiber is one cache line");

struct Simd {
    uint32_t present = 0;   // lanes that exist: fewer in the last simdgroup of a group
    uint32_t ready = 0;     // may run now, or have not begun
    uint32_t turn = 0;      // ring schedule: those of `ready` that run in this turn
    uint32_t spinning = 0;  // gave way while polling an atomic
    uint32_t ended = 0, aborted = 0;
    uint32_t at_barrier = 0, at_simd_barrier = 0, at_exchange = 0, at_quad = 0;
    bool mixed = false;     // waiting lanes may be at different sites: take the slow path
    bool diverged = false;  // reported: only the first divergence of a simdgroup is news
    const ms_site *site = nullptr;
    uint32_t epoch[SPACES] = {0, 0};  // simdgroup barriers passed that fence this space
    uint8_t order[MS_SIMD_WIDTH];     // shuffled: lanes in the order they run
    uint8_t order_at = 0;

    uint32_t live() const { return present & ~ended; }
};

struct Group {
    uint64_t serial = 0;      // of the running threadgroup; never 0
    ms_uint3 position{};
    uint32_t threads = 0, simds = 0;
    uint32_t live = 0, returned = 0;  // returned: ended, and not because of a fault
    const ms_site *barrier_site = nullptr;
    uint32_t barrier_fence = 0;
    bool barrier_mixed = false, diverged = false;
    uint32_t epoch[SPACES] = {0, 0};  // threadgroup barriers passed that fence this space
    uint64_t polls = 0;               // atomic reads by waiting threads since the last progress
    uint64_t polling_since = 0;       // seconds
};

// What the fault handler leaves for the code that ends the GPU thread.
struct Fault {
    uint64_t pc = 0, address = 0;
    bool overflow = false;  // of the stack
    int signal = 0;         // a fault that has nothing to do with memory
};

struct Worker {
    Run *run = nullptr;
    Fiber *current = nullptr;
    Simd *simd = nullptr;
    Checker *checker = nullptr;
    uint32_t schedule = MS_RING, order = MS_FORWARD;
    Group group;
    Simd simds[MAX_SIMDS];
    Fiber fibers[MS_MAX_THREADS_PER_GROUP];
    ms_uint3 places[MS_MAX_THREADS_PER_GROUP];  // thread_position_in_threadgroup by index, for `shape`
    ms_uint3 shape{};
    ms_thread common{};            // fields that all threads of the group share
    uint8_t simd_order[MAX_SIMDS];
    uint32_t simd_at = 0;          // position of `simd` in simd_order
    uint64_t next_group = 0, end_group = 0;
    uint64_t random = 0;
    ms_counters counters{};
    GroupMemory memory;
    Fault fault;
    bool touching_user_memory = false;  // a fault inside the runtime is the kernel's while this is set
    void *main_sp = nullptr;
    std::unique_ptr<StackPool> stacks;
};

struct Run {
    const ms_dispatch *dispatch = nullptr;
    void *const *bound = nullptr;  // what the entry gets
    ms_uint3 groups{};
    uint32_t first_serial = 1;     // of the threadgroups of this run
    uint64_t group_count = 0, chunk = 1;
    uint32_t workers = 1;
    std::atomic<uint64_t> next_group{0};
    std::atomic<bool> stop{false};
    Findings findings;
    std::mutex error_mutex;
    std::string error;

    // The first error wins; every worker stops at its next switch.
    void fail(const std::string &message);
};

// The worker of this OS thread while it runs GPU threads, else null.
#if defined(__linux__)
extern thread_local Worker *t_worker __attribute__((tls_model("initial-exec")));
#else
extern thread_local Worker *t_worker;
#endif

// Where the threadgroup that comes at `step` is, and its size.
struct Place {
    ms_uint3 position, origin, shape;
    uint64_t number;
};
Place place_of_group(const Run &run, uint64_t step);

// groups.cpp: starts the next threadgroup; false when all have been handed out.
bool start_next_group(Worker &worker);
// Another order after each barrier: a fixed one would show each pair of threads in one order only.
void reshuffle(Worker &worker);

// scheduler.cpp
void run_worker(Worker &worker, Run &run);
// The current fiber has put itself into one of the waiting masks: runs others until it may go on.
void wait(Worker &worker);
// The current fiber has read an atomic (or failed to change one): lets others run now and then, and ends the run if all
// threads only do that.
void polled(Worker &worker);
// Ends the current GPU thread because of a fault; runs on its (discarded) stack.
[[noreturn]] void abort_current();
[[noreturn]] void leave_run(Worker &worker);

// atomics.cpp: ms_atomic, for a caller known by site or by return address.
int atomic_access(ms_atomic_op op, ms_atomic_kind kind, void *address, uint32_t bytes, const void *operand,
                  void *expected, void *old, const ms_site *site, const void *pc);

// faults.cpp: adds the finding for the fault that the current GPU thread had.
void report_fault(Worker &worker);

// collectives.cpp: all live lanes of the simdgroup wait; lets those go on whose rendezvous is complete.
void settle_simd(Worker &worker, Simd &simd);
// All live threads of the group wait at threadgroup barriers: lets them go on.
void complete_barrier(Worker &worker);

inline ms_access access_of(const Worker &worker, const Fiber &fiber) {
    ms_access access{};
    access.site = fiber.site;
    access.group = worker.group.position;
    access.thread = worker.places[fiber.index];
    return access;
}

inline uint32_t lowest(uint32_t mask) { return static_cast<uint32_t>(__builtin_ctz(mask)); }

}  // namespace metalsim
