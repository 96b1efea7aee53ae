#include "fiber.h"

#include <string.h>
#include <sys/mman.h>

namespace metalsim {
namespace {

constexpr size_t STACKS_PER_BLOCK = 32;
// As large as a default stack: a frame with a big array may step over a single page. Address space only.
constexpr size_t GUARD_BYTES = 64 * 1024;
// Stack tops of the same page offset would all fall into the same few cache sets; neighbours start this far apart.
constexpr size_t STAGGER_BYTES = 320, STAGGER_STEPS = 12;

}  // namespace

StackPool::StackPool(size_t bytes) : bytes_(bytes), guard_(GUARD_BYTES) {}

StackPool::~StackPool() {
    for (char *block : blocks_) munmap(block, STACKS_PER_BLOCK * (bytes_ + guard_));
    for (Stack *stack : all_) delete stack;
}

bool StackPool::grow() {
    const size_t stride = bytes_ + guard_;
    void *block = mmap(nullptr, STACKS_PER_BLOCK * stride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (block == MAP_FAILED) return false;
    blocks_.push_back(static_cast<char *>(block));
    for (size_t i = STACKS_PER_BLOCK; i-- > 0;) {
        char *guard = static_cast<char *>(block) + i * stride;
        mprotect(guard, guard_, PROT_NONE);
        Stack *stack = new Stack;
        stack->low = guard + guard_;
        stack->high = guard + stride;
        stack->start = stack->high - STAGGER_BYTES * ((all_.size()) % STAGGER_STEPS);
        all_.push_back(stack);
        free_.push_back(stack);
    }
    return true;
}

Stack *StackPool::take() {
    if (free_.empty() && !grow()) return nullptr;
    Stack *stack = free_.back();
    free_.pop_back();
    return stack;
}

void StackPool::reclaim_all() { free_ = all_; }

bool StackPool::holds(const void *address) const {
    const char *at = static_cast<const char *>(address);
    for (const char *block : blocks_)
        if (at >= block && at < block + STACKS_PER_BLOCK * (bytes_ + guard_)) return true;
    return false;
}

#if defined(__x86_64__)

// The callee-saved registers of the System V ABI. The control words (MXCSR, x87) are the same in all fibers.
extern "C" __attribute__((naked, noinline)) void metalsim_switch(void **, void *) {
    asm volatile(
        "pushq %rbp\n\t"
        "pushq %rbx\n\t"
        "pushq %r12\n\t"
        "pushq %r13\n\t"
        "pushq %r14\n\t"
        "pushq %r15\n\t"
        "movq %rsp, (%rdi)\n\t"
        "movq %rsi, %rsp\n\t"
        "popq %r15\n\t"
        "popq %r14\n\t"
        "popq %r13\n\t"
        "popq %r12\n\t"
        "popq %rbx\n\t"
        "popq %rbp\n\t"
        "ret");
}

void *prepare_stack(const Stack &stack, void (*entry)()) {
    uintptr_t top = reinterpret_cast<uintptr_t>(stack.start) & ~uintptr_t(15);
    uintptr_t *words = reinterpret_cast<uintptr_t *>(top);
    *--words = 0;  // the return address of `entry`: also aligns the stack as after a call
    *--words = reinterpret_cast<uintptr_t>(entry);
    for (int i = 0; i < 6; ++i) *--words = 0;
    return words;
}

#elif defined(__aarch64__)

// x19-x30 and the low halves of v8-v15, as AAPCS64 asks for.
extern "C" __attribute__((naked, noinline)) void metalsim_switch(void **, void *) {
    asm volatile(
        "sub sp, sp, #160\n\t"
        "stp x19, x20, [sp, #0]\n\t"
        "stp x21, x22, [sp, #16]\n\t"
        "stp x23, x24, [sp, #32]\n\t"
        "stp x25, x26, [sp, #48]\n\t"
        "stp x27, x28, [sp, #64]\n\t"
        "stp x29, x30, [sp, #80]\n\t"
        "stp d8, d9, [sp, #96]\n\t"
        "stp d10, d11, [sp, #112]\n\t"
        "stp d12, d13, [sp, #128]\n\t"
        "stp d14, d15, [sp, #144]\n\t"
        "mov x9, sp\n\t"
        "str x9, [x0]\n\t"
        "mov sp, x1\n\t"
        "ldp x19, x20, [sp, #0]\n\t"
        "ldp x21, x22, [sp, #16]\n\t"
        "ldp x23, x24, [sp, #32]\n\t"
        "ldp x25, x26, [sp, #48]\n\t"
        "ldp x27, x28, [sp, #64]\n\t"
        "ldp x29, x30, [sp, #80]\n\t"
        "ldp d8, d9, [sp, #96]\n\t"
        "ldp d10, d11, [sp, #112]\n\t"
        "ldp d12, d13, [sp, #128]\n\t"
        "ldp d14, d15, [sp, #144]\n\t"
        "add sp, sp, #160\n\t"
        "ret");
}

void *prepare_stack(const Stack &stack, void (*entry)()) {
    uintptr_t top = reinterpret_cast<uintptr_t>(stack.start) & ~uintptr_t(15);
    char *frame = reinterpret_cast<char *>(top) - 160;
    memset(frame, 0, 160);
    void *target = reinterpret_cast<void *>(entry);
    memcpy(frame + 88, &target, sizeof target);  // x30: where `ret` goes
    return frame;
}

#else
#error "metalsim needs a context switch for this processor: x86-64 and arm64 are there"
#endif

}  // namespace metalsim
