#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700
#endif
#ifndef _DARWIN_C_SOURCE
#define _DARWIN_C_SOURCE 1
#endif
#include "faults.h"

#include <dlfcn.h>
#include <inttypes.h>
#include <signal.h>
#include <ucontext.h>

#include <mutex>

#include "checker.h"
#include "state.h"

namespace metalsim {
namespace {

constexpr size_t ALTERNATE_STACK_BYTES = 64 * 1024;

#if defined(__linux__) && defined(__x86_64__)
uintptr_t pc_of(ucontext_t *context) { return static_cast<uintptr_t>(context->uc_mcontext.gregs[REG_RIP]); }
void resume_at(ucontext_t *context, uintptr_t pc, uintptr_t sp) {
    context->uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(pc);
    context->uc_mcontext.gregs[REG_RSP] = static_cast<greg_t>(sp - 8);  // as after a call
}
#elif defined(__linux__) && defined(__aarch64__)
uintptr_t pc_of(ucontext_t *context) { return context->uc_mcontext.pc; }
void resume_at(ucontext_t *context, uintptr_t pc, uintptr_t sp) {
    context->uc_mcontext.pc = pc;
    context->uc_mcontext.sp = sp;
}
#elif defined(__APPLE__) && defined(__x86_64__)
uintptr_t pc_of(ucontext_t *context) { return context->uc_mcontext->__ss.__rip; }
void resume_at(ucontext_t *context, uintptr_t pc, uintptr_t sp) {
    context->uc_mcontext->__ss.__rip = pc;
    context->uc_mcontext->__ss.__rsp = sp - 8;
}
#elif defined(__APPLE__) && defined(__aarch64__)
uintptr_t pc_of(ucontext_t *context) { return __darwin_arm_thread_state64_get_pc(context->uc_mcontext->__ss); }
void resume_at(ucontext_t *context, uintptr_t pc, uintptr_t sp) {
    __darwin_arm_thread_state64_set_pc_fptr(context->uc_mcontext->__ss, reinterpret_cast<void *>(pc));
    __darwin_arm_thread_state64_set_sp(context->uc_mcontext->__ss, reinterpret_cast<void *>(sp));
}
#else
#error "metalsim needs to know how this system describes a fault"
#endif

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr int SIGNAL_COUNT = sizeof SIGNALS / sizeof *SIGNALS;
std::mutex handlers_mutex;
int scopes = 0;
struct sigaction before[SIGNAL_COUNT];

bool in_runtime(uintptr_t pc) {
    Dl_info there, here;
    return dladdr(reinterpret_cast<void *>(pc), &there) && dladdr(reinterpret_cast<void *>(&in_runtime), &here) &&
           there.dli_fbase == here.dli_fbase;
}

void on_fault(int signal, siginfo_t *info, void *context_pointer) {
    ucontext_t *context = static_cast<ucontext_t *>(context_pointer);
    Worker *worker = t_worker;
    const uintptr_t pc = pc_of(context);
    if (worker && worker->current && worker->current->stack) {
        const Stack &stack = *worker->current->stack;
        const char *address = static_cast<const char *>(info->si_addr);
        const bool memory = signal == SIGSEGV || signal == SIGBUS;
        const bool overflow = memory && address < stack.low && address >= stack.low - worker->stacks->guard_bytes();
        if (overflow || worker->touching_user_memory || !in_runtime(pc)) {
            worker->fault = {pc, reinterpret_cast<uint64_t>(address), overflow, memory ? 0 : signal};
            // What is on the stack is of no use any more: start again from its top.
            resume_at(context, reinterpret_cast<uintptr_t>(&abort_current),
                      reinterpret_cast<uintptr_t>(stack.start) & ~uintptr_t(15));
            return;
        }
    }
    // Not ours: put the former handler back and let the instruction fault once more.
    for (int i = 0; i < SIGNAL_COUNT; ++i)
        if (SIGNALS[i] == signal) sigaction(signal, &before[i], nullptr);
}

}  // namespace

struct FaultScope::State {
    stack_t before;
    std::unique_ptr<char[]> stack;
};

FaultScope::FaultScope() : state_(new State) {
    state_->stack.reset(new char[ALTERNATE_STACK_BYTES]);
    stack_t alternate{};
    alternate.ss_sp = state_->stack.get();
    alternate.ss_size = ALTERNATE_STACK_BYTES;
    sigaltstack(&alternate, &state_->before);
    std::lock_guard<std::mutex> guard(handlers_mutex);
    if (scopes++ > 0) return;
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < SIGNAL_COUNT; ++i) sigaction(SIGNALS[i], &action, &before[i]);
}

FaultScope::~FaultScope() {
    {
        std::lock_guard<std::mutex> guard(handlers_mutex);
        if (--scopes == 0)
            for (int i = 0; i < SIGNAL_COUNT; ++i) sigaction(SIGNALS[i], &before[i], nullptr);
    }
    sigaltstack(&state_->before, nullptr);
    delete state_;
}

void report_fault(Worker &w) {
    w.touching_user_memory = false;
    if (w.fault.signal) {
        const ms_uint3 group = w.group.position, thread = w.places[w.current->index];
        const auto text = [](ms_uint3 at) {
            return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
        };
        w.run->fail(std::string(w.fault.signal == SIGFPE ? "an integer division by zero or an overflowing one"
                                                         : "an instruction that does not exist: undefined behaviour") +
                    " in kernel '" + (w.run->dispatch->kernel ? w.run->dispatch->kernel : "") + "', thread " +
                    text(thread) + " of group " + text(group));
        leave_run(w);
    }
    if (!w.fault.overflow && w.checker) {
        w.checker->fault(w.fault);
        return;
    }
    ms_finding finding = new_finding(w.fault.overflow ? MS_STACK_OVERFLOW : MS_OUT_OF_BOUNDS, "");
    finding.first = access_of(w, *w.current);
    finding.first.site = nullptr;
    finding.first.pc = w.fault.pc;
    if (w.fault.overflow) {
        finding.bytes = w.stacks->bytes();
        set_detail(finding, "the thread needs more than %zu bytes of stack; it was ended", w.stacks->bytes());
    } else {
        set_detail(finding, "a fault at address 0x%" PRIx64 "; the thread was ended (checking mode names the variable)",
                   w.fault.address);
    }
    w.run->findings.add(finding);
}

}  // namespace metalsim
