// Small pieces of the Hopper kernels: where a thread's numbers of a product lie, operands from shared
// memory, and rows of 64 bf16 numbers on their way out.
#pragma once

#include "device/math.cuh"
#include "device/shared_tile.cuh"
#include "device/wgmma.cuh"

namespace danaus::ssd {

// A thread's first row and first column of a product; it also has the row 8 below, and columns 1 and 8 k on.
struct Place {
    int row, column;

    DEVICE Place() : row(16 * (warp_index() % 4) + lane_index() / 4), column(2 * (lane_index() % 4)) {}
};

DEVICE float load_number(u32 address) {
    float v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
    return v;
}

DEVICE u32 load_word(u32 address) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return v;
}

DEVICE float2 load_pair(u32 address) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
    return v;
}

DEVICE void store_number(u32 address, float v) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory"); }

DEVICE u32 scale_pair(u32 packed, float2 factor) { return Bf16::pack(Bf16::low(packed) * factor.x, Bf16::high(packed) * factor.y); }

DEVICE float silu(float x) { return x / (1.f + exp2_unit(-kLog2E * x)); }

// Both of a thread's rows.
DEVICE void scale_rows(float (&values)[32], float2 factor) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        values[4 * j] *= factor.x;
        values[4 * j + 1] *= factor.x;
        values[4 * j + 2] *= factor.y;
        values[4 * j + 3] *= factor.y;
    }
}

DEVICE void load_matrices(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

DEVICE void load_matrices_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// A 64 x 64 tile as the packed A operand of a product.
DEVICE void load_operand(u32 (&operand)[16], u32 tile) {
    const u32 lane = lane_index(), row = 16 * (warp_index() % 4) + lane % 16;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
        u32 r[4];
        load_matrices(r, tile + swizzled<64>(row, 2 * s + lane / 16));
#pragma unroll
        for (int k = 0; k < 4; ++k) operand[4 * s + k] = r[k];
    }
}

// Its transpose likewise.
DEVICE void load_transposed(u32 (&operand)[16], u32 tile) {
    const u32 lane = lane_index(), chunk = 2 * (warp_index() % 4) + lane / 8 % 2;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
        u32 r[4];
        load_matrices_transposed(r, tile + swizzled<64>(16 * s + 8 * (lane / 16) + lane % 8, chunk));
#pragma unroll
        for (int k = 0; k < 4; ++k) operand[4 * s + k] = r[k];
    }
}

// Writes the first `rows` of a product of 64 x 64 to rows in memory, whole lines at a time. Each warp
// stages its own rows in `tile`.
DEVICE void store_rows(u8* to, i64 row_bytes, int rows, const u32 (&packed)[16], u32 tile) {
    __syncwarp();
    store_product<64, 64>(tile, 0, packed);
    __syncwarp();
    const u32 lane = lane_index();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const int row = 16 * (warp_index() % 4) + 4 * k + lane / 8;
        const uint4 line = load_16_bytes(tile + swizzled<64>(row, lane % 8));
        if (row < rows) *reinterpret_cast<uint4*>(to + row * row_bytes + 16 * (lane % 8)) = line;
    }
}

}  // namespace danaus::ssd
