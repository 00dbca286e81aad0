// RMS norm with a silu gate, in groups of columns that stay in registers. Constants: ELEMENT,
// ROW_THREADS a group of columns (32: eight groups a block), ROW_ITEMS elements a thread, GATE_AFTER 1
// for the gate after the norm.
#pragma once
#include "block.cuh"

typedef ELEMENT T;
constexpr int GROUP = ROW_THREADS, ITEMS = ROW_ITEMS;
typedef typename Accumulator<T>::type A;

struct Gate {
    A value, slope;  // silu(z) and its derivative
};

DEVICE Gate silu(A z) {
    const A s = (A)1 / ((A)1 + exp(-z));
    return Gate{z * s, s * ((A)1 + z * ((A)1 - s))};
}

DEVICE A reciprocal_root(const A (&v)[ITEMS], int size, A eps, A* scratch) {
    A square = 0;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) square += v[k] * v[k];
    square = group_fold<GROUP, Plus>(square, (A)0, scratch) / (A)size;
    return (A)1 / sqrt(square + eps);
}

// `units` rows of `size` columns: group g of row r is unit r * groups + g.
extern "C" __global__ void ROW_BOUNDS(GROUP)
forward(const T* __restrict__ x, const T* __restrict__ z, const A* __restrict__ weight,
        T* __restrict__ y, i64 units, int groups, int size, double eps) {
    __shared__ A scratch[32];
    const int lane = threadIdx.x % GROUP;
    const i64 unit = (i64)blockIdx.x * (blockDim.x / GROUP) + threadIdx.x / GROUP;
    if (unit >= units) return;
    wait_for_front();
    let_next_start();
    const i64 start = unit * size;
    weight += unit % groups * size;
    A v[ITEMS], gate[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        const int i = k * GROUP + lane;
        v[k] = i < size ? Cast<A, T>::of(x[start + i]) : (A)0;
        gate[k] = z && i < size ? silu(Cast<A, T>::of(z[start + i])).value : (A)1;
        if (!GATE_AFTER) v[k] *= gate[k];
    }
    const A root = reciprocal_root(v, size, (A)eps, scratch);
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        const int i = k * GROUP + lane;
        if (i < size) y[start + i] = Cast<T, A>::of(weight[i] * (v[k] * root) * (GATE_AFTER ? gate[k] : (A)1));
    }
}

// dx, dz, and a row of partial sums for the weight a run of `per_run` rows.
extern "C" __global__ void ROW_BOUNDS(GROUP)
backward(const T* __restrict__ x, const T* __restrict__ z, const A* __restrict__ weight,
         const T* __restrict__ dy, T* __restrict__ dx, T* __restrict__ dz, A* __restrict__ dweight,
         i64 rows, int groups, int size, i64 per_run, double eps) {
    __shared__ A scratch[32];
    const int lane = threadIdx.x % GROUP;
    const i64 task = (i64)blockIdx.x * (blockDim.x / GROUP) + threadIdx.x / GROUP;
    const i64 run = task / groups, group = task % groups;
    const i64 first = run * per_run;
    const i64 last = first + per_run < rows ? first + per_run : rows;
    if (first >= rows) return;
    weight += group * size;
    A dw[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) dw[k] = 0;
    for (i64 row = first; row < last; ++row) {
        const i64 start = (row * groups + group) * size;
        A v[ITEMS];
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) {
            const int i = k * GROUP + lane;
            v[k] = i < size ? Cast<A, T>::of(x[start + i]) : (A)0;
            if (!GATE_AFTER && z && i < size) v[k] *= silu(Cast<A, T>::of(z[start + i])).value;
        }
        const A root = reciprocal_root(v, size, (A)eps, scratch);
        A along = 0;
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) {
            const int i = k * GROUP + lane;
            if (i < size) {
                const A gate = GATE_AFTER && z ? silu(Cast<A, T>::of(z[start + i])).value : (A)1;
                const A g = Cast<A, T>::of(dy[start + i]) * gate;
                dw[k] += g * v[k] * root;
                along += g * weight[i] * v[k] * root;
            }
        }
        along = group_fold<GROUP, Plus>(along, (A)0, scratch) / (A)size;
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) {
            const int i = k * GROUP + lane;
            if (i >= size) continue;
            const A out = Cast<A, T>::of(dy[start + i]), hat = v[k] * root;
            const Gate gate = z ? silu(Cast<A, T>::of(z[start + i])) : Gate{1, 0};
            const A g = out * (GATE_AFTER ? gate.value : (A)1);
            const A dv = root * (g * weight[i] - hat * along);
            dx[start + i] = Cast<T, A>::of(GATE_AFTER ? dv : dv * gate.value);
            if (!dz) continue;
            const A slope = GATE_AFTER ? out * weight[i] * hat : dv * Cast<A, T>::of(x[start + i]);
            dz[start + i] = Cast<T, A>::of(slope * gate.slope);
        }
    }
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        const int i = k * GROUP + lane;
        if (i < size) dweight[(run * groups + group) * size + i] = dw[k];
    }
}
