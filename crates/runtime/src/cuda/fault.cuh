// Reports of bad values to the host; see fault.rs for the other side.
#pragma once

struct Fault {
    unsigned set;
    unsigned check;
    long long value;
    long long bound;
};

// True if `value` is inside 0..bound; otherwise the first caller leaves a report.
__device__ __forceinline__ bool fault_index(
    Fault* fault, unsigned check, long long value, long long bound) {
    if (value >= 0 && value < bound) return true;
    if (atomicCAS_system(&fault->set, 0u, 1u) == 0u) {
        fault->check = check;
        fault->value = value;
        fault->bound = bound;
        __threadfence_system();
        fault->set = 2u;
    }
    return false;
}
