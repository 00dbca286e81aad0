// Eight-bit floats (e4m3) as operands of the matrix units.
//
// Both operands lie with the summed index along the row: there is no transposed form. A tile is held as
// column panels of 128 bytes (64 or 32 where the row is no multiple) with the swizzle of that width.
// Nothing but these functions knows the layout: whoever quantises a tile writes it to memory as it will
// stand in shared memory, so that a flat copy brings it.
//
// As the A operand, a 64 x 32 step of a product's result takes four columns of one row in one register,
// where the result holds pairs: columns 2 t, 2 t + 1, 8 + 2 t and 9 + 2 t of each 16. `permuted` is the
// order of the summed index in which the other operand must be stored, so that no value has to move.
#pragma once

#include "device/wgmma.cuh"
#include "device/wgmma_fp8_table.cuh"

namespace danaus {

constexpr float kLargestE4m3 = 448.f;

// Rounds to nearest even, saturates, keeps NaN; the first in the lowest byte.
DEVICE u32 pack_e4m3(float a, float b, float c, float d) {
    u32 packed;
    asm("{.reg .b16 l, h;\n cvt.rn.satfinite.e4m3x2.f32 l, %2, %1;\n cvt.rn.satfinite.e4m3x2.f32 h, %4, %3;\n mov.b32 %0, {l, h};}"
        : "=r"(packed)
        : "f"(a), "f"(b), "f"(c), "f"(d));
    return packed;
}

// Which of each 16 indices stands at position `at`.
DEVICE constexpr int permuted(int at) { return 8 * (at / 2 % 2) + 2 * (at / 4) + at % 2; }

}  // namespace danaus

namespace danaus::wgmma {

template <int kRows, int kBytes>
struct ByteRows {
    static_assert(kBytes % 32 == 0 && kRows % 8 == 0, "a row is k-steps of 32 bytes, the swizzle repeats every 8 rows");
    static constexpr u32 kWidth = kBytes % 128 == 0 ? 128 : kBytes % 64 == 0 ? 64 : 32;
    static constexpr u64 kSwizzle = static_cast<u64>(kWidth == 128 ? 1 : kWidth == 64 ? 2 : 3) << 62;
    static constexpr u32 kTileBytes = kRows * kBytes;

    DEVICE static u64 descriptor(u32 address) { return field(address, 0) | field(16, 16) | field(8 * kWidth, 32) | kSwizzle; }

    DEVICE static constexpr u32 offset(int step) { return (32 * step / kWidth * (kRows * kWidth) + 32 * step % kWidth) >> 4; }

    // Where the byte lies in the tile.
    DEVICE static constexpr u32 place(u32 row, u32 byte) {
        const u32 chunk = byte % kWidth / 16, turned = kWidth == 128 ? row % 8 : kWidth == 64 ? row / 2 % 4 : row / 4 % 2;
        return byte / kWidth * (kRows * kWidth) + row * kWidth + (chunk ^ turned) * 16 + byte % 16;
    }
};

// D (64 x N) = A B over `kSteps` k-steps of 32 bytes, added to D if `keep`; see `product`.
template <int kN, int kSteps, class LayoutA, class LayoutB>
DEVICE void fp8_product(float (&d)[kN / 2], u32 a, u32 b, bool keep) {
    const u64 da = LayoutA::descriptor(a), db = LayoutB::descriptor(b);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        Fp8Width<kN>::shared_a(d, da + LayoutA::offset(step), db + LayoutB::offset(step), step > 0 || keep);
    }
}

template <int kN, int kSteps, class LayoutB>
DEVICE void fp8_product(float (&d)[kN / 2], const u32 (&a)[4 * kSteps], u32 b, bool keep) {
    const u64 db = LayoutB::descriptor(b);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        Fp8Width<kN>::register_a(d, a[4 * step], a[4 * step + 1], a[4 * step + 2], a[4 * step + 3], db + LayoutB::offset(step), step > 0 || keep);
    }
}

// A product's result as the A operand of the next, whose B is stored in `permuted` order.
template <int kCount>
DEVICE void pack_fp8(u32 (&packed)[kCount / 4], const float (&d)[kCount]) {
#pragma unroll
    for (int j = 0; j < kCount / 8; ++j) {  // 16 columns, of two rows
#pragma unroll
        for (int i = 0; i < 2; ++i) packed[2 * j + i] = pack_e4m3(d[8 * j + 2 * i], d[8 * j + 2 * i + 1], d[8 * j + 4 + 2 * i], d[8 * j + 4 + 2 * i + 1]);
    }
}

}  // namespace danaus::wgmma
