// ms_run: looks at the dispatch, spreads the threadgroups over OS threads, collects findings and counters.
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <thread>

#include "checker.h"
#include "state.h"

namespace metalsim {
namespace {

constexpr size_t LEAST_STACK_BYTES = 16 * 1024;
// Below this many threads a second OS thread costs more to start than it saves.
constexpr uint64_t LEAST_THREADS_PER_WORKER = 2048;

// Workers are kept between runs: their stacks cost a system call each.
std::mutex idle_mutex;
std::vector<std::unique_ptr<Worker>> idle;

std::unique_ptr<Worker> take_worker(size_t stack_bytes) {
    std::unique_ptr<Worker> worker;
    {
        std::lock_guard<std::mutex> guard(idle_mutex);
        if (!idle.empty()) {
            worker = std::move(idle.back());
            idle.pop_back();
        }
    }
    if (!worker) worker.reset(new Worker);
    if (!worker->stacks || worker->stacks->bytes() != stack_bytes) worker->stacks.reset(new StackPool(stack_bytes));
    return worker;
}

void give_worker(std::unique_ptr<Worker> worker) {
    std::lock_guard<std::mutex> guard(idle_mutex);
    idle.push_back(std::move(worker));
}

void add(ms_counters &sum, const ms_counters &part) {
    sum.device_read += part.device_read;
    sum.device_written += part.device_written;
    sum.constant_read += part.constant_read;
    sum.group_read += part.group_read;
    sum.group_written += part.group_written;
    sum.atomics += part.atomics;
    sum.barriers += part.barriers;
    sum.simdgroup_barriers += part.simdgroup_barriers;
    sum.simd_exchanges += part.simd_exchanges;
    sum.mmas += part.mmas;
    sum.groups += part.groups;
    sum.threads += part.threads;
    sum.group_memory_bytes = std::max(sum.group_memory_bytes, part.group_memory_bytes);
}

std::string why_not(const ms_dispatch &d) {
    if (!d.entry) return "the dispatch names no kernel";
    const uint64_t group = uint64_t(d.group.x) * d.group.y * d.group.z;
    if (group == 0) return "threads per threadgroup must be at least 1 in each dimension";
    if (d.group.x > MS_MAX_THREADS_PER_GROUP || d.group.y > MS_MAX_THREADS_PER_GROUP ||
        d.group.z > MS_MAX_THREADS_PER_GROUP || group > MS_MAX_THREADS_PER_GROUP)
        return "a threadgroup of " + std::to_string(d.group.x) + " x " + std::to_string(d.group.y) + " x " +
               std::to_string(d.group.z) + " threads was asked for; at most 1024 in all are allowed";
    if (d.schedule > MS_RUN_AHEAD) return "unknown schedule " + std::to_string(d.schedule);
    if (d.order > MS_SHUFFLED) return "unknown order " + std::to_string(d.order);
    return "";
}

void run_all(Run &run, ms_counters &counters) {
    const ms_dispatch &d = *run.dispatch;
    const size_t page = 16 * 1024;
    size_t stack_bytes = d.stack_bytes ? std::max<size_t>(d.stack_bytes, LEAST_STACK_BYTES) : DEFAULT_STACK_BYTES;
    stack_bytes = (stack_bytes + page - 1) / page * page;
    std::vector<std::unique_ptr<Worker>> workers;
    for (uint32_t i = 0; i < run.workers; ++i) {
        workers.push_back(take_worker(stack_bytes));
        Worker &w = *workers.back();
        w.checker = nullptr;
        if (d.check) continue;
        if (!w.memory.start_run(nullptr, 0, 0)) run.fail("out of memory for threadgroup variables");
    }
    std::unique_ptr<Checker> checker;
    if (d.check) {
        checker.reset(new Checker(*workers[0]));
        if (checker->start(run)) {
            workers[0]->checker = checker.get();
            run.bound = checker->bound();
        }
    }
    if (!run.stop.load()) {
        std::vector<std::thread> threads;
        for (uint32_t i = 1; i < run.workers; ++i)
            threads.emplace_back([&run, w = workers[i].get()] { run_worker(*w, run); });
        run_worker(*workers[0], run);
        for (std::thread &thread : threads) thread.join();
        if (checker) checker->finish(run.error.empty());
    }
    for (std::unique_ptr<Worker> &w : workers) {
        add(counters, w->counters);
        give_worker(std::move(w));
    }
}

}  // namespace
}  // namespace metalsim

using namespace metalsim;

extern "C" int ms_run(const ms_dispatch *dispatch, ms_counters *counters, ms_finding *findings, uint32_t capacity,
                      uint32_t *found, char *error, uint32_t error_capacity) {
    ms_counters sum{};
    Run run;
    run.dispatch = dispatch;
    run.error = why_not(*dispatch);
    run.findings.start(dispatch->max_findings);
    const ms_dispatch &d = *dispatch;
    if (run.error.empty() && uint64_t(d.threads.x) * d.threads.y * d.threads.z > 0) {
        run.groups = {(d.threads.x - 1) / d.group.x + 1, (d.threads.y - 1) / d.group.y + 1,
                      (d.threads.z - 1) / d.group.z + 1};
        run.group_count = uint64_t(run.groups.x) * run.groups.y * run.groups.z;
        const uint64_t threads = uint64_t(d.threads.x) * d.threads.y * d.threads.z;
        uint64_t workers = std::max<uint32_t>(d.workers, 1);
        workers = std::min({workers, run.group_count, threads / LEAST_THREADS_PER_WORKER + 1});
        run.workers = d.check ? 1 : static_cast<uint32_t>(workers);
        run.chunk = std::min<uint64_t>(64, run.group_count / (run.workers * 16u) + 1);
        std::vector<void *> bound(d.buffer_count);
        for (uint32_t i = 0; i < d.buffer_count; ++i) bound[i] = d.buffers[i].data;
        run.bound = bound.data();
        run_all(run, sum);
    }
    if (counters) *counters = sum;
    const std::vector<ms_finding> list = run.findings.take();
    const uint32_t count = findings ? std::min<uint32_t>(capacity, static_cast<uint32_t>(list.size())) : 0;
    if (count) memcpy(findings, list.data(), count * sizeof *findings);
    if (found) *found = static_cast<uint32_t>(list.size());
    if (error && error_capacity) snprintf(error, error_capacity, "%s", run.error.c_str());
    return run.error.empty() ? 0 : 1;
}
