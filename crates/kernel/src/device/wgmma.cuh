// Warpgroup matrix products: D (64 x N, f32 in registers) += A (64 x K) B (K x N), asynchronous.
//
// Registers of D: warp w, lane 4 g + t holds rows 16 w + g + 8 i, columns 8 j + 2 t + c in d[4 j + 2 i + c].
// As a 16-bit A operand, the k-step s takes exactly the packed pairs of j = 2 s and 2 s + 1, so a
// product's result feeds the next product without moving between threads.
//
// Operands in shared memory are column panels of 64 elements with the 128-byte swizzle (see tma.cuh).
// Such a panel serves both as K-major (the summed index runs along the row) and as MN-major (it runs
// over rows) operand.
//
// Rules: `arrive` after touching registers that a product will use, `commit` after the products,
// `wait<n>` and `settle` before reading results. Between, no other code may touch the registers.
#pragma once

#include "device/types.cuh"
#include "device/wgmma_table.cuh"

namespace danaus::wgmma {

DEVICE void arrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most `kPending` groups are unfinished.
template <int kPending>
DEVICE void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps a later `wait` behind the computation of values that are never negative: ptxas leaves memory
// operations and waits in order, but moves arithmetic behind a wait that it does not depend on, and then
// nothing overlaps with the products in flight. `scratch` is shared memory that nobody reads; nothing is
// stored unless a value has its sign set, which only a NaN has.
DEVICE void hold_wait(u32 bits, u32 scratch) {
    asm volatile("{\n.reg .pred p;\nsetp.lt.s32 p, %0, 0;\n@p st.shared.u32 [%1], %0;\n}" ::"r"(bits), "r"(scratch) : "memory");
}

template <int kCount>
DEVICE void hold_wait(const float (&values)[kCount], u32 scratch) {
    u32 bits = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) bits |= __float_as_uint(values[i]);
    hold_wait(bits, scratch);
}

// Keeps the compiler from moving uses of the registers over this point.
template <int kCount>
DEVICE void settle(float (&registers)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

template <int kCount>
DEVICE void settle(u32 (&registers)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

constexpr int kPanel = 64;           // columns
constexpr int kPanelRowBytes = 128;  // bytes of one row of a panel
constexpr int kStepBytes = 32;       // 16 columns
constexpr u64 kSwizzle128 = 1ull << 62;

DEVICE constexpr u64 field(u32 bytes, int shift) { return static_cast<u64>((bytes & 0x3FFFFu) >> 4) << shift; }

// The summed index runs along the 128-byte rows.
template <int kRows>
struct AlongRows {
    static constexpr int kTrans = 0;
    static constexpr u32 kPanelBytes = kRows * kPanelRowBytes;

    DEVICE static u64 descriptor(u32 address) { return field(address, 0) | field(16, 16) | field(1024, 32) | kSwizzle128; }

    // Distance of the k-step `step` (16 of the summed index), in the descriptor's units.
    DEVICE static constexpr u32 offset(int step) { return ((step / 4) * kPanelBytes + (step % 4) * kStepBytes) >> 4; }
};

// The summed index runs over the rows of the tile.
template <int kRows>
struct OverRows {
    static constexpr int kTrans = 1;
    static constexpr u32 kPanelBytes = kRows * kPanelRowBytes;

    DEVICE static u64 descriptor(u32 address) { return field(address, 0) | field(kPanelBytes, 16) | field(1024, 32) | kSwizzle128; }

    DEVICE static constexpr u32 offset(int step) { return (step * 16 * kPanelRowBytes) >> 4; }
};

// D (64 x N) = A B over `kSteps` k-steps of 16, added to D if `keep`. Both operands in shared memory,
// at `a` and `b`; the layouts are AlongRows or OverRows of the whole tile's rows.
template <class T, int kN, int kSteps, class LayoutA, class LayoutB>
DEVICE void product(float (&d)[kN / 2], u32 a, u32 b, bool keep) {
    static_assert(kN % 16 == 0 && kN >= 16 && kN <= 256, "wgmma: N is a multiple of 16 up to 256");
    const u64 da = LayoutA::descriptor(a), db = LayoutB::descriptor(b);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        Width<kN>::template shared_a<T, LayoutA::kTrans, LayoutB::kTrans>(
            d, da + LayoutA::offset(step), db + LayoutB::offset(step), step > 0 || keep);
    }
}

// The same with A packed in registers, four a k-step.
template <class T, int kN, int kSteps, class LayoutB>
DEVICE void product(float (&d)[kN / 2], const u32 (&a)[4 * kSteps], u32 b, bool keep) {
    static_assert(kN % 16 == 0 && kN >= 16 && kN <= 256, "wgmma: N is a multiple of 16 up to 256");
    const u64 db = LayoutB::descriptor(b);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        Width<kN>::template register_a<T, LayoutB::kTrans>(
            d, a[4 * step], a[4 * step + 1], a[4 * step + 2], a[4 * step + 3], db + LayoutB::offset(step), step > 0 || keep);
    }
}

// A product's result as the A operand of the next.
template <class T, int kCount>
DEVICE void pack(u32 (&packed)[kCount / 2], const float (&d)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) packed[i] = T::pack(d[2 * i], d[2 * i + 1]);
}

}  // namespace danaus::wgmma
