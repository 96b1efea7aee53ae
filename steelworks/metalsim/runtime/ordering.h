// Order that atomics and fences make: a thread that fences and then writes an atomic passes on what it did before; one
// that reads the atomic and then fences takes it over. Barriers spread it in the threadgroup. Used by few kernels (the
// last threadgroup adds up what the others left), so it costs nothing before the first fence.
//
// Coarser than the real rule on one side only: what the releasing thread does after its fence counts as passed on too,
// so a race may be missed but none is invented.
#pragma once
#include <stdint.h>

#include <unordered_map>
#include <vector>

#include "shadow.h"

namespace metalsim {

struct Worker;

class Ordering {
public:
    void fence(const Worker &worker, uint32_t fence);
    void atomic(const Worker &worker, const void *address, bool reads, bool writes, bool replaces);
    void barrier(const Worker &worker, uint32_t fence);
    // Is the record ordered before what the current thread does now?
    bool covers(const Worker &worker, const Record &record, uint32_t space);

private:
    // All that thread did, and what its threadgroup did before that many barriers.
    struct Entry {
        uint32_t group, thread, spaces, epoch[2];
    };
    using Known = std::vector<Entry>;  // sorted by group, then thread
    struct Thread {
        Known known, pending;
        uint32_t released = 0;  // spaces of its fences so far
    };
    void enter_group(const Worker &worker);
    static void merge(Known &into, const Known &from);
    static bool covers(const Known &known, const Record &record, uint32_t space);

    bool used_ = false;
    uint64_t serial_ = 0;
    Known group_;
    std::unordered_map<uint32_t, Thread> threads_;  // of the running threadgroup
    std::unordered_map<const void *, Known> locations_;
};

}  // namespace metalsim
