// Findings of a run: kept once for each kind, variable and pair of places, with a count.
#pragma once
#include <stdint.h>

#include <mutex>
#include <unordered_map>
#include <vector>

#include "metalsim.h"

namespace metalsim {

class Findings {
public:
    void start(uint32_t most);
    // Adds the finding, or counts it on an equal one. Two findings are equal if kind, variable and the unordered pair
    // of places are; for kinds that speak of a whole buffer (unwritten, written twice) if kind and variable are.
    void add(const ms_finding &finding);
    std::vector<ms_finding> take();

private:
    struct Key {
        uint32_t kind;
        uint64_t variable, low, high;
        bool operator==(const Key &o) const {
            return kind == o.kind && variable == o.variable && low == o.low && high == o.high;
        }
    };
    struct Hash {
        size_t operator()(const Key &key) const;
    };
    std::mutex mutex_;
    std::unordered_map<Key, size_t, Hash> index_;
    std::vector<ms_finding> list_;
    uint32_t most_ = 0;
};

ms_finding new_finding(ms_finding_kind kind, const char *variable);
void set_detail(ms_finding &finding, const char *format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace metalsim
