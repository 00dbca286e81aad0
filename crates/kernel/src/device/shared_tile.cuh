// Tiles in shared memory with the 128-byte swizzle, written and read by warps.
//
// Within each group of 8 rows of a panel, the 16-byte chunk c of row r lies at chunk c ^ (r % 8). Panels
// start at multiples of 1024 bytes.
#pragma once

#include "device/types.cuh"

namespace danaus {

// The kernel's dynamic shared memory. Kernels with swizzled tiles declare no other shared memory, so that
// it starts at a multiple of 1024.
DEVICE u32 dynamic_shared() {
    extern __shared__ __align__(1024) u8 shared[];
    return static_cast<u32>(__cvta_generic_to_shared(shared));
}

// Byte offset of chunk `chunk` (8 columns of the tile) of `row`.
template <int kRows>
DEVICE u32 swizzled(u32 row, u32 chunk) {
    static_assert(kRows % 8 == 0, "the swizzle repeats every 8 rows");
    return (chunk / 8) * (kRows * 128) + row * 128 + (((chunk ^ row) % 8) * 16);
}

DEVICE void store_matrices(u32 address, u32 r0, u32 r1, u32 r2, u32 r3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
}

DEVICE void store_matrices_transposed(u32 address, u32 r0, u32 r1, u32 r2, u32 r3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
}

// Writes a warpgroup's packed product (64 rows of kColumns) to rows `first_row`.. of a tile of kRows.
template <int kRows, int kColumns>
DEVICE void store_product(u32 tile, int first_row, const u32 (&packed)[kColumns / 4]) {
    const u32 lane = lane_index(), warp = warp_index() % 4;
    const u32 row = first_row + 16 * warp + lane % 16;
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j) {
        const u32 address = tile + swizzled<kRows>(row, 2 * j + lane / 16);
        store_matrices(address, packed[4 * j], packed[4 * j + 1], packed[4 * j + 2], packed[4 * j + 3]);
    }
}

// Writes the transpose: the warpgroup's 64 rows become columns `first_column`.. of a tile of kRows,
// whose rows are the product's kColumns columns.
template <int kRows, int kColumns>
DEVICE void store_product_transposed(u32 tile, int first_column, const u32 (&packed)[kColumns / 4]) {
    const u32 lane = lane_index(), warp = warp_index() % 4;
    // Matrices 0 and 1 are the product's rows 0-7 and 8-15, 2 and 3 its next 8 columns. 16 rows further
    // the swizzle is the same.
    const u32 address = tile + swizzled<kRows>(8 * (lane / 16) + lane % 8, first_column / 8 + 2 * warp + (lane / 8) % 2);
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j) {
        store_matrices_transposed(address + j * (16 * 128), packed[4 * j], packed[4 * j + 1], packed[4 * j + 2], packed[4 * j + 3]);
    }
}

DEVICE uint4 load_16_bytes(u32 address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
    return v;
}

DEVICE void store_16_bytes(u32 address, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// Clears the rows from `first` on, spread over a warpgroup.
template <int kRows, int kColumns>
DEVICE void clear_rows(u32 tile, int first) {
    constexpr int kChunks = kColumns / 8;
    for (int i = first * kChunks + threadIdx.x % kWarpgroup; i < kRows * kChunks; i += kWarpgroup) {
        store_16_bytes(tile + swizzled<kRows>(i / kChunks, i % kChunks), uint4{0, 0, 0, 0});
    }
}

}  // namespace danaus
