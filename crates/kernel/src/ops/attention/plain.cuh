// Attention on any chip, for every option: the path where the Hopper kernels do not go, and what they are
// held against. Constants: those of `plain_tiles.cuh`, and RESULT, the type of out (ELEMENT, or that of
// sums for parts).
#pragma once
#include "attention/plain_tiles.cuh"

// Folds over the 16 threads that share rows.
DEVICE A side_max(A x) {
#pragma unroll
    for (int step = 8; step > 0; step /= 2) {
        const A other = __shfl_xor_sync(0xffffffffu, x, step);
        x = other > x ? other : x;
    }
    return x;
}
DEVICE A side_sum(A x) {
#pragma unroll
    for (int step = 8; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

extern "C" __global__ void __launch_bounds__(256, 1)
plain_forward(const Problem p, int tiles, RESULT* __restrict__ out_start) {
    extern __shared__ A shared[];
    A *q = shared, *kv = q + TILE * WIDTH, *weights = kv + TILE * WIDTH;
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const Place at = place(p, tiles);
    const int rows = at.sequence.q_len * p.group, first = at.tile * TILE;
    if (first >= rows) return;
    load_rows<T>(q, p, at, p.q, first, rows, p.head_dim, at.sequence.q_start);
    A most[EACH], total[EACH], sum[EACH][PIECES];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int row = first + ty * EACH + i;
        const bool has_sink = p.sinks && at.part == 0;
        const A sink = has_sink ? p.sinks[at.kv_head * p.group + row % p.group] : -infinity();
        most[i] = sink;
        total[i] = sink > -infinity() ? (A)1 : (A)0;
#pragma unroll
        for (int c = 0; c < PIECES; ++c) sum[i][c] = 0;
    }
    const int last = min(first + TILE, rows) - 1;
    const Range keys = visible_keys(p, at.sequence, first / p.group, last / p.group, at.part);
    for (int key = keys.start / TILE * TILE; key < keys.end; key += TILE) {
        if (!tile_is_kept(p, at, first, rows, key)) continue;
        __syncthreads();  // the values before are still read
        load_keys(kv, p, at, p.k, key, p.head_dim);
        __syncthreads();
        A x[EACH][EACH];
        products(x, q, kv, p.head_dim);
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int row = first + ty * EACH + i, query = row / p.group;
            const int head = at.kv_head * p.group + row % p.group;
            A top = most[i];
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                A derivative;
                const int column = key + tx + SIDE * j;
                const bool here = row < rows && column >= keys.start && column < keys.end;
                x[i][j] = here ? score(p, at.sequence, at.batch, head, query, column, x[i][j], derivative)
                               : -infinity();
                top = x[i][j] > top ? x[i][j] : top;
            }
            top = side_max(top);
            const A base = top == -infinity() ? (A)0 : top, keep = exp(most[i] - base);
            A row_sum = 0;
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                A w = exp(x[i][j] - base);
                row_sum += w;
                if (p.dropout && w > (A)0)
                    w *= drop_factor(p, at.batch * p.heads + head, query, key + tx + SIDE * j);
                weights[(ty * EACH + i) * CELLS + tx + SIDE * j] = w;
            }
            total[i] = total[i] * keep + side_sum(row_sum);
            most[i] = top;
#pragma unroll
            for (int c = 0; c < PIECES; ++c) sum[i][c] *= keep;
        }
        __syncthreads();
        load_keys(kv, p, at, p.v, key, p.value_dim);
        __syncthreads();
        accumulate<true>(sum, weights, kv);
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int row = first + ty * EACH + i;
        if (row >= rows) continue;
        const int query = row / p.group, head = at.kv_head * p.group + row % p.group;
        RESULT* to = out_start + (at.part * (i64)p.batch + at.sequence.q_batch) * p.out.batch_stride +
                     (i64)(at.sequence.q_start + query) * p.out.row_stride + head * p.out.head_stride;
        const bool empty = total[i] == (A)0;  // not if it is no number
        const A scale = empty ? (A)0 : (A)1 / total[i];
#pragma unroll
        for (int c = 0; c < PIECES; ++c)
            if (tx + SIDE * c < p.value_dim) to[tx + SIDE * c] = Cast<RESULT, A>::of(sum[i][c] * scale);
        if (tx == 0)
            p.lse[at.part * p.lse_part + lse_index(p, at.sequence, head, query)] =
                empty ? -infinity() : most[i] + log(total[i]);
    }
}
