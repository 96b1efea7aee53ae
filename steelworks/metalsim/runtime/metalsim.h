// The C interface between a compiled kernel library, the runtime and the Python side.
//
// Who owns what
//   kernel library   generated from Metal source; one ms_entry per kernel; calls the functions of part 2.
//   runtime          scheduler, collectives, checks, counters; implements parts 2 and 3, and __tsan_* in checking mode.
//   Python side      fills ms_dispatch, calls ms_run, reads the findings and counters of part 3.
//
// Part 1: what a GPU thread may ask about itself. Plain data; the scheduler fills it before the thread starts.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MS_SIMD_WIDTH = 32, MS_GROUP_MEMORY_LIMIT = 32768, MS_MAX_THREADS_PER_GROUP = 1024 };

// Values of mem_flags in Metal.
enum ms_fence { MS_MEM_NONE = 0, MS_MEM_DEVICE = 1, MS_MEM_THREADGROUP = 2, MS_MEM_TEXTURE = 4 };

typedef struct { uint32_t x, y, z; } ms_uint3;

typedef struct ms_thread {
    ms_uint3 thread_position_in_grid;
    ms_uint3 thread_position_in_threadgroup;
    ms_uint3 threadgroup_position_in_grid;
    ms_uint3 threads_per_grid;
    ms_uint3 threadgroups_per_grid;
    ms_uint3 threads_per_threadgroup;           // of this group: smaller at the edge of the grid
    ms_uint3 dispatch_threads_per_threadgroup;  // as asked for
    uint32_t thread_index_in_threadgroup;
    uint32_t thread_index_in_simdgroup;
    uint32_t simdgroup_index_in_threadgroup;
    uint32_t simdgroups_per_threadgroup;
    uint32_t dispatch_simdgroups_per_threadgroup;
    uint32_t threads_per_simdgroup;             // always MS_SIMD_WIDTH
    uint32_t thread_index_in_quadgroup;
    uint32_t quadgroup_index_in_threadgroup;
    uint32_t quadgroups_per_threadgroup;
} ms_thread;

// A kernel: runs one GPU thread to its end. buffers[i] is the address bound to [[buffer(i)]].
typedef void (*ms_entry)(void *const *buffers, const ms_thread *self);

// A source position. In kernel libraries it is a constant that the compiler makes with __builtin_source_location(), one
// a call expression (so two calls on one line differ by column): compare by address; it lives as long as the library.
// Its fields have the layout of std::source_location::__impl as the kernels' shim declares it.
typedef struct ms_site {
    const char *file;
    uint32_t line;
    uint32_t column;
    const char *function;  // signature of the function that contains the call: "void gemm(...) [T = float]"
} ms_site;

// Part 2: what a kernel calls.

const ms_thread *ms_self(void);

// The address of a threadgroup variable in the running group. `key` is one address per variable and template instance.
// The same for all threads of a group; filled with 0xFF bytes (NaN) when the group starts.
void *ms_group_variable(const void *key, const char *name, size_t bytes, size_t align, const ms_site *site);

void ms_threadgroup_barrier(uint32_t fence, const ms_site *site);
void ms_simdgroup_barrier(uint32_t fence, const ms_site *site);

// The one collective: every lane gives `bytes` (at most 64) and gets those of all lanes: `all` has 32 slots of `bytes`.
// Returns the mask of lanes that took part. Slots of absent lanes are filled with 0xFF.
// Lanes that wait at another site or have ended do not take part. It is a finding if they wait at another simdgroup
// function or a simdgroup barrier; to wait at a threadgroup barrier meanwhile is legal.
uint32_t ms_simd_exchange(const void *mine, uint32_t bytes, void *all, const ms_site *site);

// The same with the work done once for all lanes: `combine` gets the 32 slots and the mask of the lanes that take part,
// changes the slots in place, and every lane gets its own slot back in `mine`. (Used by reductions, scans, votes and
// simdgroup_multiply_accumulate.) `combine` runs while no lane does; it must not call the runtime.
typedef void (*ms_combine)(void *slots, uint32_t present);
uint32_t ms_simd_combine(void *mine, uint32_t bytes, ms_combine combine, const ms_site *site);

// Reads the slot of an absent lane, or of one that no simdgroup (quadgroup) has: a finding (undefined in Metal).
void ms_absent_lane(uint32_t lane, const ms_site *site);

// The same within the four lanes of a quadgroup; `all` has 4 slots.
uint32_t ms_quad_exchange(const void *mine, uint32_t bytes, void *all, const ms_site *site);

// Atomics. `op` as below, `bytes` 1, 4 or 8, `kind` the type of the operands. Returns the old value through `old`
// (may be null). For MS_ATOMIC_CAS: `operand` is the value to store, `expected` is updated, the result is 1 on success.
enum ms_atomic_op {
    MS_ATOMIC_LOAD, MS_ATOMIC_STORE, MS_ATOMIC_EXCHANGE, MS_ATOMIC_CAS,
    MS_ATOMIC_ADD, MS_ATOMIC_SUB, MS_ATOMIC_AND, MS_ATOMIC_OR, MS_ATOMIC_XOR, MS_ATOMIC_MIN, MS_ATOMIC_MAX
};
enum ms_atomic_kind { MS_INT = 0, MS_UINT = 1, MS_FLOAT = 2, MS_BOOL = 3 };
int ms_atomic(enum ms_atomic_op op, enum ms_atomic_kind kind, void *address, uint32_t bytes,
              const void *operand, void *expected, void *old, const ms_site *site);
// atomic_thread_fence(flags, memory_order_seq_cst, scope)
void ms_atomic_fence(uint32_t fence, const ms_site *site);

// Counted, not executed here: one 8x8x8 simdgroup multiply-accumulate by the calling lane's simdgroup. All lanes may
// call; the call of lane 0 counts.
void ms_count_mma(void);

// Part 3: what the Python side calls.

enum ms_schedule { MS_RING = 0, MS_RUN_AHEAD = 1 };
enum ms_order { MS_FORWARD = 0, MS_REVERSE = 1, MS_SHUFFLED = 2 };

enum ms_buffer_flags {
    MS_BUFFER_CONSTANT = 1,    // bound as a value: a write to it is a finding
    MS_BUFFER_OUTPUT = 2,      // every byte must be written exactly once; not initialised before
    MS_BUFFER_WRITE_MANY = 4   // with OUTPUT: may be written more than once (still at least once)
};

typedef struct ms_buffer {
    void *data;
    uint64_t bytes;
    uint32_t flags;
    const char *name;
} ms_buffer;

typedef struct ms_dispatch {
    ms_entry entry;
    const char *kernel;
    const ms_buffer *buffers;
    uint32_t buffer_count;
    ms_uint3 threads;          // the exact grid, as dispatchThreads
    ms_uint3 group;
    uint32_t schedule;         // ms_schedule
    uint32_t order;            // ms_order, of simdgroups, lanes and threadgroups
    uint64_t seed;
    uint32_t workers;          // OS threads that run threadgroups; checking mode uses one
    uint32_t check;            // 1: the library was compiled with instrumentation
    uint32_t stack_bytes;      // of a GPU thread; 0 for the default
    uint32_t max_findings;     // distinct ones kept; 0 for the default
} ms_dispatch;

enum ms_finding_kind {
    MS_RACE_THREADGROUP = 1, MS_RACE_DEVICE, MS_RACE_BETWEEN_GROUPS, MS_OUT_OF_BOUNDS, MS_UNINITIALISED,
    MS_MISALIGNED, MS_UNWRITTEN, MS_WRITTEN_TWICE, MS_ORDER_DEPENDENT_ATOMIC, MS_DIVERGENT_BARRIER,
    MS_DIVERGENT_SIMD, MS_ABSENT_LANE, MS_WRITE_TO_CONSTANT, MS_GROUP_MEMORY_LIMIT_EXCEEDED, MS_STACK_OVERFLOW
};

// What `count`, `offset` and `bytes` mean where it is not plain:
//   out of bounds     offset: how far the access reaches past the end (positive) or begins before the start (negative)
//   unwritten         once a buffer; count: stretches that are missing, offset: the first byte, bytes: in all
//   written twice     once a buffer; bytes: in all
//   group memory      bytes: what all variables take
//   absent lane       offset: the lane
// Of a threadgroup (or simdgroup) that diverged only the first divergence is reported: the rest follows from it.
// Threads that a fault ended are not missed at barriers.
// With -fsanitize=array-bounds,alignment beside (or without) -fsanitize=thread, clang's own checks of indices into
// arrays of known size and of alignment become findings as well: out of bounds (without a variable), misaligned.

// One side of a finding: who did what where. pc is 0 when `site` is given (and the other way round).
typedef struct ms_access {
    uint64_t pc;               // return address in the kernel library, for the symbolizer
    const ms_site *site;
    ms_uint3 group, thread;    // threadgroup_position_in_grid, thread_position_in_threadgroup
    uint32_t bytes;
    uint32_t is_write;
    uint32_t is_atomic;
} ms_access;

typedef struct ms_finding {
    uint32_t kind;             // ms_finding_kind
    uint64_t count;            // how often this pair of places was seen
    char variable[64];         // buffer or threadgroup variable
    uint64_t offset;           // byte in it (of the first occurrence); for out of bounds: distance as int64
    uint64_t bytes;            // how many bytes are concerned (unwritten: the total)
    ms_access first, second;   // second.pc and second.site both 0: there is none
    char detail[160];
} ms_finding;

typedef struct ms_counters {
    uint64_t device_read, device_written, constant_read, group_read, group_written;  // bytes; checking mode only
    uint64_t atomics, barriers, simdgroup_barriers, simd_exchanges, mmas;  // barriers: one a group, not a thread
    uint64_t groups, threads, group_memory_bytes;
} ms_counters;

// Runs the dispatch to its end. 0: done (findings may exist). Otherwise 1: not runnable, see `error`: also when the
// kernel polls an atomic that nobody changes, or divides an integer by zero. `found` may be larger than `capacity`.
int ms_run(const ms_dispatch *dispatch, ms_counters *counters, ms_finding *findings, uint32_t capacity,
           uint32_t *found, char *error, uint32_t error_capacity);

#ifdef __cplusplus
}
#endif
