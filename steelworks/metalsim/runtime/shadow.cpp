#include "shadow.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>

namespace metalsim {
namespace {

constexpr uint64_t LEAST_BLOCK = 1 << 16, MOST_KEPT = uint64_t(1) << 30, HUGE_PAGE = 2 << 20;

std::mutex mutex;
std::vector<ShadowBlock> kept;
uint64_t kept_bytes = 0;
uint64_t next_serial = 1;
uint32_t numbering = 0;

void drop(const ShadowBlock &block) { munmap(block.memory, block.bytes); }

// A block of at least `bytes`, with records of earlier runs in it or zero.
ShadowBlock take_block(uint64_t bytes) {
    {
        std::lock_guard<std::mutex> guard(mutex);
        size_t best = kept.size();
        for (size_t i = 0; i < kept.size(); ++i) {
            const bool fits = kept[i].bytes >= bytes && kept[i].bytes / 8 <= bytes + LEAST_BLOCK;
            if (fits && (best == kept.size() || kept[i].bytes < kept[best].bytes)) best = i;
        }
        if (best < kept.size()) {
            const ShadowBlock block = kept[best];
            kept[best] = kept.back();
            kept.pop_back();
            kept_bytes -= block.bytes;
            return block;
        }
    }
    uint64_t size = LEAST_BLOCK;
    while (size < bytes && size < (uint64_t(64) << 20)) size *= 2;
    if (size < bytes) size = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    void *mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (mapped == MAP_FAILED) return {};
#ifdef MADV_HUGEPAGE
    if (size >= HUGE_PAGE) madvise(mapped, size, MADV_HUGEPAGE);
#endif
    return {mapped, size};
}

}  // namespace

Serials Serials::take(uint64_t count) {
    std::lock_guard<std::mutex> guard(mutex);
    if (next_serial + count >= uint64_t(1) << 32) {
        for (const ShadowBlock &block : kept) drop(block);
        kept.clear();
        kept_bytes = 0;
        next_serial = 1;
        ++numbering;
    }
    Serials serials;
    serials.first = static_cast<uint32_t>(next_serial);
    serials.count = static_cast<uint32_t>(count);
    serials.generation = numbering;
    next_serial += count;
    return serials;
}

void ShadowBlock::give(const Serials &serials) {
    if (!memory) return;
    {
        std::lock_guard<std::mutex> guard(mutex);
        if (serials.generation == numbering && kept_bytes + bytes <= MOST_KEPT) {
            kept.push_back(*this);
            kept_bytes += bytes;
            return;
        }
    }
    drop(*this);
}

void Region::release(const Serials &serials) {
    memory.give(serials);
    memory = {};
    cells = nullptr;
}

bool Region::fit(uint64_t offset, uint64_t size, const Serials &serials, std::vector<ShadowBlock> &outgrown) {
    const uint32_t fits = std::min<uint32_t>(4, static_cast<uint32_t>(__builtin_ctzll(offset | size)));
    if (cells && fits >= shift) return true;
    const uint64_t count = (bytes >> fits) + 1;
    const ShadowBlock block = take_block(count * sizeof(Cell));
    if (!block.memory) return false;
    Cell *finer = static_cast<Cell *>(block.memory);
    if (cells) {
        const uint32_t step = shift - fits;
        for (uint64_t i = 0; i < count; ++i) {
            const Cell &old = cells[i >> step];
            if (serials.hold(old.write) || serials.hold(old.read)) finer[i] = old;
        }
    }
    if (memory.memory) outgrown.push_back(memory);
    memory = block;
    cells = finer;
    shift = fits;
    return true;
}

}  // namespace metalsim
