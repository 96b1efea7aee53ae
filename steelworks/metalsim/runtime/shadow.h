// What checking mode remembers of each piece of memory: the last write and the last reads, by whom and when.
#pragma once
#include <stdint.h>

#include <vector>

#include "metalsim.h"

namespace metalsim {

// Who did what when, in 16 bytes. `when` holds, from the lowest bit: thread index (10), flags (6), threadgroup barriers
// passed (24), simdgroup barriers passed (24); only barriers that fence the memory in question count.
struct Record {
    enum : uint64_t {
        THREAD = 0x3FF,
        IS_ATOMIC = 1u << 10,
        STORED = 1u << 11,        // an atomic that overwrites, by this thread in this interval
        PLAIN = 1u << 12,         // a non-atomic access, by this thread in this interval
        GROUP_STORED = 1u << 13,  // the same by this threadgroup at any time
        GROUP_PLAIN = 1u << 14,
        AT_SITE = 1u << 15,       // `place` is a site
        EPOCHS = ~uint64_t(0xFFFF)
    };
    uint32_t group = 0;  // serial number of the threadgroup
    uint32_t place = 0;  // offset in the kernel library
    uint64_t when = 0;

    uint32_t thread() const { return static_cast<uint32_t>(when & THREAD); }
    uint32_t group_epoch() const { return static_cast<uint32_t>(when >> 16) & 0xFFFFFFu; }
    uint32_t simd_epoch() const { return static_cast<uint32_t>(when >> 40); }
};

// Two reads are enough to find a conflict with any later write of the threadgroup, if the second is by another
// simdgroup whenever there is one; a third is kept from an earlier threadgroup.
struct alignas(64) Cell {
    Record write, read, second_read, foreign_read;
};

// The serial numbers of one run's threadgroups. Cells are not cleared between runs, as fresh or cleared memory costs
// more than all else: a record counts only if its number is one of this run's.
struct Serials {
    uint32_t first = 1, count = 0;
    uint32_t generation = 0;  // of the numbering: it starts again after 2^32 threadgroups
    bool hold(const Record &record) const { return record.group - first < count; }
    static Serials take(uint64_t count);
};

// Memory for cells, kept for the next run.
struct ShadowBlock {
    void *memory = nullptr;
    uint64_t bytes = 0;
    // Gives it to later runs. Not before the end of this one: its records would count there.
    void give(const Serials &serials);
};

// A buffer that shares its memory with others, or the only one.
struct Part {
    const ms_buffer *buffer;
    uint32_t index;      // [[buffer(index)]]
    uint64_t offset;     // in the region
};

// A stretch of memory with a cell for each unit: the size of the smallest access so far, up to 16 bytes.
struct Region {
    char *base = nullptr;
    uint64_t bytes = 0;
    Cell *cells = nullptr;
    uint32_t shift = 0;      // a unit has 1 << shift bytes
    uint32_t space = 0;      // DEVICE or GROUP
    bool constant = false, output = false, once = false, uninitialised = false;
    bool written = false;
    const char *name = nullptr;
    std::vector<Part> parts; // empty for a threadgroup variable
    ShadowBlock memory;

    // Makes units small enough for an access of `size` bytes at `offset`. A block that this outgrows goes to
    // `outgrown`: it holds records of this run, so no other region may have it yet. False if memory is short.
    bool fit(uint64_t offset, uint64_t size, const Serials &serials, std::vector<ShadowBlock> &outgrown);
    void release(const Serials &serials);
};

}  // namespace metalsim
