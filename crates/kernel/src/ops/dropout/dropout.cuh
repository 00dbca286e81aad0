// Dropout: one thread a block of four random words. Constant: ELEMENT.
#pragma once
#include "philox.cuh"

typedef ELEMENT T;
typedef typename Accumulator<T>::type A;

extern "C" __global__ void __launch_bounds__(256)
drop(const T* __restrict__ x, T* __restrict__ y, i64 count, u64 seed, u64 stream, u64 threshold,
     double scale) {
    const i64 block = (i64)blockIdx.x * 256 + threadIdx.x;
    if (block * 4 >= count) return;
    const Words words = philox<10>((u64)block, stream, seed);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const i64 at = block * 4 + k;
        if (at >= count) return;
        const bool keep = (u64)words.at[k] >= threshold;
        y[at] = Cast<T, A>::of(keep ? Cast<A, T>::of(x[at]) * (A)scale : (A)0);
    }
}
