// A transposition through shared memory, so that both sides use whole sectors. BITS is an unsigned
// type with the size of an element. The source is contiguous along `rows`, the target along `cols`.
#pragma once
#include "scalar.cuh"

typedef BITS E;

constexpr int kTile = sizeof(E) <= 4 ? 64 : 32;

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
    for (int i = threadIdx.x; i < kTile * kTile; i += 256) {
        const i64 r = r0 + i % kTile, c = c0 + i / kTile;
        if (r < t.rows && c < t.cols) tile[i / kTile][i % kTile] = x[r + c * t.from_col];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kTile * kTile; i += 256) {
        const i64 r = r0 + i / kTile, c = c0 + i % kTile;
        if (r < t.rows && c < t.cols) y[r * t.to_row + c] = tile[i % kTile][i / kTile];
    }
}
