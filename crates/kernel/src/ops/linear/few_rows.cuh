// y = x W^T + bias + residual for up to four rows of x: as long as reading W takes, and no longer.
//
// Constants: ELEMENT (bf16 or float), ROWS of x. A warp has a row of W, 16 bytes a lane at a time, several
// of them on their way. Where W is older than what runs, the first are asked for before the kernel in front
// has ended (`early`). Sums are f32 in an order that the number of features gives alone.
#pragma once
#include "scalar.cuh"

typedef ELEMENT T;

constexpr int DEPTH = 4;

struct alignas(16) Quad {
    u32 at[4];
};

DEVICE Quad stream(const Quad* from) {
    Quad x;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.at[0]), "=r"(x.at[1]), "=r"(x.at[2]), "=r"(x.at[3])
                 : "l"(from));
    return x;
}

DEVICE float dot(const Quad& a, const Quad& b, float sum, float) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += __uint_as_float(a.at[i]) * __uint_as_float(b.at[i]);
    return sum;
}

DEVICE float dot(const Quad& a, const Quad& b, float sum, bf16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        sum += __uint_as_float(a.at[i] << 16) * __uint_as_float(b.at[i] << 16);
        sum += __uint_as_float(a.at[i] & 0xffff0000u) * __uint_as_float(b.at[i] & 0xffff0000u);
    }
    return sum;
}

// x is `ROWS` rows of `pieces` quads, W `out` of them; `bias` and `residual` may be null.
extern "C" __global__ void __launch_bounds__(128)
few_rows(const Quad* x, const Quad* weight, const T* bias, const T* residual, T* y, int out, int pieces,
         int early) {
    const int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= out) return;
    const Quad* weights = weight + (i64)row * pieces;
    Quad ahead[DEPTH];
    if (!early) wait_for_front();
#pragma unroll
    for (int d = 0; d < DEPTH; ++d)
        if (lane + 32 * d < pieces) ahead[d] = stream(weights + lane + 32 * d);
    if (early) wait_for_front();
    let_next_start();
    float sum[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) sum[r] = 0.0f;
    for (int first = lane; first < pieces; first += 32 * DEPTH) {
        Quad now[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) now[d] = ahead[d];
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            const int next = first + 32 * (DEPTH + d);
            if (next < pieces) ahead[d] = stream(weights + next);
        }
        if (first + 32 * (DEPTH - 1) < pieces) {
            // Without a bound in between, the parts of x are on their way together.
#pragma unroll
            for (int d = 0; d < DEPTH; ++d)
#pragma unroll
                for (int r = 0; r < ROWS; ++r)
                    sum[r] = dot(now[d], x[r * pieces + first + 32 * d], sum[r], T());
            continue;
        }
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            const int at = first + 32 * d;
            if (at >= pieces) break;
#pragma unroll
            for (int r = 0; r < ROWS; ++r) sum[r] = dot(now[d], x[r * pieces + at], sum[r], T());
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2)
            sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], step);
        if (lane == r) {
            const i64 at = (i64)r * out + row;
            float value = sum[r];
            if (bias) value += Cast<float, T>::of(bias[row]);
            if (residual) value += Cast<float, T>::of(residual[at]);
            y[at] = Cast<T, float>::of(value);
        }
    }
}
