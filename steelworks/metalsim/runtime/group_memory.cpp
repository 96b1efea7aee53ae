#include "group_memory.h"

#include <string.h>
#include <sys/mman.h>

#include <algorithm>

#include "state.h"

namespace metalsim {
namespace {

size_t up(size_t value, size_t align) { return align < 2 ? value : (value + align - 1) / align * align; }

}  // namespace

GroupMemory::~GroupMemory() {
    if (own_) munmap(own_, CAPACITY);
}

bool GroupMemory::start_run(char *base, size_t capacity, size_t stride) {
    if (!base) {
        if (!own_) {
            void *mapped = mmap(nullptr, CAPACITY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
            if (mapped == MAP_FAILED) return false;
            own_ = static_cast<char *>(mapped);
        }
        base = own_;
        capacity = CAPACITY;
        stride = 0;
    }
    base_ = base;
    capacity_ = capacity;
    stride_ = stride;
    used_ = packed_ = 0;
    variables_.clear();
    variables_.reserve(MOST_VARIABLES);  // pointers to variables stay valid
    owner_.clear();
    memset(table_, 0, sizeof table_);
    return true;
}

void GroupMemory::start_group() {
    if (stride_ == 0) {
        memset(base_, 0xFF, used_);
        return;
    }
    for (const GroupVariable &variable : variables_) memset(variable.data, 0xFF, variable.bytes);
}

const GroupVariable *GroupMemory::add(const void *key, const char *name, size_t bytes, size_t align,
                                      const ms_site *site) {
    if (variables_.size() == MOST_VARIABLES) return nullptr;
    // 16: a vector load of any type is aligned if its index is.
    const size_t at = up(used_, stride_ ? stride_ : std::max<size_t>(align, 16));
    if (at > capacity_ || bytes > capacity_ - at) return nullptr;
    variables_.push_back({key, name, bytes, align, base_ + at, site});
    packed_ = up(packed_, align) + bytes;
    used_ = at + (stride_ ? up(bytes + 1, stride_) : bytes);
    memset(base_ + at, 0xFF, bytes);
    const uint16_t number = static_cast<uint16_t>(variables_.size());
    if (stride_) owner_.resize(used_ / stride_, number);
    size_t slot = hash(key);
    while (table_[slot % TABLE]) ++slot;
    table_[slot % TABLE] = number;
    return &variables_.back();
}

const GroupVariable *GroupMemory::nearest(const char *address) const {
    if (variables_.empty() || stride_ == 0) return nullptr;
    if (address < base_) return &variables_.front();
    const size_t offset = static_cast<size_t>(address - base_);
    // The upper half of a stretch belongs to the next variable: an index below 0 is as likely as one too large.
    const size_t at = (offset + stride_ / 2) / stride_;
    const GroupVariable *here = &variables_[owner_[std::min(offset / stride_, owner_.size() - 1)] - 1u];
    if (at >= owner_.size() || address < here->data + here->bytes) return here;
    return &variables_[owner_[at] - 1u];
}

}  // namespace metalsim

extern "C" void *ms_group_variable(const void *key, const char *name, size_t bytes, size_t align, const ms_site *site) {
    using namespace metalsim;
    Worker *worker = t_worker;
    const GroupVariable *variable = worker->memory.find(key);
    if (variable) return variable->data;
    const size_t before = worker->memory.packed_bytes();
    variable = worker->memory.add(key, name, bytes, align, site);
    if (!variable) {
        worker->run->fail(std::string("threadgroup variable '") + name + "' of " + std::to_string(bytes) +
                          " bytes does not fit even into the simulator's memory; Metal allows 32768 bytes in all");
        leave_run(*worker);
    }
    const size_t now = worker->memory.packed_bytes();
    if (now > MS_GROUP_MEMORY_LIMIT && before <= MS_GROUP_MEMORY_LIMIT) {
        ms_finding finding = new_finding(MS_GROUP_MEMORY_LIMIT_EXCEEDED, name);
        finding.first = access_of(*worker, *worker->current);
        finding.first.site = site;
        finding.bytes = now;
        set_detail(finding, "threadgroup variables take %zu bytes; a threadgroup has %d", now, MS_GROUP_MEMORY_LIMIT);
        worker->run->findings.add(finding);
    }
    return variable->data;
}
