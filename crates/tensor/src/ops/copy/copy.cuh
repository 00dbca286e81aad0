// A transposition through shared memory, so that both sides use whole sectors. BITS is an unsigned
// type with the size of an element. PACK neighbours are moved at once. The source is
// contiguous along `rows`, the target along `cols`.
#pragma once
#include "scalar.cuh"

typedef BITS E;

constexpr int kTile = sizeof(E) <= 4 ? 64 : 32;

// Neighbours that are moved together; all sides, strides and addresses are divisible by it.
constexpr int kPack = PACK;
struct alignas(sizeof(E) * kPack) Pack { E at[kPack]; };

struct Turn {
    i64 rows, cols, row_tiles, col_tiles;
    i64 from_col;  // distance of columns in the source
    i64 to_row;    // distance of rows in the target
    i64 sizes[6], from[6], to[6];  // the other dimensions, outermost first; unused ones have size 1
};

extern "C" __global__ void __launch_bounds__(256)
transpose(const E* __restrict__ x, E* __restrict__ y, const Turn t) {
    __shared__ E tile[kTile][kTile + 1];
    i64 rest = blockIdx.x;
    const i64 c0 = rest % t.col_tiles * kTile;
    rest /= t.col_tiles;
    const i64 r0 = rest % t.row_tiles * kTile;
    rest /= t.row_tiles;
#pragma unroll
    for (int d = 5; d >= 0; --d) {
        const i64 at = rest % t.sizes[d];
        rest /= t.sizes[d];
        x += at * t.from[d];
        y += at * t.to[d];
    }
    constexpr int kPacks = kTile / kPack;
#pragma unroll
    for (int i = threadIdx.x; i < kTile * kPacks; i += 256) {
        const int r = i % kPacks * kPack, c = i / kPacks;
        if (r0 + r >= t.rows || c0 + c >= t.cols) continue;
        const Pack pack = *reinterpret_cast<const Pack*>(x + r0 + r + (c0 + c) * t.from_col);
#pragma unroll
        for (int k = 0; k < kPack; ++k) tile[c][r + k] = pack.at[k];
    }
    __syncthreads();
#pragma unroll
    for (int i = threadIdx.x; i < kTile * kPacks; i += 256) {
        const int r = i / kPacks, c = i % kPacks * kPack;
        if (r0 + r >= t.rows || c0 + c >= t.cols) continue;
        Pack pack;
#pragma unroll
        for (int k = 0; k < kPack; ++k) pack.at[k] = tile[c + k][r];
        *reinterpret_cast<Pack*>(y + (r0 + r) * t.to_row + c0 + c) = pack;
    }
}
