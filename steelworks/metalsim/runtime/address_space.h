// Where buffers live in checking mode: each in a slot of its own, gigabytes from the next, so that a stray address
// still tells which buffer it strayed from. Around a buffer lies memory that may be touched without harm; beyond that a
// touch faults.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <vector>

namespace metalsim {

class AddressSpace {
public:
    AddressSpace() = default;
    ~AddressSpace();
    AddressSpace(const AddressSpace &) = delete;
    AddressSpace &operator=(const AddressSpace &) = delete;

    static constexpr size_t SLACK = size_t(16) << 20;  // harmless bytes on either side

    // One with room for `slots` slots that hold up to `largest` bytes each, perhaps used before. Null if the system
    // refuses. A page that is touched for the first time is dear, so they are kept.
    static std::unique_ptr<AddressSpace> take(uint32_t slots, uint64_t largest);
    static void give(std::unique_ptr<AddressSpace> space);

    // The place of slot `slot`: `bytes` bytes at an address that equals `like` modulo 4096. Zero around it. Null if
    // memory is short.
    char *open(uint32_t slot, uint64_t bytes, uintptr_t like);

    // The slot of an address, or one >= slots() if it is in none.
    uint64_t slot_of(const void *address) const {
        return (reinterpret_cast<uintptr_t>(address) - base_) >> shift_;
    }
    uint64_t slots() const { return slots_; }

private:
    struct Slot {
        uintptr_t open_low = 0, open_high = 0;  // what may be touched
        uintptr_t used_low = 0, used_high = 0;  // what may not be zero
    };
    bool reserve(uint32_t slots, uint64_t largest);

    std::vector<Slot> slot_;
    uintptr_t base_ = 0;
    uint64_t slots_ = 0, reserved_ = 0;
    uint32_t shift_ = 63;
};

}  // namespace metalsim
