// The table behind fp8.cuh: products of e4m3 operands, one instruction per width, k-steps of 32.
//
// Register and sum lists are those of wgmma_table.cuh. Eight-bit operands have no transposed form.
#pragma once

#include "device/wgmma_table.cuh"

// clang-format off

#define DANAUS_FP8_TEXT(N, REGS, INPUTS, KEEP)                                       \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %" #KEEP ", 0;\n"                             \
    "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3"                      \
    " {" REGS "}, " INPUTS ", p, 1, 1;\n}"

// I0.. are the operand numbers N / 2, N / 2 + 1, ...
#define DANAUS_FP8_WIDTH(N, R, I0, I1, I2, I3, I4, I5)                                                   \
    template <>                                                                                          \
    struct Fp8Width<N> {                                                                                 \
        DEVICE static void shared_a(float (&d)[R], u64 a, u64 b, int keep) {                             \
            asm volatile(DANAUS_FP8_TEXT(N, DANAUS_REGS_##R, "%" #I0 ", %" #I1, I2)                      \
                         : DANAUS_SUMS_##R : "l"(a), "l"(b), "r"(keep));                                 \
        }                                                                                                \
        DEVICE static void register_a(float (&d)[R], u32 a0, u32 a1, u32 a2, u32 a3, u64 b, int keep) {  \
            asm volatile(DANAUS_FP8_TEXT(N, DANAUS_REGS_##R, "{%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4, I5) \
                         : DANAUS_SUMS_##R : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(keep));     \
        }                                                                                                \
    };

namespace danaus::wgmma {

template <int N>
struct Fp8Width;

DANAUS_FP8_WIDTH(64, 32, 32, 33, 34, 35, 36, 37)
DANAUS_FP8_WIDTH(96, 48, 48, 49, 50, 51, 52, 53)
DANAUS_FP8_WIDTH(128, 64, 64, 65, 66, 67, 68, 69)
DANAUS_FP8_WIDTH(160, 80, 80, 81, 82, 83, 84, 85)
DANAUS_FP8_WIDTH(192, 96, 96, 97, 98, 99, 100, 101)
DANAUS_FP8_WIDTH(224, 112, 112, 113, 114, 115, 116, 117)
DANAUS_FP8_WIDTH(256, 128, 128, 129, 130, 131, 132, 133)

}  // namespace danaus::wgmma
// clang-format on
