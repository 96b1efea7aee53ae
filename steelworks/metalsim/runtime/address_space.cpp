#include "address_space.h"

#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>

namespace metalsim {
namespace {

constexpr uint32_t WIDEST_SHIFT = 36, NARROWEST_SHIFT = 27;  // 64 GiB: any 32-bit index of 8-byte elements stays inside
constexpr uintptr_t PAGE = 16384;                            // the largest page size in use
constexpr uint64_t MOST_KEPT = uint64_t(2) << 30;            // bytes open in a space that is kept
constexpr size_t MOST_SPACES = 2;

std::mutex mutex;
std::vector<std::unique_ptr<AddressSpace>> kept;

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

}  // namespace

AddressSpace::~AddressSpace() {
    if (reserved_) munmap(reinterpret_cast<void *>(base_), reserved_);
}

bool AddressSpace::reserve(uint32_t slots, uint64_t largest) {
    for (uint32_t shift = WIDEST_SHIFT; shift >= NARROWEST_SHIFT; --shift) {
        const uint64_t stride = uint64_t(1) << shift;
        if (stride < 2 * (largest + SLACK + PAGE)) return false;
        void *mapped = mmap(nullptr, slots * stride, PROT_NONE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
        if (mapped == MAP_FAILED) continue;
        base_ = reinterpret_cast<uintptr_t>(mapped);
        reserved_ = slots * stride;
        slots_ = slots;
        shift_ = shift;
        slot_.resize(slots);
        return true;
    }
    return false;
}

char *AddressSpace::open(uint32_t number, uint64_t bytes, uintptr_t like) {
    const uintptr_t middle = base_ + (uintptr_t(number) << shift_) + (uintptr_t(1) << (shift_ - 1));
    const uintptr_t place = (middle & ~(PAGE - 1)) + like % 4096;
    const uintptr_t low = (place - SLACK) & ~(PAGE - 1), high = (place + bytes + SLACK + PAGE - 1) & ~(PAGE - 1);
    Slot &slot = slot_[number];
    if (low < slot.open_low || high > slot.open_high || !slot.open_high) {
        if (mprotect(reinterpret_cast<void *>(low), high - low, PROT_READ | PROT_WRITE) != 0) return nullptr;
        slot.open_low = slot.open_high ? std::min(slot.open_low, low) : low;
        slot.open_high = std::max(slot.open_high, high);
    }
    // The caller fills all of [place, place + bytes); what is left of an earlier use lies beside it.
    const auto zero = [](uintptr_t from, uintptr_t to) {
        if (from < to) memset(reinterpret_cast<void *>(from), 0, to - from);
    };
    zero(slot.used_low, std::min(slot.used_high, place));
    zero(std::max(slot.used_low, place + bytes), slot.used_high);
    slot.used_low = place;
    slot.used_high = place + bytes;
    return reinterpret_cast<char *>(place);
}

std::unique_ptr<AddressSpace> AddressSpace::take(uint32_t slots, uint64_t largest) {
    std::unique_ptr<AddressSpace> space;
    {
        std::lock_guard<std::mutex> guard(mutex);
        if (!kept.empty()) {
            space = std::move(kept.back());
            kept.pop_back();
        }
    }
    const bool fits = space && space->slots_ >= slots && (uint64_t(1) << space->shift_) >= 2 * (largest + SLACK + PAGE);
    if (fits) return space;
    space.reset(new AddressSpace);
    if (!space->reserve(slots, largest)) space.reset();
    return space;
}

void AddressSpace::give(std::unique_ptr<AddressSpace> space) {
    uint64_t used = 0;
    for (const Slot &slot : space->slot_) used += slot.open_high - slot.open_low;
    if (used > MOST_KEPT) return;
    std::lock_guard<std::mutex> guard(mutex);
    if (kept.size() < MOST_SPACES) kept.push_back(std::move(space));
}

}  // namespace metalsim
