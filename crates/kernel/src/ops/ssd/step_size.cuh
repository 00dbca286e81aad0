// How dt becomes the step size: bias, softplus, limits.
#pragma once

namespace danaus::ssd {

constexpr double kLog2 = 1.4426950408889634;

struct StepOptions {
    double low, high;  // bounds applied last
    int softplus;
    int core;  // dt is the scale, and the decay is given
};

template <class A>
struct StepSize {
    A value, slope;  // the derivative, zero outside of the bounds
};

template <class A>
__device__ __forceinline__ StepSize<A> step_size(A dt, A bias, const StepOptions& options) {
    if (options.core) return {dt, (A)1};
    const A raw = dt + bias;
    StepSize<A> step{raw, (A)1};
    // Beyond 20 softplus is the identity, in published code too.
    if (options.softplus && !(raw > (A)20)) step = {log1p(exp(raw)), (A)1 / ((A)1 + exp(-raw))};
    if (step.value < (A)options.low) step = {(A)options.low, (A)0};
    else if (step.value > (A)options.high) step = {(A)options.high, (A)0};
    return step;
}

}  // namespace danaus::ssd
