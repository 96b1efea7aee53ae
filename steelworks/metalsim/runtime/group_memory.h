// Threadgroup variables of the running group. The place of a variable is found at its first use and stays for the run.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "metalsim.h"

namespace metalsim {

struct GroupVariable {
    const void *key;
    const char *name;
    size_t bytes, align;
    char *data;
    const ms_site *site;
};

class GroupMemory {
public:
    static constexpr size_t CAPACITY = 1 << 20;  // far above Metal's limit, which is a finding and not a crash

    ~GroupMemory();
    // `base` null: variables are packed into memory of our own. Otherwise each starts at a multiple of `stride` of
    // `base`, so that an access past its end meets no other variable.
    bool start_run(char *base, size_t capacity, size_t stride);
    // Fills all variables with 0xFF.
    void start_group();

    // Null if the variable is not known yet.
    const GroupVariable *find(const void *key) const {
        for (size_t at = hash(key);; ++at) {
            const uint16_t number = table_[at % TABLE];
            if (number == 0) return nullptr;
            if (variables_[number - 1].key == key) return &variables_[number - 1];
        }
    }
    // Null if there is no room.
    const GroupVariable *add(const void *key, const char *name, size_t bytes, size_t align, const ms_site *site);

    // The variable whose stretch of the arena holds the address, if variables lie apart.
    const GroupVariable *nearest(const char *address) const;
    const std::vector<GroupVariable> &variables() const { return variables_; }
    size_t number_of(const GroupVariable *variable) const { return static_cast<size_t>(variable - variables_.data()); }
    // As Metal lays them out: packed, each at its own alignment.
    size_t packed_bytes() const { return packed_; }

private:
    static constexpr size_t TABLE = 1024, MOST_VARIABLES = 512;
    static size_t hash(const void *key) {
        return static_cast<size_t>((reinterpret_cast<uintptr_t>(key) * 0x9E3779B97F4A7C15u) >> 48);
    }
    char *own_ = nullptr, *base_ = nullptr;
    size_t capacity_ = 0, stride_ = 0, used_ = 0, packed_ = 0;
    std::vector<GroupVariable> variables_;
    std::vector<uint16_t> owner_;  // of each stride of the arena: number of the variable + 1
    uint16_t table_[TABLE] = {};
};

}  // namespace metalsim
