// From an address to the variable it belongs to, and whether the current thread may touch it.
#include "checker.h"

#include <dlfcn.h>
#include <inttypes.h>
#include <string.h>

#include <algorithm>

namespace metalsim {
namespace {

constexpr size_t VARIABLE_STRIDE = size_t(1) << 20;  // between threadgroup variables
constexpr size_t ARENA_BYTES = 256 * VARIABLE_STRIDE;
constexpr uint32_t ARENA_SLOT = 0, OWN_SLOT = 1, FIRST_BUFFER_SLOT = 2, LEAST_SLOTS = FIRST_BUFFER_SLOT + 32;

// Buffers that overlap must stay one piece of memory: the same tensor may be bound as input and as output.
struct Stretch {
    uintptr_t low, high;
    std::vector<uint32_t> buffers;
};

std::vector<Stretch> stretches_of(const ms_dispatch &dispatch) {
    std::vector<Stretch> list;
    for (uint32_t i = 0; i < dispatch.buffer_count; ++i) {
        const ms_buffer &buffer = dispatch.buffers[i];
        const uintptr_t low = reinterpret_cast<uintptr_t>(buffer.data);
        list.push_back({low, buffer.data ? low + buffer.bytes : low, {i}});
    }
    std::sort(list.begin(), list.end(), [](const Stretch &a, const Stretch &b) { return a.low < b.low; });
    std::vector<Stretch> merged;
    for (Stretch &stretch : list) {
        const bool joins = !merged.empty() && stretch.low < stretch.high && stretch.low < merged.back().high;
        if (!joins) {
            merged.push_back(std::move(stretch));
            continue;
        }
        merged.back().high = std::max(merged.back().high, stretch.high);
        merged.back().buffers.push_back(stretch.buffers[0]);
    }
    return merged;
}

const char *name_of(const Part &part) { return part.buffer->name ? part.buffer->name : ""; }

}  // namespace

Checker::~Checker() {
    for (Region &region : regions_) region.release(serials_);
    for (Region &region : group_regions_) region.release(serials_);
    for (ShadowBlock &block : outgrown_) block.give(serials_);
    // What was written beside a buffer would be read there by the next run.
    if (space_ && !wrote_outside_) AddressSpace::give(std::move(space_));
}

bool Checker::start(Run &run) {
    const ms_dispatch &dispatch = *run.dispatch;
    const std::vector<Stretch> stretches = stretches_of(dispatch);
    uint64_t largest = ARENA_BYTES;
    for (const Stretch &stretch : stretches) largest = std::max<uint64_t>(largest, stretch.high - stretch.low);
    const uint32_t slots = static_cast<uint32_t>(stretches.size());
    serials_ = Serials::take(run.group_count);
    run.first_serial = serials_.first;
    space_ = AddressSpace::take(std::max(slots + FIRST_BUFFER_SLOT, LEAST_SLOTS), largest);
    if (!space_) {
        run.fail("out of address space for checking mode");
        return false;
    }
    char *arena = space_->open(ARENA_SLOT, ARENA_BYTES, 0);
    char *own = space_->open(OWN_SLOT, dispatch.buffer_count * sizeof(void *), 0);
    if (!arena || !own || !w_.memory.start_run(arena, ARENA_BYTES, VARIABLE_STRIDE)) {
        run.fail("out of memory for checking mode");
        return false;
    }
    arena_ = arena;
    arena_regions_.assign(ARENA_BYTES / VARIABLE_STRIDE, nullptr);
    bound_ = reinterpret_cast<void **>(own);
    for (uint32_t slot = 0; slot < slots; ++slot) {
        const Stretch &stretch = stretches[slot];
        regions_.emplace_back();
        Region &region = regions_.back();
        region.bytes = stretch.high - stretch.low;
        region.base = space_->open(slot + FIRST_BUFFER_SLOT, region.bytes, stretch.low);
        region.space = DEVICE;
        if (!region.base) {
            run.fail("out of memory for checking mode");
            return false;
        }
        region.constant = region.uninitialised = region.once = true;
        for (uint32_t index : stretch.buffers) {
            const ms_buffer &buffer = dispatch.buffers[index];
            const uint64_t offset = reinterpret_cast<uintptr_t>(buffer.data) - stretch.low;
            region.parts.push_back({&buffer, index, offset});
            region.constant &= (buffer.flags & MS_BUFFER_CONSTANT) != 0;
            region.output |= (buffer.flags & MS_BUFFER_OUTPUT) != 0;
            region.uninitialised &= (buffer.flags & MS_BUFFER_OUTPUT) != 0;
            region.once &= (buffer.flags & MS_BUFFER_WRITE_MANY) == 0;
            bound_[index] = region.base + offset;
        }
        region.once &= region.output;
        region.name = name_of(region.parts[0]);
        if (region.bytes) memcpy(region.base, reinterpret_cast<void *>(stretch.low), region.bytes);
        region_of_slot_.push_back(&region);
    }
    Dl_info info;
    if (dladdr(reinterpret_cast<void *>(dispatch.entry), &info)) library_ = reinterpret_cast<uintptr_t>(info.dli_fbase);
    return true;
}

void Checker::finish(bool complete) {
    for (Region &region : regions_) {
        for (const Part &part : region.parts) {
            const ms_buffer &buffer = *part.buffer;
            if (!buffer.data || !buffer.bytes) continue;
            if (region.written && !(buffer.flags & MS_BUFFER_CONSTANT))
                memcpy(buffer.data, region.base + part.offset, buffer.bytes);
            if (!complete || !(buffer.flags & MS_BUFFER_OUTPUT)) continue;
            uint64_t missing = 0, stretches = 0, first = 0;
            bool inside = false;
            for (uint64_t at = 0; at < buffer.bytes;) {
                // A cell may reach over the ends of this part.
                const uint64_t here = part.offset + at;
                const uint64_t end = region.cells ? ((here >> region.shift) + 1) << region.shift : region.bytes;
                const uint64_t length = std::min(end - here, buffer.bytes - at);
                const bool written = region.cells && serials_.hold(region.cells[here >> region.shift].write);
                if (!written) {
                    if (!missing) first = at;
                    missing += length;
                    stretches += !inside;
                }
                inside = !written;
                at += length;
            }
            if (!missing) continue;
            ms_finding finding = new_finding(MS_UNWRITTEN, name_of(part));
            finding.offset = first;
            finding.bytes = missing;
            finding.count = stretches;
            set_detail(finding, "%" PRIu64 " of %" PRIu64 " bytes were never written, in %" PRIu64 " stretches",
                       missing, buffer.bytes, stretches);
            w_.run->findings.add(finding);
        }
    }
}

ms_access Checker::here(uint64_t bytes, uint32_t flags, const void *place) const {
    ms_access access{};
    if (flags & AT_SITE) access.site = static_cast<const ms_site *>(place);
    else access.pc = reinterpret_cast<uint64_t>(place);
    access.group = w_.group.position;
    access.thread = w_.places[w_.current->index];
    access.bytes = static_cast<uint32_t>(bytes);
    access.is_write = (flags & WRITE) != 0;
    access.is_atomic = (flags & ATOMIC) != 0;
    return access;
}

ms_finding Checker::finding_at(ms_finding_kind kind, const Region &region, uint64_t offset) const {
    for (const Part &part : region.parts)
        if (offset >= part.offset && offset < part.offset + part.buffer->bytes) {
            ms_finding finding = new_finding(kind, name_of(part));
            finding.offset = offset - part.offset;
            return finding;
        }
    ms_finding finding = new_finding(kind, region.name);
    finding.offset = offset;
    return finding;
}

Region *Checker::group_region(const char *address) {
    const GroupVariable *variable = w_.memory.nearest(address);
    if (!variable) return nullptr;
    const size_t number = w_.memory.number_of(variable);
    while (group_regions_.size() <= number) group_regions_.emplace_back();
    Region &region = group_regions_[number];
    if (!region.base) {
        region.base = variable->data;
        region.bytes = variable->bytes;
        region.space = GROUP;
        region.uninitialised = true;
        region.name = variable->name;
    }
    return &region;
}

bool Checker::access(const void *address, uint64_t bytes, uint32_t flags, const void *place) {
    last_address_ = address;
    last_place_ = place;
    last_bytes_ = bytes;
    last_flags_ = flags;
    last_reported_ = false;
    if (bytes == 0) return true;
    const uint64_t slot = space_->slot_of(address);
    if (slot >= space_->slots()) return elsewhere(address, bytes, flags, place);
    const char *at = static_cast<const char *>(address);
    Region *region;
    ms_counters &counters = w_.counters;
    const uint64_t buffer = slot - FIRST_BUFFER_SLOT;
    if (slot >= FIRST_BUFFER_SLOT) {
        if (buffer >= region_of_slot_.size()) return outside(nullptr, "", address, bytes, flags, place);
        region = region_of_slot_[buffer];
        if (flags & READ) (region->constant ? counters.constant_read : counters.device_read) += bytes;
        if (flags & WRITE) counters.device_written += bytes;
    } else if (slot == ARENA_SLOT) {
        const size_t stretch = static_cast<size_t>(at - arena_) / VARIABLE_STRIDE;
        region = stretch < arena_regions_.size() ? arena_regions_[stretch] : nullptr;
        if (!region || at < region->base || at + bytes > region->base + region->bytes) {
            region = group_region(at);
            if (!region) return outside(nullptr, "threadgroup memory", address, bytes, flags, place);
            if (stretch < arena_regions_.size() && at >= region->base && at < region->base + region->bytes)
                arena_regions_[stretch] = region;
        }
        if (flags & READ) counters.group_read += bytes;
        if (flags & WRITE) counters.group_written += bytes;
    } else {
        const bool own = at >= reinterpret_cast<char *>(bound_) &&
                         at + bytes <= reinterpret_cast<char *>(bound_ + w_.run->dispatch->buffer_count);
        if (own && !(flags & WRITE)) return true;
        return outside(nullptr, "", address, bytes, flags, place);
    }
    if (at < region->base || at + bytes > region->base + region->bytes)
        return outside(region, nullptr, address, bytes, flags, place);
    const uint64_t offset = static_cast<uint64_t>(at - region->base);
    // The instrumentation calls the aligned entry point from an alignment of 8 on.
    const uint64_t alignment = flags & ANY_ALIGNMENT ? 1 : flags & ATOMIC ? bytes : std::min<uint64_t>(bytes, 8);
    if (reinterpret_cast<uintptr_t>(at) % alignment) {
        ms_finding finding = finding_at(MS_MISALIGNED, *region, offset);
        finding.first = here(bytes, flags, place);
        finding.bytes = bytes;
        set_detail(finding, "an access of %" PRIu64 " bytes, aligned to them, at an address that is %" PRIu64
                            " more than a multiple", bytes, reinterpret_cast<uintptr_t>(at) % alignment);
        w_.run->findings.add(finding);
        // The processor would do it all the same; not so a locked or a vector instruction.
        if (flags & ATOMIC) return false;
    }
    return touch(*region, offset, bytes, flags, place);
}

Region *Checker::region_at(const void *address) {
    const uint64_t slot = space_->slot_of(address);
    if (slot == ARENA_SLOT) return group_region(static_cast<const char *>(address));
    const uint64_t buffer = slot - FIRST_BUFFER_SLOT;
    return slot >= FIRST_BUFFER_SLOT && buffer < region_of_slot_.size() ? region_of_slot_[buffer] : nullptr;
}

bool Checker::readable(const void *address, uint64_t bytes) {
    const char *at = static_cast<const char *>(address);
    const Region *region = region_at(address);
    return region && at >= region->base && at + bytes <= region->base + region->bytes;
}

ms_finding Checker::finding_near(ms_finding_kind kind, const void *address) {
    const Region *region = region_at(address);
    if (!region) return new_finding(kind, "");
    return finding_at(kind, *region, static_cast<uint64_t>(static_cast<const char *>(address) - region->base));
}

bool Checker::outside(const Region *region, const char *name, const void *address, uint64_t bytes, uint32_t flags,
                      const void *place) {
    last_reported_ = true;
    ms_finding finding = new_finding(MS_OUT_OF_BOUNDS, name);
    finding.first = here(bytes, flags, place);
    finding.bytes = bytes;
    if (!region) {
        set_detail(finding, "%" PRIu64 " bytes at an address in no buffer and no threadgroup variable", bytes);
        w_.run->findings.add(finding);
        return false;
    }
    const char *at = static_cast<const char *>(address);
    // Of several buffers in one stretch of memory, the one whose end is nearest is meant.
    const char *base = region->base;
    uint64_t size = region->bytes;
    const char *known = region->name;
    if (!region->parts.empty()) {
        for (const Part &part : region->parts) {
            const bool nearer = at < region->base ? part.offset == 0
                                                  : part.offset + part.buffer->bytes == region->bytes;
            if (!nearer) continue;
            base = region->base + part.offset;
            size = part.buffer->bytes;
            known = name_of(part);
            break;
        }
    }
    ms_finding named = new_finding(MS_OUT_OF_BOUNDS, known);
    named.first = finding.first;
    named.bytes = bytes;
    const int64_t offset = at - base;
    const int64_t past = offset + static_cast<int64_t>(bytes) - static_cast<int64_t>(size);
    named.offset = static_cast<uint64_t>(offset < 0 ? offset : past);
    set_detail(named, "%s %" PRIu64 " bytes at byte %" PRId64 "; it has %" PRIu64 " bytes",
               flags & WRITE ? "writes" : "reads", bytes, offset, size);
    w_.run->findings.add(named);
    if (flags & WRITE) wrote_outside_ = true;
    const char *low = region->base - AddressSpace::SLACK, *high = region->base + region->bytes + AddressSpace::SLACK;
    return at >= low && at + bytes <= high;
}

bool Checker::in_program(const void *address, bool *kernel_library) {
    const uintptr_t page = reinterpret_cast<uintptr_t>(address) >> 12;
    auto known = images_.find(page);
    if (known == images_.end()) {
        Dl_info info;
        const bool found = dladdr(address, &info) != 0;
        known = images_.emplace(page, found ? reinterpret_cast<uintptr_t>(info.dli_fbase) : 0).first;
    }
    *kernel_library = known->second == library_;
    return known->second != 0;
}

bool Checker::elsewhere(const void *address, uint64_t bytes, uint32_t flags, const void *place) {
    const char *at = static_cast<const char *>(address);
    const Stack &stack = *w_.current->stack;
    if (at >= stack.low && at + bytes <= stack.high) return true;
    const char *what = "";
    bool library = false;
    if (w_.stacks->holds(address)) {
        what = "memory of another thread";
    } else if (in_program(address, &library)) {
        if (!(flags & WRITE)) return true;
        if (library) {
            last_reported_ = true;
            ms_finding finding = new_finding(MS_WRITE_TO_CONSTANT, "program constant");
            finding.first = here(bytes, flags, place);
            finding.bytes = bytes;
            set_detail(finding, "a write to a constant of the program");
            w_.run->findings.add(finding);
            return false;
        }
    }
    return outside(nullptr, what, address, bytes, flags, place);
}

void Checker::fault(const Fault &fault) {
    if (last_reported_) return;
    const uint64_t address = reinterpret_cast<uint64_t>(last_address_);
    ms_finding finding;
    if (last_bytes_ == 16 && address % 16 && !(last_flags_ & ANY_ALIGNMENT)) {
        const Region *region = region_at(last_address_);
        finding = region ? finding_at(MS_MISALIGNED, *region, address - reinterpret_cast<uint64_t>(region->base))
                         : new_finding(MS_MISALIGNED, "thread memory");
        set_detail(finding, "an access of 16 bytes, aligned to them, at an address that is %" PRIu64
                            " more than a multiple; the thread was ended", address % 16);
        finding.first = here(16, last_flags_, last_place_);
        finding.bytes = 16;
    } else {
        finding = new_finding(MS_OUT_OF_BOUNDS, "");
        finding.first = here(0, 0, reinterpret_cast<const void *>(fault.pc));
        set_detail(finding, "a fault at address 0x%" PRIx64 "; the thread was ended", fault.address);
    }
    w_.run->findings.add(finding);
}

}  // namespace metalsim
