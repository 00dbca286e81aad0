// Rotary embedding: one thread a pair or pair of entries that pass through. Constants: ELEMENT,
// INTERLEAVED the layout of pairs.
#pragma once
#include "fault.cuh"
#include "scalar.cuh"

typedef ELEMENT T;
typedef typename Accumulator<T>::type A;

struct Rotation {
    i64 tokens, seqlen, offset;  // token t stands at offset + t % seqlen, unless positions are given
    i64 table_rows;
    int heads, head_dim, half;   // half = rotary_dim / 2
    int inverse;
};

extern "C" __global__ void __launch_bounds__(256)
rotate(const T* __restrict__ x, const A* __restrict__ cos_table, const A* __restrict__ sin_table,
       const i64* __restrict__ positions, T* __restrict__ y, const Rotation r, Fault* fault,
       u32 check) {
    const i64 rest = r.head_dim - 2 * r.half, units = r.half + rest;
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= r.tokens * r.heads * units) return;
    const i64 row = at / units, token = row / r.heads;
    const int unit = at % units;
    x += row * r.head_dim;
    y += row * r.head_dim;
    if (unit >= r.half) {
        y[unit + r.half] = x[unit + r.half];
        return;
    }
    const i64 position = positions ? positions[token] : r.offset + token % r.seqlen;
    if (!fault_index(fault, check, position, r.table_rows)) return;
    const A c = cos_table[position * r.half + unit];
    A s = sin_table[position * r.half + unit];
    if (r.inverse) s = -s;
    const int i = INTERLEAVED ? 2 * unit : unit, j = INTERLEAVED ? i + 1 : unit + r.half;
    const A a = Cast<A, T>::of(x[i]), b = Cast<A, T>::of(x[j]);
    y[i] = Cast<T, A>::of(a * c - b * s);
    y[j] = Cast<T, A>::of(a * s + b * c);
}
