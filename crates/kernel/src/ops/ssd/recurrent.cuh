// The recurrence itself, token by token: decoding steps, every shape and type, and the invariant level,
// where a token's bits do not depend on how many tokens are processed together.
//
// A warp keeps ROWS rows of a head's state, LANE_STATES numbers a lane and row. Constants: ELEMENT, ROWS,
// LANE_STATES, VECTOR 1 if d_state is 32 LANE_STATES and rows are aligned to a lane's part.
#pragma once
#include "scalar.cuh"
#include "ssd/problem.cuh"
#include "ssd/step_size.cuh"

namespace danaus::ssd {

typedef ELEMENT T;
typedef typename Accumulator<T>::type A;
constexpr int kRows = ROWS, kStates = LANE_STATES, kWarps = 4;

// Row strides are in elements.
struct Arrays {
    const T *x, *b, *c, *z;
    const A *dt, *a, *d, *bias, *initial;
    T* y;
    A* last;
    i64 x_row, b_row, c_row, z_row;
};

template <class E, int kCount>
struct alignas(sizeof(E) * kCount) Pack {
    E values[kCount];
};

// A lane's part of a row of d_state numbers.
template <class E>
DEVICE void load_part(A (&to)[kStates], const E* row, int lane, int n) {
    if constexpr (VECTOR && sizeof(E) * kStates <= 16) {
        const Pack<E, kStates> pack = reinterpret_cast<const Pack<E, kStates>*>(row)[lane];
#pragma unroll
        for (int k = 0; k < kStates; ++k) to[k] = Cast<A, E>::of(pack.values[k]);
    } else {
#pragma unroll
        for (int k = 0; k < kStates; ++k) {
            const int column = lane * kStates + k;
            to[k] = column < n ? Cast<A, E>::of(row[column]) : (A)0;
        }
    }
}

DEVICE void store_part(A* row, const A (&from)[kStates], int lane, int n) {
    if constexpr (VECTOR && sizeof(A) * kStates <= 16) {
        Pack<A, kStates> pack;
#pragma unroll
        for (int k = 0; k < kStates; ++k) pack.values[k] = from[k];
        reinterpret_cast<Pack<A, kStates>*>(row)[lane] = pack;
    } else {
#pragma unroll
        for (int k = 0; k < kStates; ++k)
            if (lane * kStates + k < n) row[lane * kStates + k] = from[k];
    }
}

// What a warp reads for one token.
struct Token {
    A x[kRows], b[kStates], c[kStates];
    A dt, a;

    DEVICE void load(const Arrays& from, const Problem& p, i64 token, int head, int first, int lane) {
        const T* row = from.x + token * from.x_row + (i64)head * p.head_dim;
#pragma unroll
        for (int r = 0; r < kRows; ++r) x[r] = first + r < p.head_dim ? Cast<A, T>::of(row[first + r]) : (A)0;
        const i64 group = (i64)group_of(p, head) * p.d_state;
        load_part(b, from.b + token * from.b_row + group, lane, p.d_state);
        load_part(c, from.c + token * from.c_row + group, lane, p.d_state);
        dt = from.dt[token * p.heads + head];
    }
};

extern "C" __global__ void __launch_bounds__(32 * kWarps, 1)
recurrent(const Arrays arrays, const Problem p, const StepOptions options) {
    const int lane = threadIdx.x % 32, slices = (p.head_dim + kRows - 1) / kRows;
    const i64 task = (i64)blockIdx.x * kWarps + threadIdx.x / 32;
    if (task >= (i64)p.run_count * p.heads * slices) return;
    const int first = (int)(task % slices) * kRows, head = (int)(task / slices % p.heads);
    const Run run = run_at(p, (int)(task / slices / p.heads));
    const i64 size = (i64)p.head_dim * p.d_state, inside = (i64)first * p.d_state;
    A state[kRows][kStates];
    const A* from = arrays.initial && run.initial >= 0 ? arrays.initial + (run.initial * p.heads + head) * size + inside : nullptr;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int k = 0; k < kStates; ++k) state[r][k] = 0;
        if (from && first + r < p.head_dim) load_part(state[r], from + (i64)r * p.d_state, lane, p.d_state);
    }
    const A bias = arrays.bias ? arrays.bias[head] : (A)0;
    const A rate = options.core ? (A)0 : arrays.a[head];
    const i64 end = run.start + run.length;
    Token now, next;
    if (run.length > 0) next.load(arrays, p, run.start, head, first, lane);
    for (i64 token = run.start; token < end; ++token) {
        now = next;
        if (token + 1 < end) next.load(arrays, p, token + 1, head, first, lane);
        const A scale = step_size<A>(now.dt, bias, options).value;
        const A decay = exp(options.core ? arrays.a[token * p.heads + head] : rate * scale);
        A mine = 0, x_mine = 0;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            const A factor = scale * now.x[r];
            A sum = 0;
#pragma unroll
            for (int k = 0; k < kStates; ++k) {
                state[r][k] = decay * state[r][k] + factor * now.b[k];
                sum += state[r][k] * now.c[k];
            }
#pragma unroll
            for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
            if (lane == r) mine = sum, x_mine = now.x[r];
        }
        if (lane < kRows && first + lane < p.head_dim) {
            const i64 column = (i64)head * p.head_dim + first + lane;
            if (arrays.d) mine += arrays.d[column] * x_mine;
            if (arrays.z) {
                const A gate = Cast<A, T>::of(arrays.z[token * arrays.z_row + column]);
                mine *= gate / ((A)1 + exp(-gate));
            }
            arrays.y[token * p.heads * p.head_dim + column] = Cast<T, A>::of(mine);
        }
    }
    if (run.last < 0 || !arrays.last) return;
    A* to = arrays.last + (run.last * p.heads + head) * size + inside;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
        if (first + r < p.head_dim) store_part(to + (i64)r * p.d_state, state[r], lane, p.d_state);
}

}  // namespace danaus::ssd
