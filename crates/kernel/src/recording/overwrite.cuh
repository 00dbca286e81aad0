// Bytes from many places to many others. Constant: none.
#pragma once
#include "scalar.cuh"

struct Places {
    u64 at[96];
};
struct Sizes {
    i64 bytes[96];
};
struct alignas(16) Piece {
    u64 low, high;
};

// Row y of the grid copies `sizes.bytes[y]` bytes, 16 at a time where both places allow it.
extern "C" __global__ void __launch_bounds__(256)
overwrite(const Places from, const Places to, const Sizes sizes) {
    const i64 bytes = sizes.bytes[blockIdx.y];
    const u64 source = from.at[blockIdx.y], target = to.at[blockIdx.y];
    const i64 first = (i64)blockIdx.x * 256 + threadIdx.x, step = (i64)gridDim.x * 256;
    const i64 pieces = (source | target) % 16 == 0 ? bytes / 16 : 0;
    for (i64 i = first; i < pieces; i += step) ((Piece*)target)[i] = ((const Piece*)source)[i];
    for (i64 i = pieces * 16 + first; i < bytes; i += step)
        ((unsigned char*)target)[i] = ((const unsigned char*)source)[i];
}
