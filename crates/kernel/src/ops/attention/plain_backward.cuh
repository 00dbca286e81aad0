// The gradients of attention on any chip, for every option; see `plain.cuh`. Keys and queries have a
// kernel each, so that every sum belongs to one block: two more products than a single pass, no order
// to wait for.
#pragma once
#include "attention/plain_tiles.cuh"

struct Cotangents {
    Rows out, grad_out;      // of the forward pass, and its cotangent
    const A* grad_lse;       // 0: none
    A* delta;                // out . grad_out - grad_lse, where log-sum-exps lie
    Rows dq, dk, dv;
    A* grad_sinks;           // (heads)
};

// One warp a row.
extern "C" __global__ void __launch_bounds__(256)
plain_delta(const Problem p, const Cotangents g, int longest) {
    const i64 index = (i64)blockIdx.x * 8 + threadIdx.x / 32;
    const int head = index % p.heads, query = index / p.heads % longest;
    const int batch = index / p.heads / longest;
    if (batch >= p.batch) return;
    const Sequence s = p.sequences[batch];
    if (query >= s.q_len) return;
    const auto row = [&](const Rows& rows) {
        return (const T*)rows.data + s.q_batch * rows.batch_stride +
               (i64)(s.q_start + query) * rows.row_stride + head * rows.head_stride;
    };
    const T *out = row(g.out), *grad = row(g.grad_out);
    A sum = 0;
    for (int c = threadIdx.x % 32; c < p.value_dim; c += 32)
        sum += Cast<A, T>::of(out[c]) * Cast<A, T>::of(grad[c]);
    sum = warp_fold<Plus>(sum);
    const i64 at = lse_index(p, s, head, query);
    if (threadIdx.x % 32 == 0) g.delta[at] = sum - (g.grad_lse ? g.grad_lse[at] : (A)0);
}

// One block a head.
extern "C" __global__ void __launch_bounds__(256) plain_sinks(const Problem p, const Cotangents g) {
    __shared__ A scratch[32];
    const int head = blockIdx.x;
    const A sink = p.sinks[head];
    A sum = 0;
    for (int batch = 0; batch < p.batch; ++batch) {
        const Sequence s = p.sequences[batch];
        for (int query = threadIdx.x; query < s.q_len; query += 256) {
            const i64 at = lse_index(p, s, head, query);
            const A lse = p.lse[at];
            if (lse > -infinity()) sum -= exp(sink - lse) * g.delta[at];
        }
    }
    sum = block_fold<Plus>(sum, (A)0, scratch);
    if (threadIdx.x == 0) g.grad_sinks[head] = sum;
}

// From the products of a tile: P with dropout into `weights`, dS into `slopes`, as (row, key).
DEVICE void score_gradients(const Problem& p, const Cotangents& g, const Place& at, int first, int rows,
                            int key, A (&x)[EACH][EACH], A (&dp)[EACH][EACH], A* weights, A* slopes) {
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int row = first + ty * EACH + i, query = row / p.group;
        const int head = at.kv_head * p.group + row % p.group;
        A lse = -infinity(), delta = 0;
        if (row < rows) {
            const i64 index = lse_index(p, at.sequence, head, query);
            lse = p.lse[index];
            delta = g.delta[index];
        }
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            const int column = key + tx + SIDE * j;
            A derivative = 0, w = 0, factor = 1;
            if (lse > -infinity() && column < at.sequence.k_len)
                w = exp(score(p, at.sequence, at.batch, head, query, column, x[i][j], derivative) - lse);
            if (p.dropout && w > (A)0)
                factor = drop_factor(p, at.batch * p.heads + head, query, column);
            const int cell = (ty * EACH + i) * CELLS + tx + SIDE * j;
            weights[cell] = w * factor;
            // Hidden pairs give exactly 0, whatever their products are.
            slopes[cell] =
                w != (A)0 ? w * (factor * dp[i][j] - delta) * derivative * (A)p.softmax_scale : (A)0;
        }
    }
}

DEVICE void store(const Rows& to, const Sequence& s, i64 batch, i64 row, int head, int width,
                  const A (&sum)[PIECES]) {
    T* place = (T*)to.data + batch * to.batch_stride + row * to.row_stride + head * to.head_stride;
#pragma unroll
    for (int c = 0; c < PIECES; ++c) {
        const int column = threadIdx.x % SIDE + SIDE * c;
        if (column < width) place[column] = Cast<T, A>::of(sum[c]);
    }
}

// dk and dv of a tile of keys.
extern "C" __global__ void __launch_bounds__(256, 1)
plain_keys(const Problem p, const Cotangents g, int tiles) {
    extern __shared__ A shared[];
    A *k = shared, *v = k + TILE * WIDTH, *q = v + TILE * WIDTH, *grad = q + TILE * WIDTH;
    A *weights = grad + TILE * WIDTH, *slopes = weights + TILE * CELLS;
    const Place at = place(p, tiles);
    const int key = at.tile * TILE;
    if (key >= at.sequence.k_len) return;
    const int rows = at.sequence.q_len * p.group;
    load_keys(k, p, at, p.k, key, p.head_dim);
    load_keys(v, p, at, p.v, key, p.value_dim);
    A dk[EACH][PIECES], dv[EACH][PIECES];
#pragma unroll
    for (int i = 0; i < EACH; ++i)
#pragma unroll
        for (int c = 0; c < PIECES; ++c) dk[i][c] = dv[i][c] = 0;
    const int end = min(key + TILE, at.sequence.k_len);
    const Range queries = visible_queries(p, at.sequence, key, end);
    const int start = max(queries.start, 0) * p.group / TILE * TILE;
    for (int first = start; first < min(queries.end * p.group, rows); first += TILE) {
        if (!tile_is_kept(p, at, first, rows, key)) continue;
        __syncthreads();
        load_rows<T>(q, p, at, p.q, first, rows, p.head_dim, at.sequence.q_start);
        load_rows<T>(grad, p, at, g.grad_out, first, rows, p.value_dim, at.sequence.q_start);
        __syncthreads();
        A x[EACH][EACH], dp[EACH][EACH];
        products(x, q, k, p.head_dim);
        products(dp, grad, v, p.value_dim);
        score_gradients(p, g, at, first, rows, key, x, dp, weights, slopes);
        __syncthreads();
        accumulate<false>(dv, weights, grad);
        accumulate<false>(dk, slopes, q);
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int own = key + threadIdx.x / SIDE * EACH + i;
        if (own >= at.sequence.k_len) continue;
        const i64 row = at.sequence.k_start + own;
        store(g.dk, at.sequence, at.sequence.kv_batch, row, at.kv_head, p.head_dim, dk[i]);
        store(g.dv, at.sequence, at.sequence.kv_batch, row, at.kv_head, p.value_dim, dv[i]);
    }
}

// dq of a tile of packed rows.
extern "C" __global__ void __launch_bounds__(256, 1)
plain_queries(const Problem p, const Cotangents g, int tiles) {
    extern __shared__ A shared[];
    A *k = shared, *v = k + TILE * WIDTH, *q = v + TILE * WIDTH, *grad = q + TILE * WIDTH;
    A *weights = grad + TILE * WIDTH, *slopes = weights + TILE * CELLS;
    const Place at = place(p, tiles);
    const int rows = at.sequence.q_len * p.group, first = at.tile * TILE;
    if (first >= rows) return;
    load_rows<T>(q, p, at, p.q, first, rows, p.head_dim, at.sequence.q_start);
    load_rows<T>(grad, p, at, g.grad_out, first, rows, p.value_dim, at.sequence.q_start);
    A dq[EACH][PIECES];
#pragma unroll
    for (int i = 0; i < EACH; ++i)
#pragma unroll
        for (int c = 0; c < PIECES; ++c) dq[i][c] = 0;
    const int last = min(first + TILE, rows) - 1;
    const Range keys = visible_keys(p, at.sequence, first / p.group, last / p.group, 0);
    for (int key = keys.start / TILE * TILE; key < keys.end; key += TILE) {
        if (!tile_is_kept(p, at, first, rows, key)) continue;
        __syncthreads();
        load_keys(k, p, at, p.k, key, p.head_dim);
        load_keys(v, p, at, p.v, key, p.value_dim);
        __syncthreads();
        A x[EACH][EACH], dp[EACH][EACH];
        products(x, q, k, p.head_dim);
        products(dp, grad, v, p.value_dim);
        score_gradients(p, g, at, first, rows, key, x, dp, weights, slopes);
        __syncthreads();
        accumulate<true>(dq, slopes, k);
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int row = first + threadIdx.x / SIDE * EACH + i;
        if (row >= rows) continue;
        const int head = at.kv_head * p.group + row % p.group;
        store(g.dq, at.sequence, at.sequence.q_batch, at.sequence.q_start + row / p.group, head,
              p.head_dim, dq[i]);
    }
}
