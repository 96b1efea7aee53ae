// Faults of GPU threads: a stack that ran into its guard page, a pointer to nowhere, a misaligned vector.
#pragma once

namespace metalsim {

// While one lives, a fault of a GPU thread on this OS thread becomes a finding and ends that GPU thread only. Other
// faults go to whoever handled them before.
class FaultScope {
public:
    FaultScope();
    ~FaultScope();
    FaultScope(const FaultScope &) = delete;
    FaultScope &operator=(const FaultScope &) = delete;

private:
    struct State;
    State *state_;
};

}  // namespace metalsim
