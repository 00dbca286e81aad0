// Elementary functions of attention on the device, with their error.
#pragma once

#include "device/types.cuh"

namespace danaus {

constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000u);
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// 2^x by the special-function unit: relative error 2^-22, 0 below 2^-126.
DEVICE float exp2_unit(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 2^x by the multiply-add units, for x <= 127; relative error 7.5e-5, far below the rounding of a 16-bit
// result. The special-function unit does 16 exponentials a cycle and multiprocessor, the multiply-add
// units 128 operations, so giving them a share shortens softmax. The cubic is the minimax polynomial of
// relative error on [-1/2, 1/2].
DEVICE float exp2_polynomial(float x) {
    constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    x = fmaxf(x, -126.f);
    const float shifted = x + kRound;
    const float f = x - (shifted - kRound);
    float p = fmaf(0.05517144f, f, 0.24261081f);
    p = fmaf(p, f, 0.69326099f);
    p = fmaf(p, f, 0.99992809f);
    return __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
}

DEVICE float log2_unit(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Relative error 2^-11.
DEVICE float tanh_unit(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Over the four lanes that hold a row of a wgmma result.
DEVICE float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

DEVICE float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

}  // namespace danaus
