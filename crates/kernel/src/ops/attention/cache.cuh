// Rows into a cache, and parts of attention into one. Constants: ELEMENT, and RESULT, the type of out.
#pragma once
#include "attention/plain_problem.cuh"

// Writes new keys and values behind those in use: row t of a sequence becomes its key k_len - fresh + t.
// `p.k` and `p.v` are the cache.
extern "C" __global__ void __launch_bounds__(256)
cache_append(const Problem p, const Rows k_new, const Rows v_new, int fresh) {
    const i64 width = (i64)p.kv_heads * (p.head_dim + p.value_dim);
    const i64 index = (i64)blockIdx.x * 256 + threadIdx.x;
    const i64 row = index / width;
    const int batch = row / fresh, t = row % fresh;
    if (batch >= p.batch) return;
    const Sequence s = p.sequences[batch];
    int at = index % width;
    const bool is_key = at < p.kv_heads * p.head_dim;
    if (!is_key) at -= p.kv_heads * p.head_dim;
    const int dim = is_key ? p.head_dim : p.value_dim;
    const int head = at / dim, column = at % dim;
    const Rows& from = is_key ? k_new : v_new;
    const T x = ((const T*)from.data)[batch * from.batch_stride + t * from.row_stride +
                                      head * from.head_stride + column];
    T* to = (T*)key_row(p, s, batch, is_key ? p.k : p.v, s.k_len - fresh + t, head, sizeof(T));
    to[column] = x;
}

// o = sum over parts of e^(L_part - L) o_part in the order of the parts; one block a row. `rows` is the
// distance between parts in rows.
extern "C" __global__ void __launch_bounds__(128)
attention_join(const Problem p, const A* __restrict__ partial, const A* __restrict__ partial_lse,
               int parts, int q_len, RESULT* __restrict__ out) {
    __shared__ A weights[256];
    __shared__ A scratch[32];
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");  // started while the parts are still made
#endif
    const i64 row = blockIdx.x;  // (batch, query, head)
    const int head = row % p.heads, query = row / p.heads % q_len;
    const i64 batch = row / p.heads / q_len, rows = (i64)p.batch * q_len * p.heads;
    const i64 at = batch * p.lse_batch + head * p.lse_head + query;
    A top = -infinity();
    for (int part = threadIdx.x; part < parts; part += 128)
        top = Larger::of(top, partial_lse[part * rows + at]);
    top = block_fold<Larger>(top, -infinity(), scratch);
    const A base = top == -infinity() ? (A)0 : top;
    A sum = 0;
    for (int part = threadIdx.x; part < parts; part += 128)
        sum += weights[part] = exp(partial_lse[part * rows + at] - base);
    sum = block_fold<Plus>(sum, (A)0, scratch);
    __syncthreads();
    const A scale = sum == (A)0 ? (A)0 : (A)1 / sum;
    for (int column = threadIdx.x; column < p.value_dim; column += 128) {
        A total = 0;
        // Sixteen at a time are on their way; a part without keys is zeros.
        for (int part = 0; part < parts; part += 16) {
            A x[16];
#pragma unroll
            for (int i = 0; i < 16; ++i)
                x[i] = part + i < parts ? partial[((part + i) * rows + row) * p.value_dim + column] : (A)0;
#pragma unroll
            for (int i = 0; i < 16; ++i)
                if (part + i < parts) total += weights[part + i] * x[i];
        }
        out[row * p.value_dim + column] = Cast<RESULT, A>::of(total * scale);
    }
    if (threadIdx.x == 0) p.lse[at] = sum == (A)0 ? -infinity() : base + log(sum);
}
