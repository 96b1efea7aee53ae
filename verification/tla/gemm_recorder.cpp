// Notes what each GPU thread of one kernel does to memory and at barriers, and hands every call on to metalsim's runtime.
//
// It is linked into the kernel's library, in front of the runtime, and takes the same names: what the kernel calls by
// these names comes here first. The runtime itself is as it is for everyone else.
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "metalsim.h"

namespace {

enum What : uint32_t { READ = 1, WRITE = 2, BARRIER = 4, END = 8 };

struct Note {
    uint32_t group, thread, what;
    int32_t variable;       // a threadgroup variable, or -1 - the number of a buffer
    uint64_t offset, bytes;
    uint32_t line, fence;   // of a barrier
    const char *file;
};

struct Variable {
    const char *data, *name;
    uint64_t bytes;
};

constexpr uint32_t MOST = 64;
Note *notes;
uint64_t count, room;
bool lost;
void *runtime;
ms_entry kernel;
Variable variables[MOST];
uint32_t variable_count;
uint64_t buffer_bytes[MOST];
uint32_t buffer_count;
void *const *bound;

void *real(const char *name) { return dlsym(runtime, name); }

void add(Note note) {
    const ms_thread &self = *ms_self();
    const ms_uint3 at = self.threadgroup_position_in_grid, of = self.threadgroups_per_grid;
    note.group = (at.z * of.y + at.y) * of.x + at.x;
    note.thread = self.thread_index_in_threadgroup;
    if (count == room) {
        const uint64_t more = room ? room * 2 : 4096;
        void *larger = realloc(notes, more * sizeof(Note));
        if (!larger) {
            lost = true;
            return;
        }
        notes = static_cast<Note *>(larger);
        room = more;
    }
    notes[count++] = note;
}

void touch(const void *address, uint64_t bytes, uint32_t what) {
    const char *at = static_cast<const char *>(address);
    for (uint32_t i = 0; i < variable_count; ++i)
        if (at >= variables[i].data && at < variables[i].data + variables[i].bytes) {
            add({0, 0, what, static_cast<int32_t>(i), static_cast<uint64_t>(at - variables[i].data), bytes, 0, 0, nullptr});
            return;
        }
    for (uint32_t i = 0; i < buffer_count; ++i) {
        const char *base = static_cast<const char *>(bound[i]);
        if (at >= base && at < base + buffer_bytes[i]) {
            add({0, 0, what, -1 - static_cast<int32_t>(i), static_cast<uint64_t>(at - base), bytes, 0, 0, nullptr});
            return;
        }
    }
}

void enter(void *const *buffers, const ms_thread *self) {
    bound = buffers;
    kernel(buffers, self);
    add({0, 0, END, 0, 0, 0, 0, 0, nullptr});
}

}  // namespace

extern "C" {

// Begins anew. `sizes`: bytes of each buffer that is memory of a tensor; 0 for one that is not noted.
ms_entry recorder_start(const char *path, ms_entry entry, const uint64_t *sizes, uint32_t buffers) {
    runtime = dlopen(path, RTLD_NOW);
    kernel = entry;
    count = variable_count = 0;
    lost = !runtime || buffers > MOST;
    buffer_count = lost ? 0 : buffers;
    for (uint32_t i = 0; i < buffer_count; ++i) buffer_bytes[i] = sizes[i];
    return enter;
}
const Note *recorder_notes(uint64_t *how_many) {
    *how_many = lost ? UINT64_MAX : count;
    return notes;
}
const char *recorder_variable(uint32_t number) { return number < variable_count ? variables[number].name : nullptr; }

void *ms_group_variable(const void *key, const char *name, size_t bytes, size_t align, const ms_site *site) {
    typedef void *(*Real)(const void *, const char *, size_t, size_t, const ms_site *);
    void *data = reinterpret_cast<Real>(real("ms_group_variable"))(key, name, bytes, align, site);
    for (uint32_t i = 0; i < variable_count; ++i)
        if (variables[i].data == data) return data;
    if (variable_count == MOST) lost = true;
    else variables[variable_count++] = {static_cast<const char *>(data), name, bytes};
    return data;
}

void ms_threadgroup_barrier(uint32_t fence, const ms_site *site) {
    add({0, 0, BARRIER, 0, 0, 0, site->line, fence, site->file});
    reinterpret_cast<void (*)(uint32_t, const ms_site *)>(real("ms_threadgroup_barrier"))(fence, site);
}

#define ONE(name, size, what)                                          \
    void __tsan_##name##size(void *p) {                                \
        touch(p, size, what);                                          \
        reinterpret_cast<void (*)(void *)>(real("__tsan_" #name #size))(p); \
    }
#define ALL(size)                          \
    ONE(read, size, READ)                  \
    ONE(write, size, WRITE)                \
    ONE(read_write, size, READ | WRITE)    \
    ONE(volatile_read, size, READ)         \
    ONE(volatile_write, size, WRITE)       \
    ONE(unaligned_read, size, READ)        \
    ONE(unaligned_write, size, WRITE)      \
    ONE(unaligned_read_write, size, READ | WRITE)
ALL(1)
ALL(2)
ALL(4)
ALL(8)
ALL(16)

void __tsan_read_range(void *p, unsigned long bytes) {
    touch(p, bytes, READ);
    reinterpret_cast<void (*)(void *, unsigned long)>(real("__tsan_read_range"))(p, bytes);
}
void __tsan_write_range(void *p, unsigned long bytes) {
    touch(p, bytes, WRITE);
    reinterpret_cast<void (*)(void *, unsigned long)>(real("__tsan_write_range"))(p, bytes);
}
void *__tsan_memcpy(void *to, const void *from, size_t bytes) {
    touch(from, bytes, READ);
    touch(to, bytes, WRITE);
    return reinterpret_cast<void *(*)(void *, const void *, size_t)>(real("__tsan_memcpy"))(to, from, bytes);
}
void *__tsan_memmove(void *to, const void *from, size_t bytes) {
    touch(from, bytes, READ);
    touch(to, bytes, WRITE);
    return reinterpret_cast<void *(*)(void *, const void *, size_t)>(real("__tsan_memmove"))(to, from, bytes);
}
void *__tsan_memset(void *to, int value, size_t bytes) {
    touch(to, bytes, WRITE);
    return reinterpret_cast<void *(*)(void *, int, size_t)>(real("__tsan_memset"))(to, value, bytes);
}

}  // extern "C"
