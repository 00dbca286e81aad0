// What an attention call computes, for kernels that serve every option; `cuda/plain.rs` has the same
// structs. Constant: ELEMENT.
#pragma once
#include "block.cuh"
#include "philox.cuh"

typedef ELEMENT T;
typedef typename Accumulator<T>::type A;

// An operand by address and strides in elements.
struct Rows {
    u64 data;
    i64 row_stride, head_stride, batch_stride;
};

struct Sequence {
    int q_batch, q_start, q_len;
    int kv_batch, k_start, k_len;
};

struct Problem {
    const Sequence* sequences;
    Rows q, k, v, out;
    A* lse;
    i64 lse_batch, lse_head, lse_part;
    const int* pages;  // page of (sequence, row / page_size); 0: rows lie in order
    int per_sequence, page_size;
    const A* slopes;  // ALiBi, by head, or by (sequence, head)
    const A* sinks;
    const u8* block_mask;
    i64 mask_batch, mask_head;
    int mask_columns, block_size;
    const u8* keep;  // explicit dropout mask (batch, heads, keep_q, keep_k)
    i64 keep_q, keep_k;
    u64 seed;
    u32 drop_offset, threshold;
    int dropout, slopes_per_batch;
    int batch, heads, kv_heads, group, head_dim, value_dim;
    int window_left, window_right;  // negative: none
    int part_keys, pad;             // keys of a part; 0: one part
    double softmax_scale, softcap, drop_scale;
};

struct Range { int start, end; };

DEVICE A infinity() { return (A)__longlong_as_double(0x7ff0000000000000LL); }

// Address of a key or value row.
DEVICE const void* key_row(const Problem& p, const Sequence& s, int batch, const Rows& rows, int key,
                           int head, int bytes) {
    const int row = s.k_start + key;
    i64 offset = head * rows.head_stride;
    if (p.pages) {
        const int page = p.pages[(i64)batch * p.per_sequence + row / p.page_size];
        offset += page * rows.batch_stride + (row % p.page_size) * rows.row_stride;
    } else {
        offset += s.kv_batch * rows.batch_stride + row * rows.row_stride;
    }
    return (const char*)rows.data + offset * bytes;
}

DEVICE i64 lse_index(const Problem& p, const Sequence& s, int head, int query) {
    return s.q_batch * p.lse_batch + head * p.lse_head + s.q_start + query;
}

// Keys of a part that queries `first..=last` see.
DEVICE Range visible_keys(const Problem& p, const Sequence& s, int first, int last, int part) {
    const int diagonal = s.k_len - s.q_len;
    int start = 0, end = s.k_len;
    if (p.window_left >= 0) start = max(start, first + diagonal - p.window_left);
    if (p.window_right >= 0) end = min(end, last + diagonal + p.window_right + 1);
    if (p.part_keys > 0) {
        start = max(start, part * p.part_keys);
        end = min(end, (part + 1) * p.part_keys);
    }
    return Range{start, end};
}

// Queries that see one of the keys `first..last`.
DEVICE Range visible_queries(const Problem& p, const Sequence& s, int first, int last) {
    const int diagonal = s.k_len - s.q_len;
    int start = 0, end = s.q_len;
    if (p.window_right >= 0) start = max(start, first - diagonal - p.window_right);
    if (p.window_left >= 0) end = min(end, last - 1 - diagonal + p.window_left + 1);
    return Range{start, end};
}

DEVICE bool block_is_kept(const Problem& p, int batch, int head, int query, int key) {
    const i64 at = batch * p.mask_batch + head * p.mask_head;
    return p.block_mask[at + (i64)(query / p.block_size) * p.mask_columns + key / p.block_size] != 0;
}

// The score of a raw dot product, -infinity where hidden, and its derivative by the scaled product.
DEVICE A score(const Problem& p, const Sequence& s, int batch, int head, int query, int key, A dot,
               A& derivative) {
    const int distance = query + s.k_len - s.q_len - key;
    derivative = 1;
    bool hidden = (p.window_left >= 0 && distance > p.window_left) ||
                  (p.window_right >= 0 && -distance > p.window_right);
    if (!hidden && p.block_mask) hidden = !block_is_kept(p, batch, head, query, key);
    if (hidden) return -infinity();
    A x = dot * (A)p.softmax_scale;
    if (p.softcap > 0.0) {
        const A t = tanh(x / (A)p.softcap);
        x = (A)p.softcap * t;
        derivative = (A)1 - t * t;
    }
    if (p.slopes) {
        const A slope = p.slopes[p.slopes_per_batch ? batch * p.heads + head : head];
        x -= slope * (A)(distance < 0 ? -distance : distance);
    }
    return x;
}

// 0, or the inverse of the share that is kept; `batch_head` is batch * heads + head.
DEVICE A drop_factor(const Problem& p, int batch_head, int query, int key) {
    if (p.keep) return p.keep[((i64)batch_head * p.keep_q + query) * p.keep_k + key] ? (A)p.drop_scale : (A)0;
    const u64 low = (u64)p.drop_offset | (u64)(u32)batch_head << 32;
    const u64 high = (u64)(u32)query | (u64)(u32)(key / 16) << 32;
    const Words words = philox<7>(low, high, p.seed);
    const u32 byte = words.at[key % 16 / 4] >> (key % 4 * 8) & 0xff;
    return byte < p.threshold ? (A)p.drop_scale : (A)0;
}
