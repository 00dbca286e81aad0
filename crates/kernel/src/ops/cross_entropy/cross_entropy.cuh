// Softmax cross-entropy: one block a token. Constants: ELEMENT, the type of the logits; GRADIENT, that of
// their gradient.
#pragma once
#include "block.cuh"
#include "fault.cuh"

typedef ELEMENT T;
typedef GRADIENT G;
typedef typename Accumulator<T>::type A;

struct Loss {
    i64 ignore;
    double smoothing, z_loss;
    int vocab;
    int pad;
};

DEVICE A infinity() { return (A)__longlong_as_double(0x7ff0000000000000LL); }

// Maximum so far, sum of e^(z - maximum), plain sum: one pass over the row.
struct Running {
    A most, sum;
    DEVICE void add(A z) {
        if (z > most) {
            sum = sum * exp(most - z) + (A)1;
            most = z;
        } else if (z != -infinity()) {
            sum += exp(z - most);  // NaN when z is
        }
    }
};

// `a` and `b` in this order.
DEVICE Running merge(Running a, Running b) {
    const A most = a.most > b.most ? a.most : b.most;
    if (most == -infinity()) return Running{most, a.sum + b.sum};
    return Running{most, a.sum * exp(a.most - most) + b.sum * exp(b.most - most)};
}

extern "C" __global__ void __launch_bounds__(256)
forward(const T* __restrict__ logits, const i64* __restrict__ targets, A* __restrict__ loss,
        A* __restrict__ lse, const Loss args, Fault* fault, u32 check) {
    __shared__ Running parts[8];
    __shared__ A scratch[32];
    const i64 token = blockIdx.x;
    const T* z = logits + token * args.vocab;
    Running run{-infinity(), 0};
    A total = 0;
    for (int i = threadIdx.x; i < args.vocab; i += 256) {
        const A value = Cast<A, T>::of(z[i]);
        run.add(value);
        total += value;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const Running other{__shfl_down_sync(0xffffffffu, run.most, step),
                            __shfl_down_sync(0xffffffffu, run.sum, step)};
        run = merge(run, other);
    }
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = run;
    total = block_fold<Plus>(total, (A)0, scratch);
    if (threadIdx.x > 0) return;
    for (int warp = 1; warp < 8; ++warp) run = merge(run, parts[warp]);
    const A log_sum = run.most + log(run.sum);
    lse[token] = log_sum;
    const i64 target = targets[token];
    A value = 0;
    if (target != args.ignore && fault_index(fault, check, target, args.vocab)) {
        value = log_sum - (A)(1.0 - args.smoothing) * Cast<A, T>::of(z[target]);
        if (args.smoothing > 0.0) value -= (A)(args.smoothing / args.vocab) * total;
        value += (A)args.z_loss * log_sum * log_sum;
    }
    loss[token] = value;
}

extern "C" __global__ void __launch_bounds__(256, 4)
backward(const T* __restrict__ logits, const i64* __restrict__ targets, const A* __restrict__ lse,
         const A* __restrict__ dloss, const A* __restrict__ dlse, G* __restrict__ dlogits,
         const Loss args) {
    const i64 token = blockIdx.x, target = targets[token];
    const bool counted = target != args.ignore;
    const A g = counted ? dloss[token] : (A)0, log_sum = lse[token];
    const A slope = g * ((A)1 + (A)(2.0 * args.z_loss) * log_sum) + (dlse ? dlse[token] : (A)0);
    const A share = g * (A)(args.smoothing / args.vocab), hit = g * (A)(1.0 - args.smoothing);
    const T* z = logits + token * args.vocab;
    G* dz = dlogits + token * args.vocab;
    for (int i = threadIdx.x; i < args.vocab; i += 256) {
        A d = slope * exp(Cast<A, T>::of(z[i]) - log_sum) - share;
        if (counted && i == target) d -= hit;
        dz[i] = Cast<G, A>::of(d);
    }
}
