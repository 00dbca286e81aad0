// Softmax and its logarithm over rows. Constants: ELEMENT, ROW_THREADS (32: eight rows a block),
// ROW_ITEMS elements a thread that stay in registers (0: the row is read again), LOG_FORM.
#pragma once
#include "block.cuh"

typedef ELEMENT T;
constexpr int GROUP = ROW_THREADS;
typedef typename Accumulator<T>::type A;

DEVICE A infinity() { return (A)__longlong_as_double(0x7ff0000000000000LL); }

// The maximum with NaN winning, as the quotient does.
DEVICE A peak(A a, A b) { return Larger::of(a, b); }

#if ROW_ITEMS > 0
constexpr int ITEMS = ROW_ITEMS;

extern "C" __global__ void ROW_BOUNDS(GROUP)
forward(const T* __restrict__ x, T* __restrict__ y, i64 rows, int cols) {
    __shared__ A scratch[32];
    const int lane = threadIdx.x % GROUP;
    const i64 row = (i64)blockIdx.x * (blockDim.x / GROUP) + threadIdx.x / GROUP;
    if (row >= rows) return;
    x += row * cols;
    y += row * cols;
    A v[ITEMS], most = -infinity();
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        const int i = k * GROUP + lane;
        v[k] = i < cols ? Cast<A, T>::of(x[i]) : -infinity();
        most = peak(most, v[k]);
    }
    most = group_fold<GROUP, Larger>(most, -infinity(), scratch);
    A sum = 0;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        v[k] -= most;
        const A e = exp(v[k]);
        if (k * GROUP + lane < cols) sum += e;
#if !LOG_FORM
        v[k] = e;
#endif
    }
    sum = group_fold<GROUP, Plus>(sum, (A)0, scratch);
#if LOG_FORM
    const A log_sum = log(sum);
#else
    const A scale = (A)1 / sum;
#endif
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        const int i = k * GROUP + lane;
#if LOG_FORM
        if (i < cols) y[i] = Cast<T, A>::of(v[k] - log_sum);
#else
        if (i < cols) y[i] = Cast<T, A>::of(v[k] * scale);
#endif
    }
}

extern "C" __global__ void ROW_BOUNDS(GROUP)
backward(const T* __restrict__ y, const T* __restrict__ dy, T* __restrict__ dx, i64 rows, int cols) {
    __shared__ A scratch[32];
    const int lane = threadIdx.x % GROUP;
    const i64 row = (i64)blockIdx.x * (blockDim.x / GROUP) + threadIdx.x / GROUP;
    if (row >= rows) return;
    y += row * cols;
    dy += row * cols;
    dx += row * cols;
    A v[ITEMS], g[ITEMS], sum = 0;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        const int i = k * GROUP + lane;
        v[k] = i < cols ? Cast<A, T>::of(y[i]) : (A)0;
        g[k] = i < cols ? Cast<A, T>::of(dy[i]) : (A)0;
        sum += LOG_FORM ? g[k] : v[k] * g[k];
    }
    sum = group_fold<GROUP, Plus>(sum, (A)0, scratch);
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        const int i = k * GROUP + lane;
        const A d = LOG_FORM ? g[k] - exp(v[k]) * sum : v[k] * (g[k] - sum);
        if (i < cols) dx[i] = Cast<T, A>::of(d);
    }
}
#else
extern "C" __global__ void __launch_bounds__(GROUP)
forward(const T* __restrict__ x, T* __restrict__ y, i64 rows, int cols) {
    __shared__ A scratch[32];
    x += (i64)blockIdx.x * cols;
    y += (i64)blockIdx.x * cols;
    A most = -infinity(), sum = 0;
    for (int i = threadIdx.x; i < cols; i += GROUP) most = peak(most, Cast<A, T>::of(x[i]));
    most = block_fold<Larger>(most, -infinity(), scratch);
    for (int i = threadIdx.x; i < cols; i += GROUP) sum += exp(Cast<A, T>::of(x[i]) - most);
    sum = block_fold<Plus>(sum, (A)0, scratch);
    const A log_sum = log(sum), scale = (A)1 / sum;
    for (int i = threadIdx.x; i < cols; i += GROUP) {
        const A v = Cast<A, T>::of(x[i]) - most;
        y[i] = Cast<T, A>::of(LOG_FORM ? v - log_sum : exp(v) * scale);
    }
}

extern "C" __global__ void __launch_bounds__(GROUP)
backward(const T* __restrict__ y, const T* __restrict__ dy, T* __restrict__ dx, i64 rows, int cols) {
    __shared__ A scratch[32];
    y += (i64)blockIdx.x * cols;
    dy += (i64)blockIdx.x * cols;
    dx += (i64)blockIdx.x * cols;
    A sum = 0;
    for (int i = threadIdx.x; i < cols; i += GROUP) {
        const A v = Cast<A, T>::of(y[i]), g = Cast<A, T>::of(dy[i]);
        sum += LOG_FORM ? g : v * g;
    }
    sum = block_fold<Plus>(sum, (A)0, scratch);
    for (int i = threadIdx.x; i < cols; i += GROUP) {
        const A v = Cast<A, T>::of(y[i]), g = Cast<A, T>::of(dy[i]);
        dx[i] = Cast<T, A>::of(LOG_FORM ? g - exp(v) * sum : v * (g - sum));
    }
}
#endif
