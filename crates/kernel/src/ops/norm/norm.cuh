// Layer norm and RMS norm over rows that stay in registers. Constants: ELEMENT, ROW_THREADS
// (32: eight rows a block), ROW_ITEMS elements a thread, LAYER 1 for layer norm.
#pragma once
#include "block.cuh"

typedef ELEMENT T;
constexpr int GROUP = ROW_THREADS, ITEMS = ROW_ITEMS;
typedef typename Accumulator<T>::type A;

// Mean (0 for RMS) and reciprocal deviation of the row in `v`; the variance around the mean in a
// second pass over the registers, so that a large mean does not cancel it.
DEVICE void statistics(const A (&v)[ITEMS], int lane, int cols, A eps, A* scratch, A& mean, A& rstd) {
    mean = 0;
#if LAYER
    A sum = 0;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) sum += v[k];
    mean = group_fold<GROUP, Plus>(sum, (A)0, scratch) / (A)cols;
#endif
    A square = 0;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        const A d = v[k] - mean;
        if (k * GROUP + lane < cols) square += d * d;
    }
    square = group_fold<GROUP, Plus>(square, (A)0, scratch) / (A)cols;
    rstd = (A)1 / sqrt(square + eps);
}

// y = (h - mean) rstd weight + bias, with h = x + residual written to `sum` where there is one.
extern "C" __global__ void ROW_BOUNDS(GROUP)
forward(const T* __restrict__ x, const T* __restrict__ residual, const A* __restrict__ weight,
        const A* __restrict__ bias, T* __restrict__ y, T* __restrict__ sum, i64 rows, int cols,
        double eps) {
    __shared__ A scratch[32];
    const int lane = threadIdx.x % GROUP;
    const i64 row = (i64)blockIdx.x * (blockDim.x / GROUP) + threadIdx.x / GROUP;
    if (row >= rows) return;
    wait_for_front();
    let_next_start();
    const i64 start = row * cols;
    A v[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        const int i = k * GROUP + lane;
        v[k] = 0;
        if (i < cols) {
            v[k] = Cast<A, T>::of(x[start + i]);
            if (residual) {
                // Rounded as it is returned: y is the norm of exactly that.
                const T h = Cast<T, A>::of(v[k] + Cast<A, T>::of(residual[start + i]));
                sum[start + i] = h;
                v[k] = Cast<A, T>::of(h);
            }
        }
    }
    A mean, rstd;
    statistics(v, lane, cols, (A)eps, scratch, mean, rstd);
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        const int i = k * GROUP + lane;
        if (i < cols) {
            A out = (v[k] - mean) * rstd;
            if (weight) out *= weight[i];
            if (bias) out += bias[i];
            y[start + i] = Cast<T, A>::of(out);
        }
    }
}

// dh, and one row of partial sums for weight and bias a group: `per_group` rows each, in order.
extern "C" __global__ void ROW_BOUNDS(GROUP)
backward(const T* __restrict__ h, const T* __restrict__ dy, const T* __restrict__ dsum,
         const A* __restrict__ weight, T* __restrict__ dh, A* __restrict__ dweight,
         A* __restrict__ dbias, i64 rows, int cols, i64 per_group, double eps) {
    __shared__ A scratch[32];
    const int lane = threadIdx.x % GROUP;
    const i64 group = (i64)blockIdx.x * (blockDim.x / GROUP) + threadIdx.x / GROUP;
    const i64 first = group * per_group;
    const i64 last = first + per_group < rows ? first + per_group : rows;
    A dw[ITEMS], db[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) dw[k] = db[k] = 0;
    for (i64 row = first; row < last; ++row) {
        const i64 start = row * cols;
        A v[ITEMS], g[ITEMS];
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) {
            const int i = k * GROUP + lane;
            v[k] = i < cols ? Cast<A, T>::of(h[start + i]) : (A)0;
            g[k] = i < cols ? Cast<A, T>::of(dy[start + i]) : (A)0;
        }
        A mean, rstd;
        statistics(v, lane, cols, (A)eps, scratch, mean, rstd);
        A along = 0, level = 0;
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) {
            const int i = k * GROUP + lane;
            v[k] = (v[k] - mean) * rstd;
            if (i < cols) {
                dw[k] += g[k] * v[k];
                db[k] += g[k];
                if (weight) g[k] *= weight[i];
                along += g[k] * v[k];
                level += g[k];
            }
        }
        along = group_fold<GROUP, Plus>(along, (A)0, scratch) / (A)cols;
#if LAYER
        level = group_fold<GROUP, Plus>(level, (A)0, scratch) / (A)cols;
#else
        level = 0;
#endif
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) {
            const int i = k * GROUP + lane;
            if (i < cols) {
                A d = rstd * (g[k] - level - v[k] * along);
                if (dsum) d += Cast<A, T>::of(dsum[start + i]);
                dh[start + i] = Cast<T, A>::of(d);
            }
        }
    }
    if (first < rows) {
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) {
            const int i = k * GROUP + lane;
            if (i < cols) {
                dweight[group * cols + i] = dw[k];
                dbias[group * cols + i] = db[k];
            }
        }
    }
}
