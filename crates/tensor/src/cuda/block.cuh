// Folds over the threads of a warp and a block, in an order that only the sizes decide.
#pragma once
#include "scalar.cuh"

struct Plus {
    template <class A> static DEVICE A of(A a, A b) { return a + b; }
};
// NaN wins, as on the processor.
struct Larger {
    template <class A> static DEVICE A of(A a, A b) { return (b > a || b != b) ? b : a; }
};

// The fold over the 32 lanes, in every lane.
template <class Fold, class A> DEVICE A warp_fold(A value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        value = Fold::of(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
}

// The fold over all threads of a block of whole warps, in every thread. `scratch` holds 32 values.
template <class Fold, class A> DEVICE A block_fold(A value, A start, A* scratch) {
    value = warp_fold<Fold>(value);
    const int warps = blockDim.x / 32;
    if (warps == 1) return value;
    __syncthreads();  // the scratch of an earlier fold may still be read
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    value = (int)(threadIdx.x % 32) < warps ? scratch[threadIdx.x % 32] : start;
    return warp_fold<Fold>(value);
}

// Bounds of kernels whose rows stay in registers: without the 1 the compiler aims at full occupancy and
// spills a register or two for it.
#define ROW_BOUNDS(group) __launch_bounds__((group) < 256 ? 256 : (group), 1)

// The fold over a group of THREADS neighbouring threads: a warp, or the whole block.
template <int THREADS, class Fold, class A> DEVICE A group_fold(A value, A start, A* scratch) {
    if constexpr (THREADS == 32) return warp_fold<Fold>(value);
    else return block_fold<Fold>(value, start, scratch);
}
