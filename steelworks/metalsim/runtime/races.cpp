// Which accesses conflict. Two accesses of one byte by different threads are ordered only by a barrier that both passed
// in between and that fences the memory they are in, or by atomics between fences (ordering.h).
#include <inttypes.h>

#include <algorithm>

#include "checker.h"

namespace metalsim {
namespace {

uint64_t stamp(const Worker &w, uint32_t space) {
    return w.current->index | uint64_t(w.group.epoch[space] & 0xFFFFFFu) << 16 |
           uint64_t(w.simd->epoch[space] & 0xFFFFFFu) << 40;
}

bool ordered(const Record &before, uint32_t group, uint64_t when) {
    if (before.group != group) return false;
    const Record now{group, 0, when};
    if (before.thread() == now.thread()) return true;
    if (before.group_epoch() < now.group_epoch()) return true;
    return before.thread() / MS_SIMD_WIDTH == now.thread() / MS_SIMD_WIDTH && before.simd_epoch() < now.simd_epoch();
}

bool same_interval(const Record &before, uint32_t group, uint64_t when) {
    return before.group == group && before.thread() == (when & Record::THREAD) &&
           (before.when & Record::EPOCHS) == (when & Record::EPOCHS);
}

// Was there a non-atomic access behind this record that counts for a thread of `group`?
bool plain(const Record &record, uint32_t group) {
    return record.when & (record.group == group ? Record::PLAIN : Record::PLAIN | Record::GROUP_PLAIN);
}

bool stored(const Record &record, uint32_t group) {
    return record.when & (record.group == group ? Record::STORED : Record::STORED | Record::GROUP_STORED);
}

}  // namespace

bool Checker::touch(Region &region, uint64_t offset, uint64_t bytes, uint32_t flags, const void *place) {
    if (region.constant) {
        if (!(flags & WRITE)) return true;
        last_reported_ = true;
        ms_finding finding = finding_at(MS_WRITE_TO_CONSTANT, region, offset);
        finding.first = here(bytes, flags, place);
        finding.bytes = bytes;
        w_.run->findings.add(finding);
        return true;  // the memory is a copy
    }
    const bool fits = region.cells && !((offset | bytes) & ((uint64_t(1) << region.shift) - 1));
    if (!fits && !region.fit(offset, bytes, serials_, outgrown_)) {
        w_.run->fail("out of memory for checking mode");
        leave_run(w_);
    }
    if (flags & WRITE) region.written = true;
    Current current;
    current.group = static_cast<uint32_t>(w_.group.serial);
    current.when = stamp(w_, region.space) | (flags & ATOMIC ? Record::IS_ATOMIC : Record::PLAIN) |
                   (flags & OVERWRITES ? Record::STORED : 0) | (flags & AT_SITE ? Record::AT_SITE : 0);
    const uintptr_t distance = reinterpret_cast<uintptr_t>(place) - library_;
    current.place = distance >> 32 ? 0 : static_cast<uint32_t>(distance);
    current.flags = flags;
    current.reported = 0;
    current.bytes = bytes;
    current.address = place;
    Cell *cell = region.cells + (offset >> region.shift);
    Cell *const end = region.cells + ((offset + bytes - 1) >> region.shift) + 1;
    if ((flags & RANGE) && (flags & READ)) {
        // A copy of a struct reads its padding too: only a copy of nothing but uninitialised bytes is a finding.
        for (const Cell *c = cell; c != end; ++c) {
            const bool known = region.space == GROUP ? c->write.group == current.group : serials_.hold(c->write);
            if (known) current.reported |= 1u << MS_UNINITIALISED;
        }
    }
    for (; cell != end; ++cell, offset += uint64_t(1) << region.shift) check_cell(region, *cell, offset, current);
    return true;
}

void Checker::check_cell(Region &region, Cell &cell, uint64_t offset, Current &current) {
    const uint32_t group = current.group;
    const bool own_group_only = region.space == GROUP;  // what other threadgroups left there is gone
    const bool atomic = current.flags & ATOMIC;
    const bool writes = current.flags & WRITE;
    const Record &write = cell.write;
    if (own_group_only ? write.group == group : serials_.hold(write)) {
        if (!ordered(write, group, current.when) && !ordering_.covers(w_, write, region.space)) {
            if (!atomic || plain(write, group)) {
                conflict(region, offset, write, true, current);
            } else if (writes && (stored(write, group) || (current.flags & OVERWRITES)) &&
                       !((current.flags & SAME_VALUE) && stored(write, group))) {
                report(MS_ORDER_DEPENDENT_ATOMIC, region, offset, &write, true, current);
            }
        }
        if (writes && region.once) report(MS_WRITTEN_TWICE, region, offset, &write, true, current);
    } else if ((current.flags & READ) && region.uninitialised) {
        report(MS_UNINITIALISED, region, offset, nullptr, false, current);
    }
    if (!writes) {
        note_read(region, cell, current);
        return;
    }
    for (const Record *read : {&cell.read, &cell.second_read, &cell.foreign_read}) {
        if (own_group_only ? read->group != group : !serials_.hold(*read)) continue;
        if (!ordered(*read, group, current.when) && (!atomic || plain(*read, group)) &&
            !ordering_.covers(w_, *read, region.space))
            conflict(region, offset, *read, false, current);
    }
    note_write(cell, current);
}

void Checker::note_read(const Region &region, Cell &cell, const Current &current) {
    Record now{current.group, current.place, current.when};
    Record &read = cell.read, &second = cell.second_read;
    if (read.group != now.group) {
        if (region.space == DEVICE && serials_.hold(read)) cell.foreign_read = read;
        read = now;
        second = Record{};
        return;
    }
    if (read.thread() == now.thread()) {
        if (same_interval(read, now.group, now.when)) now.when |= read.when & Record::PLAIN;
        now.when |= read.when & (Record::PLAIN | Record::GROUP_PLAIN) ? Record::GROUP_PLAIN : 0;
        read = now;
        return;
    }
    const bool same_epoch = read.group_epoch() == now.group_epoch();
    // An atomic read conflicts with less than a plain one, so it does not push that out.
    if (same_epoch && (read.when & Record::PLAIN) && !(now.when & Record::PLAIN)) return;
    const auto simd = [](const Record &record) { return record.thread() / MS_SIMD_WIDTH; };
    const bool second_counts = second.group == now.group && second.group_epoch() == now.group_epoch() &&
                               (second.when & Record::PLAIN);
    const bool keeps_other_simdgroup = second_counts && simd(second) != simd(now) && simd(read) == simd(now);
    if (!keeps_other_simdgroup) second = read;
    now.when |= read.when & (Record::PLAIN | Record::GROUP_PLAIN) ? Record::GROUP_PLAIN : 0;
    read = now;
}

void Checker::note_write(Cell &cell, const Current &current) {
    Record now{current.group, current.place, current.when};
    const Record &before = cell.write;
    if (before.group == now.group) {
        if (same_interval(before, now.group, now.when)) now.when |= before.when & (Record::PLAIN | Record::STORED);
        if (before.when & (Record::PLAIN | Record::GROUP_PLAIN)) now.when |= Record::GROUP_PLAIN;
        if (before.when & (Record::STORED | Record::GROUP_STORED)) now.when |= Record::GROUP_STORED;
    }
    cell.write = now;
}

void Checker::conflict(Region &region, uint64_t offset, const Record &before, bool before_writes, Current &current) {
    const ms_finding_kind kind = before.group != current.group  ? MS_RACE_BETWEEN_GROUPS
                                 : region.space == GROUP        ? MS_RACE_THREADGROUP
                                                                : MS_RACE_DEVICE;
    report(kind, region, offset, &before, before_writes, current);
}

ms_access Checker::access_of_record(const Record &record, bool writes) const {
    ms_access access{};
    const uint64_t place = record.place ? library_ + record.place : 0;
    if (record.when & Record::AT_SITE) access.site = reinterpret_cast<const ms_site *>(place);
    else access.pc = place;
    const Place group = place_of_group(*w_.run, record.group - serials_.first);
    access.group = group.position;
    const uint32_t index = record.thread();
    access.thread = {index % group.shape.x, index / group.shape.x % group.shape.y,
                     index / group.shape.x / group.shape.y};
    access.is_write = writes;
    access.is_atomic = (record.when & Record::IS_ATOMIC) != 0;
    return access;
}

// Once for each kind and access: the cells of one vector have one story.
void Checker::report(ms_finding_kind kind, const Region &region, uint64_t offset, const Record *before,
                     bool before_writes, Current &current) {
    const uint64_t unit = std::min(uint64_t(1) << region.shift, region.bytes - offset);
    const bool again = current.reported >> kind & 1;
    if (again && kind != MS_WRITTEN_TWICE) return;
    current.reported |= 1u << kind;
    ms_finding finding = finding_at(kind, region, offset);
    finding.bytes = kind == MS_WRITTEN_TWICE ? unit : current.bytes;
    finding.count = again ? 0 : 1;
    const ms_access now = here(current.bytes, current.flags, current.address);
    if (before) {
        finding.first = access_of_record(*before, before_writes);
        finding.first.bytes = static_cast<uint32_t>(current.bytes);
        finding.second = now;
    } else {
        finding.first = now;
    }
    w_.run->findings.add(finding);
}

}  // namespace metalsim
