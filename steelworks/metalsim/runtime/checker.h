// Checking mode: what the scheduler, the collectives and the instrumentation of a kernel tell it.
#pragma once
#include <stdint.h>

#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "address_space.h"
#include "metalsim.h"
#include "ordering.h"
#include "shadow.h"
#include "state.h"

namespace metalsim {

enum AccessFlags : uint32_t {
    READ = 1,
    WRITE = 2,
    ATOMIC = 4,
    OVERWRITES = 8,      // an atomic store or exchange: its result depends on the order
    AT_SITE = 16,        // `place` is an ms_site, else a return address
    ANY_ALIGNMENT = 32,
    SAME_VALUE = 64,     // a store of what is there already
    RANGE = 128          // a copy of memory rather than of a value
};

class Checker {
public:
    explicit Checker(Worker &worker) : w_(worker) {}
    ~Checker();
    Checker(const Checker &) = delete;
    Checker &operator=(const Checker &) = delete;

    // Copies the buffers into slots of their own. False, with run.error set, if memory is short.
    bool start(Run &run);
    void *const *bound() const { return bound_; }
    // Copies results back and looks for what was never written.
    void finish(bool complete);

    // The current thread is about to touch memory. False if the touch would fault, or do harm.
    bool access(const void *address, uint64_t bytes, uint32_t flags, const void *place);
    Ordering &ordering() { return ordering_; }
    // May the bytes be looked at without harm?
    bool readable(const void *address, uint64_t bytes);
    // A finding about the variable at the address, if there is one.
    ms_finding finding_near(ms_finding_kind kind, const void *address);
    // The current thread had a fault.
    void fault(const Fault &fault);

private:
    struct Current {
        uint64_t when, bytes;
        const void *address;  // of the code
        uint32_t group, place, flags, reported;  // reported: kinds, as bits
    };
    bool touch(Region &region, uint64_t offset, uint64_t bytes, uint32_t flags, const void *place);
    void check_cell(Region &region, Cell &cell, uint64_t offset, Current &current);
    void note_read(const Region &region, Cell &cell, const Current &current);
    void note_write(Cell &cell, const Current &current);
    bool elsewhere(const void *address, uint64_t bytes, uint32_t flags, const void *place);
    bool outside(const Region *region, const char *name, const void *address, uint64_t bytes, uint32_t flags,
                 const void *place);
    void conflict(Region &region, uint64_t offset, const Record &before, bool before_writes, Current &current);
    void report(ms_finding_kind kind, const Region &region, uint64_t offset, const Record *before, bool before_writes,
                Current &current);
    ms_finding finding_at(ms_finding_kind kind, const Region &region, uint64_t offset) const;
    ms_access here(uint64_t bytes, uint32_t flags, const void *place) const;
    ms_access access_of_record(const Record &record, bool writes) const;
    Region *region_at(const void *address);  // the nearest, or null
    Region *group_region(const char *address);
    bool in_program(const void *address, bool *kernel_library);

    Worker &w_;
    std::unique_ptr<AddressSpace> space_;
    Serials serials_;
    bool wrote_outside_ = false;          // into memory around buffers
    Ordering ordering_;
    std::deque<Region> regions_;          // one for each buffer, or set of buffers that overlap
    std::vector<Region *> region_of_slot_;  // from FIRST_BUFFER_SLOT on
    std::deque<Region> group_regions_;    // by number of the threadgroup variable
    std::vector<Region *> arena_regions_; // by stretch of the arena: filled at the first touch
    std::vector<ShadowBlock> outgrown_;   // of this run's regions; of no use to others before it ends
    char *arena_ = nullptr;
    void **bound_ = nullptr;
    uintptr_t library_ = 0;               // where the kernel library is loaded
    std::unordered_map<uintptr_t, uintptr_t> images_;  // page to load address of its program or library; 0: none
    // The last access, for the fault handler: it knows only an address, or not even that.
    const void *last_address_ = nullptr, *last_place_ = nullptr;
    uint64_t last_bytes_ = 0;
    uint32_t last_flags_ = 0;
    bool last_reported_ = false;
};

}  // namespace metalsim
