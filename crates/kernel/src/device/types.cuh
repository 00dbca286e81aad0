// Fixed-width names, and the two 16-bit element types of the matrix units.
//
// NVRTC compiles these headers alone: nothing here includes a host or toolkit header.
#pragma once

#define DEVICE __device__ __forceinline__

namespace danaus {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;

constexpr int kWarp = 32;        // threads
constexpr int kWarpgroup = 128;  // threads of one wgmma instruction

// All lanes of the warp must call it: the shuffle, which tells the compiler that the value is the same in
// all lanes, waits for them.
DEVICE int warp_index() {
    return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0);
}

DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

DEVICE int div_up(int a, int b) { return (a + b - 1) / b; }

// Element types are tags: values travel packed, two in a register.
struct Bf16 {
    static constexpr bool kIsBf16 = true;

    DEVICE static u32 pack(float low, float high) {
        u32 packed;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
        return packed;
    }

    DEVICE static float low(u32 packed) { return __uint_as_float(packed << 16); }
    DEVICE static float high(u32 packed) { return __uint_as_float(packed & 0xffff0000u); }
};

struct F16 {
    static constexpr bool kIsBf16 = false;

    DEVICE static u32 pack(float low, float high) {
        u32 packed;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
        return packed;
    }

    DEVICE static float low(u32 packed) {
        float value;
        asm("{.reg .b16 l, h;\n mov.b32 {l, h}, %1;\n cvt.f32.f16 %0, l;}" : "=f"(value) : "r"(packed));
        return value;
    }

    DEVICE static float high(u32 packed) { return low(packed >> 16); }
};

}  // namespace danaus
