// Folds of a tensor seen as outer x count x inner along count. Floats are folded in double: the loops
// wait for memory, and no digits are lost. Constants: ELEMENT, WIDE the type of the fold, RESULT,
// FOLD which fold, PLACE 1 for the position of an extreme.
//
// A long fold is cut into parts; `part` = 1 writes states and not results, and `join` folds the states
// of all parts in order.
#pragma once
#include "scalar.cuh"

typedef ELEMENT T;
typedef WIDE A;

#define SUM 0
#define PRODUCT 1
#define MAX 2
#define MIN 3
#define ANY 4
#define ALL 5

struct State {
    A value;
#if PLACE
    i64 index;  // -1 before the first value
#endif
};

DEVICE State start() {
    State s;
#if FOLD == PRODUCT || FOLD == ALL
    s.value = (A)1;
#else
    s.value = (A)0;
#endif
#if FOLD == MAX && !PLACE
    s.value = LOWEST;
#elif FOLD == MIN && !PLACE
    s.value = HIGHEST;
#endif
#if PLACE
    s.index = -1;
#endif
    return s;
}

// `a` comes before `b`.
DEVICE State join(State a, State b) {
#if PLACE
    if (a.index < 0 || b.index < 0) return a.index < 0 ? b : a;
    const bool nan_a = a.value != a.value, nan_b = b.value != b.value;
    const bool better = FOLD == MAX ? b.value > a.value : b.value < a.value;
    const bool equal = a.value == b.value || (nan_a && nan_b);
    return (!nan_a && (nan_b || better)) || (equal && b.index < a.index) ? b : a;
#elif FOLD == SUM
    return State{a.value + b.value};
#elif FOLD == PRODUCT
    return State{a.value * b.value};
#elif FOLD == MAX || FOLD == ANY
    return (b.value > a.value || b.value != b.value) ? b : a;
#else
    return (b.value < a.value || b.value != b.value) ? b : a;
#endif
}

DEVICE State step(State s, T x, i64 index) {
    State one;
    one.value = Cast<A, T>::of(x);
#if PLACE
    one.index = index;
#endif
    return join(s, one);
}

DEVICE void finish(RESULT* y, i64 at, State s) {
#if PLACE
    y[at] = (RESULT)s.index;
#else
    y[at] = Cast<RESULT, A>::of(s.value);
#endif
}

DEVICE State shuffle(State s, int from) {
    State other;
    other.value = __shfl_down_sync(0xffffffffu, s.value, from);
#if PLACE
    other.index = __shfl_down_sync(0xffffffffu, s.index, from);
#endif
    return other;
}

// inner == 1: one block of 256 threads a row and part. Threads take neighbouring elements in turn.
extern "C" __global__ void __launch_bounds__(256)
rows(const T* __restrict__ x, RESULT* y, State* states, i64 outer, i64 count, i64 per_part, int part) {
    __shared__ State scratch[8];
    const i64 row = blockIdx.x, first = blockIdx.y * per_part;
    const i64 last = first + per_part < count ? first + per_part : count;
    const T* from = x + row * count;
    // Four states hide the latency of one.
    State s[4] = {start(), start(), start(), start()};
    i64 at = first + threadIdx.x;
    for (; at + 768 < last; at += 1024) {
#pragma unroll
        for (int k = 0; k < 4; ++k) s[k] = step(s[k], from[at + 256 * k], at + 256 * k);
    }
    for (; at < last; at += 256) s[0] = step(s[0], from[at], at);
    State all = join(join(s[0], s[1]), join(s[2], s[3]));
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) all = join(all, shuffle(all, lanes));
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = all;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < 8; ++warp) all = join(all, scratch[warp]);
        if (part) states[blockIdx.y * outer + row] = all;
        else finish(y, row, all);
    }
}

// inner == 1 and short rows: one warp a row.
extern "C" __global__ void __launch_bounds__(256)
short_rows(const T* __restrict__ x, RESULT* y, i64 outer, i64 count) {
    const i64 row = (i64)blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= outer) return;
    const T* from = x + row * count;
    State s = start();
    for (i64 at = threadIdx.x % 32; at < count; at += 32) s = step(s, from[at], at);
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) s = join(s, shuffle(s, lanes));
    if (threadIdx.x % 32 == 0) finish(y, row, s);
}

// inner > 1: 32 packs of columns a block, eight threads a column. Packs of PACK neighbours are read at
// once; inner and the address are divisible by it.
constexpr int kPack = PACK;
struct alignas(sizeof(T) * kPack) Pack { T at[kPack]; };

// Four blocks a multiprocessor are enough, and leave it registers for what is under way.
extern "C" __global__ void __launch_bounds__(256, 4)
columns(const T* __restrict__ x, RESULT* y, State* states, i64 outer, i64 count, i64 inner,
        i64 per_part, int part) {
    __shared__ State scratch[8][32 * kPack];
    constexpr int kBand = 32 * kPack;
    const i64 bands = (inner + kBand - 1) / kBand, row = blockIdx.x / bands;
    const int lane = threadIdx.x % 32, group = threadIdx.x / 32;
    const i64 column = blockIdx.x % bands * kBand + lane * kPack;
    const i64 first = blockIdx.y * per_part;
    const i64 last = first + per_part < count ? first + per_part : count;
    State s[kPack];
#pragma unroll
    for (int k = 0; k < kPack; ++k) s[k] = start();
    if (column < inner) {
        const T* from = x + row * count * inner + column;
#pragma unroll 4
        for (i64 at = first + group; at < last; at += 8) {
            const Pack pack = *reinterpret_cast<const Pack*>(from + at * inner);
#pragma unroll
            for (int k = 0; k < kPack; ++k) s[k] = step(s[k], pack.at[k], at);
        }
    }
#pragma unroll
    for (int k = 0; k < kPack; ++k) scratch[group][lane * kPack + k] = s[k];
    __syncthreads();
    if (group > 0 || column >= inner) return;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
        for (int other = 1; other < 8; ++other) s[k] = join(s[k], scratch[other][lane * kPack + k]);
        const i64 to = row * inner + column + k;
        if (part) states[blockIdx.y * outer * inner + to] = s[k];
        else finish(y, to, s[k]);
    }
}

// Folds the states of all parts in order.
extern "C" __global__ void __launch_bounds__(256)
join_parts(const State* __restrict__ states, RESULT* y, i64 results, i64 parts) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= results) return;
    State s = states[at];
    for (i64 part = 1; part < parts; ++part) s = join(s, states[part * results + at]);
    finish(y, at, s);
}
