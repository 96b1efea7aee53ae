#include "ordering.h"

#include <algorithm>

#include "state.h"

namespace metalsim {
namespace {

uint32_t spaces_of(uint32_t fence) {
    return (fence & MS_MEM_DEVICE ? 1u << DEVICE : 0u) | (fence & MS_MEM_THREADGROUP ? 1u << GROUP : 0u);
}

}  // namespace

void Ordering::enter_group(const Worker &w) {
    if (serial_ == w.group.serial) return;
    serial_ = w.group.serial;
    threads_.clear();
    group_.clear();
}

void Ordering::merge(Known &into, const Known &from) {
    const auto before = [](const Entry &a, const Entry &b) {
        return a.group != b.group ? a.group < b.group : a.thread < b.thread;
    };
    Known merged;
    merged.reserve(into.size() + from.size());
    auto a = into.begin();
    auto b = from.begin();
    while (a != into.end() || b != from.end()) {
        if (b == from.end() || (a != into.end() && before(*a, *b))) {
            merged.push_back(*a++);
        } else if (a == into.end() || before(*b, *a)) {
            merged.push_back(*b++);
        } else {
            Entry both = *a++;
            both.spaces |= b->spaces;
            for (uint32_t space = 0; space < SPACES; ++space)
                both.epoch[space] = std::max(both.epoch[space], b->epoch[space]);
            ++b;
            merged.push_back(both);
        }
    }
    into.swap(merged);
}

void Ordering::fence(const Worker &w, uint32_t fence) {
    used_ = true;
    enter_group(w);
    Thread &thread = threads_[w.current->index];
    thread.released |= spaces_of(fence);
    merge(thread.known, thread.pending);
    thread.pending.clear();
}

void Ordering::atomic(const Worker &w, const void *address, bool reads, bool writes, bool replaces) {
    if (!used_) return;
    enter_group(w);
    Thread &thread = threads_[w.current->index];
    if (reads) {
        const auto at = locations_.find(address);
        if (at != locations_.end()) merge(thread.pending, at->second);
    }
    if (!writes) return;
    Known &known = locations_[address];
    if (replaces) known.clear();
    if (!thread.released) return;
    const Group &g = w.group;
    merge(known, thread.known);
    merge(known, group_);
    merge(known, {{static_cast<uint32_t>(g.serial), w.current->index, thread.released,
                   {g.epoch[DEVICE], g.epoch[GROUP]}}});
}

void Ordering::barrier(const Worker &w, uint32_t fence) {
    if (!used_ || !spaces_of(fence)) return;
    enter_group(w);
    for (auto &thread : threads_) {
        merge(group_, thread.second.known);
        thread.second.known.clear();
    }
}

bool Ordering::covers(const Known &known, const Record &record, uint32_t space) {
    auto at = std::lower_bound(known.begin(), known.end(), record.group,
                               [](const Entry &entry, uint32_t group) { return entry.group < group; });
    for (; at != known.end() && at->group == record.group; ++at) {
        if (!(at->spaces >> space & 1)) continue;
        if (at->thread == record.thread() || record.group_epoch() < at->epoch[space]) return true;
    }
    return false;
}

bool Ordering::covers(const Worker &w, const Record &record, uint32_t space) {
    if (!used_) return false;
    enter_group(w);
    const auto thread = threads_.find(w.current->index);
    return covers(group_, record, space) || (thread != threads_.end() && covers(thread->second.known, record, space));
}

}  // namespace metalsim
