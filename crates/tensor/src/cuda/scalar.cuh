// Element types and conversions. Narrow floats are stored as bits and computed in float.
#pragma once

typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef signed char i8;

struct alignas(16) u128 { u64 low, high; };
struct bf16 { u16 bits; };
struct f16 { u16 bits; };
struct boolean { u8 bits; };

#define DEVICE __device__ __forceinline__

// Programmatic dependent launch: the wait comes before anything is read that the kernel in front may have
// written, and before anything is written that it may still read. Kernels launched without it do not wait.
DEVICE void wait_for_front() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel start where it may, up to its own wait.
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// The type that sums and functions of T are computed in.
template <class T> struct Accumulator { typedef float type; };
template <> struct Accumulator<double> { typedef double type; };

DEVICE float bf16_to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

DEVICE bf16 float_to_bf16(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

DEVICE float f16_to_float(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

DEVICE f16 float_to_f16(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// double to float with the lost digits kept in the last bit, so that rounding once more to a narrow
// type gives what rounding once would.
DEVICE float double_to_odd(double x) {
    float y = __double2float_rz(x);
    if ((double)y != x && x == x) y = __uint_as_float(__float_as_uint(y) | 1u);
    return y;
}

// Cast<To, From>::of(x). Integers truncate floats towards zero and saturate; NaN becomes 0.
template <class To, class From> struct Cast {
    static DEVICE To of(From x) { return (To)x; }
};
template <class To> struct Cast<To, bf16> {
    static DEVICE To of(bf16 x) { return (To)bf16_to_float(x); }
};
template <class To> struct Cast<To, f16> {
    static DEVICE To of(f16 x) { return (To)f16_to_float(x); }
};
template <class To> struct Cast<To, boolean> {
    static DEVICE To of(boolean x) { return (To)(x.bits != 0 ? 1 : 0); }
};
template <class From> struct Cast<bf16, From> {
    static DEVICE bf16 of(From x) { return float_to_bf16((float)x); }
};
template <> struct Cast<bf16, double> {
    static DEVICE bf16 of(double x) { return float_to_bf16(double_to_odd(x)); }
};
template <class From> struct Cast<f16, From> {
    static DEVICE f16 of(From x) { return float_to_f16((float)x); }
};
template <> struct Cast<f16, double> {
    static DEVICE f16 of(double x) { return float_to_f16(double_to_odd(x)); }
};
template <class From> struct Cast<boolean, From> {
    static DEVICE boolean of(From x) { return boolean{(u8)(x != (From)0 ? 1 : 0)}; }
};
// By way of double, as on the processor.
template <> struct Cast<float, i64> {
    static DEVICE float of(i64 x) { return (float)(double)x; }
};

template <class To> DEVICE To saturate(double x, double low, double high, To lowest, To highest) {
    if (!(x == x)) return (To)0;
    if (x <= low) return lowest;
    if (x >= high) return highest;
    return (To)x;
}

#define SATURATING(To, low, high)                                                                \
    template <> struct Cast<To, double> {                                                        \
        static DEVICE To of(double x) {                                                          \
            return saturate<To>(x, (double)(low), (double)(high), (To)(low), (To)(high));        \
        }                                                                                        \
    };                                                                                           \
    template <> struct Cast<To, float> {                                                         \
        static DEVICE To of(float x) { return Cast<To, double>::of((double)x); }                 \
    };

SATURATING(i64, -0x7fffffffffffffffLL - 1, 0x7fffffffffffffffLL)
SATURATING(int, -0x7fffffff - 1, 0x7fffffff)
SATURATING(u32, 0u, 0xffffffffu)
SATURATING(i8, -128, 127)
SATURATING(u8, 0, 255)
