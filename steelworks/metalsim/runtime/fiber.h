// Fibers: a stack and a saved stack pointer. A GPU thread gets a fiber only when it starts, and gives the stack to the
// next one as soon as it ends, so kernels that never wait run on one hot stack.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace metalsim {

struct Stack {
    char *low = nullptr;   // first usable byte; guard pages lie below it
    char *high = nullptr;  // one past the last usable byte
    char *start = nullptr; // where the stack pointer begins: staggered, see StackPool::take
};

// Stacks of one size for one worker, last in first out. Not for use by several OS threads.
class StackPool {
public:
    explicit StackPool(size_t bytes);
    ~StackPool();
    StackPool(const StackPool &) = delete;
    StackPool &operator=(const StackPool &) = delete;

    // Null when the system gives no more memory.
    Stack *take();
    void give(Stack *stack) { free_.push_back(stack); }
    // Takes back every stack, running or not: after a run was stopped half-way.
    void reclaim_all();
    size_t bytes() const { return bytes_; }
    // Is the address in one of the stacks or their guard pages?
    bool holds(const void *address) const;
    size_t guard_bytes() const { return guard_; }

private:
    bool grow();
    size_t bytes_, guard_;
    std::vector<Stack *> all_, free_;
    std::vector<char *> blocks_;
};

// Prepares a stack so that the first switch to the returned pointer calls `entry`, which must never return.
void *prepare_stack(const Stack &stack, void (*entry)());

// Saves the running context, stores its stack pointer to *save and goes on with `to`.
extern "C" void metalsim_switch(void **save, void *to);

}  // namespace metalsim
