// Kernels compiled with -fsanitize=array-bounds,alignment call these. They see what -fsanitize=thread cannot: an index
// past a row of an array or a local array, and a vector whose address suits only its components.
#include <inttypes.h>

#include "checker.h"
#include "state.h"

using namespace metalsim;

namespace {

// The layouts are those of clang's UndefinedBehaviorSanitizer.
struct Location {
    const char *file;
    uint32_t line, column;
};
struct Type {
    uint16_t kind, info;
    char name[1];
};
struct IndexedArray {
    Location location;
    const Type *array, *index;
};
struct Dereference {
    Location location;
    const Type *type;
    uint8_t log_alignment, kind;
};

void out_of_bounds(const IndexedArray &what, uintptr_t index, const void *pc) {
    Worker *worker = t_worker;
    if (!worker) return;
    ms_finding finding = new_finding(MS_OUT_OF_BOUNDS, "");
    finding.first = access_of(*worker, *worker->current);
    finding.first.site = nullptr;
    finding.first.pc = reinterpret_cast<uint64_t>(pc);
    finding.offset = index;
    set_detail(finding, "index %" PRId64 " of an array of type %s", static_cast<int64_t>(index), what.array->name);
    worker->run->findings.add(finding);
}

void misaligned(const Dereference &what, uintptr_t address, const void *pc) {
    constexpr uint16_t NO_NUMBER = 0xFFFF;
    constexpr uint8_t LOAD = 0, STORE = 1;
    Worker *worker = t_worker;
    const uintptr_t alignment = uintptr_t(1) << what.log_alignment;
    if (!worker || address % alignment == 0) return;
    // The access itself comes next, and with it the checker's own finding.
    const bool plain = what.type->kind != NO_NUMBER && (what.kind == LOAD || what.kind == STORE);
    if (plain && worker->checker) return;
    const void *at = reinterpret_cast<const void *>(address);
    Checker *checker = worker->checker;
    ms_finding finding = checker ? checker->finding_near(MS_MISALIGNED, at) : new_finding(MS_MISALIGNED, "");
    finding.first = access_of(*worker, *worker->current);
    finding.first.site = nullptr;
    finding.first.pc = reinterpret_cast<uint64_t>(pc);
    if (!checker) finding.offset = address % alignment;
    finding.bytes = alignment;
    set_detail(finding, "a pointer to %s, which is aligned to %zu bytes, is %zu more than a multiple", what.type->name,
               static_cast<size_t>(alignment), static_cast<size_t>(address % alignment));
    worker->run->findings.add(finding);
}

}  // namespace

#define PC __builtin_return_address(0)

extern "C" {

void __ubsan_handle_out_of_bounds(void *what, uintptr_t index) {
    out_of_bounds(*static_cast<IndexedArray *>(what), index, PC);
}
void __ubsan_handle_type_mismatch_v1(void *what, uintptr_t address) {
    misaligned(*static_cast<Dereference *>(what), address, PC);
}
void __ubsan_handle_alignment_assumption(void *, uintptr_t, uintptr_t, uintptr_t) {}

}  // extern "C"
