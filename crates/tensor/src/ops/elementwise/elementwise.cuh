// What generated formulas are made of: reading and writing several neighbours at once, and the
// functions of the expression language. The generated kernel supplies layout and body.
#pragma once
#include "scalar.cuh"

template <class T, int V> struct alignas(sizeof(T) * V) Pack { T at[V]; };

// V neighbours; the address is aligned to all of them, unless fewer are `live`.
template <class C, int V, class T> DEVICE void load_row(const T* from, int live, C (&to)[V]) {
    if (live == V) {
        const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
#pragma unroll
        for (int j = 0; j < V; ++j) to[j] = Cast<C, T>::of(pack.at[j]);
    } else {
#pragma unroll
        for (int j = 0; j < V; ++j)
            if (j < live) to[j] = Cast<C, T>::of(from[j]);
    }
}

// One value for all.
template <class C, int V, class T> DEVICE void load_same(const T* from, C (&to)[V]) {
    const C value = Cast<C, T>::of(*from);
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = value;
}

// Values `stride` apart.
template <class C, int V, class T>
DEVICE void load_apart(const T* from, i64 stride, int live, C (&to)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j)
        if (j < live) to[j] = Cast<C, T>::of(from[j * stride]);
}

template <class C, int V, class T> DEVICE void store_row(T* to, int live, const C (&from)[V]) {
    if (live == V) {
        Pack<T, V> pack;
#pragma unroll
        for (int j = 0; j < V; ++j) pack.at[j] = Cast<T, C>::of(from[j]);
        *reinterpret_cast<Pack<T, V>*>(to) = pack;
    } else {
#pragma unroll
        for (int j = 0; j < V; ++j)
            if (j < live) to[j] = Cast<T, C>::of(from[j]);
    }
}

template <class C, int V, class T>
DEVICE void store_apart(T* to, i64 stride, int live, const C (&from)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j)
        if (j < live) to[j * stride] = Cast<T, C>::of(from[j]);
}

// A constant of the formula, passed as the bits of a double or of an integer.
template <class C> struct Constant {
    static DEVICE C of(i64 bits) { return (C)__longlong_as_double(bits); }
};
template <> struct Constant<i64> { static DEVICE i64 of(i64 bits) { return bits; } };
template <> struct Constant<u64> { static DEVICE u64 of(i64 bits) { return (u64)bits; } };
template <> struct Constant<u32> { static DEVICE u32 of(i64 bits) { return (u32)bits; } };
template <> struct Constant<u16> { static DEVICE u16 of(i64 bits) { return (u16)bits; } };
template <> struct Constant<u8> { static DEVICE u8 of(i64 bits) { return (u8)bits; } };

// Functions of one value; the same definitions as on the processor.
template <class C> DEVICE C op_neg(C a) { return -a; }
template <class C> DEVICE C op_abs(C a) { return fabs(a); }
template <class C> DEVICE C op_sign(C a) { return a > 0 ? (C)1 : a < 0 ? (C)-1 : a * 0; }
template <class C> DEVICE C op_reciprocal(C a) { return (C)1 / a; }
template <class C> DEVICE C op_square(C a) { return a * a; }
template <class C> DEVICE C op_floor(C a) { return floor(a); }
template <class C> DEVICE C op_round(C a) { return rint(a); }
template <class C> DEVICE C op_exp(C a) { return exp(a); }
template <class C> DEVICE C op_ln(C a) { return log(a); }
template <class C> DEVICE C op_sqrt(C a) { return sqrt(a); }
template <class C> DEVICE C op_rsqrt(C a) { return (C)1 / sqrt(a); }
template <class C> DEVICE C op_sin(C a) { return sin(a); }
template <class C> DEVICE C op_cos(C a) { return cos(a); }
template <class C> DEVICE C op_tanh(C a) { return tanh(a); }
template <class C> DEVICE C op_sigmoid(C a) { return (C)1 / ((C)1 + exp(-a)); }
template <class C> DEVICE C op_silu(C a) { return a / ((C)1 + exp(-a)); }
template <class C> DEVICE C op_erf(C a) { return erf(a); }
template <class C> DEVICE C op_gelu(C a) {
    return (C)0.5 * a * erfc(-a * (C)0.70710678118654752440);
}
template <class C> DEVICE C op_gelu_tanh(C a) {
    return (C)0.5 * a *
           ((C)1 + tanh((C)0.79788456080286535588 * (a + (C)0.044715 * a * a * a)));
}
template <class C> DEVICE C op_relu(C a) { return a < 0 ? (C)0 : a; }
template <class C> DEVICE C op_softplus(C a) {
    return a != a ? a : (a > 0 ? a : (C)0) + log1p(exp(-fabs(a)));
}
template <class C> DEVICE C op_not(C a) { return a == 0 ? (C)1 : (C)0; }

// Functions of two values.
template <class C> DEVICE C op_add(C a, C b) { return a + b; }
template <class C> DEVICE C op_sub(C a, C b) { return a - b; }
template <class C> DEVICE C op_mul(C a, C b) { return a * b; }
template <class C> DEVICE C op_div(C a, C b) { return a / b; }
template <class C> DEVICE C op_pow(C a, C b) { return pow(a, b); }
template <class C> DEVICE C op_max(C a, C b) { return a > b || a != a ? a : b; }
template <class C> DEVICE C op_min(C a, C b) { return a < b || a != a ? a : b; }
template <class C> DEVICE C op_atan2(C a, C b) { return atan2(a, b); }
template <class C> DEVICE C op_lt(C a, C b) { return a < b ? (C)1 : (C)0; }
template <class C> DEVICE C op_le(C a, C b) { return a <= b ? (C)1 : (C)0; }
template <class C> DEVICE C op_gt(C a, C b) { return a > b ? (C)1 : (C)0; }
template <class C> DEVICE C op_ge(C a, C b) { return a >= b ? (C)1 : (C)0; }
template <class C> DEVICE C op_eq(C a, C b) { return a == b ? (C)1 : (C)0; }
template <class C> DEVICE C op_ne(C a, C b) { return a != b ? (C)1 : (C)0; }
template <class C> DEVICE C op_and(C a, C b) { return (a != 0) & (b != 0) ? (C)1 : (C)0; }
template <class C> DEVICE C op_or(C a, C b) { return (a != 0) | (b != 0) ? (C)1 : (C)0; }
