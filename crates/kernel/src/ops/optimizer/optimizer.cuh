// One update of many tensors in one launch, and the sum of squares of many tensors. Constant: REAL.
//
// A table lists the tensors; block b works on the piece of PIECE elements that `first` assigns to it.
#pragma once
#include "block.cuh"

typedef REAL R;
constexpr int PIECE = 8192;

struct Entry {
    R* value;
    const R* grad;
    R *first, *second;  // state, 0 where the rule keeps none
    i64 len;
    i64 block;  // number of the first block that works on the tensor
    i64 decays;
};

// The numbers of one step; `kind` is 0 AdamW, 1 Lion, 2 SGD without and 3 with momentum, 4 Nesterov's.
struct Step {
    double lr, shrink, grad_scale;
    double beta1, beta2, eps, correction1, correction2;
    int kind, tensors;
};

// The entry whose blocks include `block`.
DEVICE const Entry& entry_of(const Entry* table, int count, i64 block) {
    int low = 0, high = count;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (table[middle].block <= block) low = middle;
        else high = middle;
    }
    return table[low];
}

extern "C" __global__ void __launch_bounds__(256)
optimizer_step(const Entry* __restrict__ table, const Step step) {
    const Entry& entry = entry_of(table, step.tensors, blockIdx.x);
    const i64 start = (blockIdx.x - entry.block) * PIECE;
    const i64 end = start + PIECE < entry.len ? start + PIECE : entry.len;
    const R shrink = entry.decays ? (R)step.shrink : (R)1, scale = (R)step.grad_scale;
    const R lr = (R)step.lr, beta1 = (R)step.beta1, beta2 = (R)step.beta2;
    const R rest1 = (R)(1.0 - step.beta1), rest2 = (R)(1.0 - step.beta2);
    const R size = (R)(step.lr / step.correction1), eps = (R)step.eps;
    const R root2 = (R)(1.0 / sqrt(step.correction2));
    for (i64 i = start + threadIdx.x; i < end; i += 256) {
        const R g = entry.grad[i] * scale;
        R value = entry.value[i] * shrink;
        if (step.kind == 0) {
            const R first = entry.first[i] + rest1 * (g - entry.first[i]);
            const R second = beta2 * entry.second[i] + rest2 * g * g;
            entry.first[i] = first;
            entry.second[i] = second;
            value -= size * first / (sqrt(second) * root2 + eps);
        } else if (step.kind == 1) {
            const R first = entry.first[i], direction = beta1 * first + rest1 * g;
            value -= direction > (R)0 ? lr : direction < (R)0 ? -lr : (R)0;
            entry.first[i] = beta2 * first + rest2 * g;
        } else if (step.kind == 2) {
            value -= lr * g;
        } else {
            const R first = beta1 * entry.first[i] + g;
            entry.first[i] = first;
            value -= lr * (step.kind == 4 ? g + beta1 * first : first);
        }
        entry.value[i] = value;
    }
}

// Sums of squares of the pieces, in double.
extern "C" __global__ void __launch_bounds__(256)
square_parts(const Entry* __restrict__ table, int tensors, double* __restrict__ parts) {
    __shared__ double scratch[32];
    const Entry& entry = entry_of(table, tensors, blockIdx.x);
    const i64 start = (blockIdx.x - entry.block) * PIECE;
    const i64 end = start + PIECE < entry.len ? start + PIECE : entry.len;
    double sum = 0;
    for (i64 i = start + threadIdx.x; i < end; i += 256) {
        const double x = (double)entry.grad[i];
        sum += x * x;
    }
    sum = block_fold<Plus>(sum, 0.0, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// One block: all parts in a fixed order.
extern "C" __global__ void __launch_bounds__(1024)
square_total(const double* __restrict__ parts, i64 count, double* __restrict__ total) {
    __shared__ double scratch[32];
    double sum = 0;
    for (i64 i = threadIdx.x; i < count; i += 1024) sum += parts[i];
    sum = block_fold<Plus>(sum, 0.0, scratch);
    if (threadIdx.x == 0) *total = sum;
}
