#include "findings.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <utility>

namespace metalsim {
namespace {

constexpr uint32_t DEFAULT_MOST = 256;

uint64_t place(const ms_access &access) {
    return access.site ? reinterpret_cast<uint64_t>(access.site) : access.pc;
}

uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
    return hash ^ (hash >> 29);
}

uint64_t text_hash(const char *text) {
    uint64_t hash = 0;
    for (; *text; ++text) hash = mix(hash, static_cast<unsigned char>(*text));
    return hash;
}

}  // namespace

size_t Findings::Hash::operator()(const Key &key) const {
    return mix(mix(mix(mix(0, key.kind), key.variable), key.low), key.high);
}

void Findings::start(uint32_t most) {
    most_ = most ? most : DEFAULT_MOST;
    index_.clear();
    list_.clear();
}

void Findings::add(const ms_finding &finding) {
    Key key{finding.kind, text_hash(finding.variable), 0, 0};
    if (finding.kind != MS_UNWRITTEN && finding.kind != MS_WRITTEN_TWICE) {
        key.low = place(finding.first);
        key.high = place(finding.second);
        if (key.low > key.high) std::swap(key.low, key.high);
    }
    std::lock_guard<std::mutex> guard(mutex_);
    auto at = index_.find(key);
    if (at != index_.end()) {
        ms_finding &known = list_[at->second];
        known.count += finding.count;
        if (finding.kind == MS_WRITTEN_TWICE || finding.kind == MS_UNWRITTEN) known.bytes += finding.bytes;
        return;
    }
    if (list_.size() >= most_) return;
    index_.emplace(key, list_.size());
    list_.push_back(finding);
}

std::vector<ms_finding> Findings::take() { return std::move(list_); }

ms_finding new_finding(ms_finding_kind kind, const char *variable) {
    ms_finding finding;
    memset(&finding, 0, sizeof finding);
    finding.kind = kind;
    finding.count = 1;
    if (variable) snprintf(finding.variable, sizeof finding.variable, "%s", variable);
    return finding;
}

void set_detail(ms_finding &finding, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(finding.detail, sizeof finding.detail, format, arguments);
    va_end(arguments);
}

}  // namespace metalsim
