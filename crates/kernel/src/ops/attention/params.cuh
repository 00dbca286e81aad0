// Arguments of the attention kernels; `cuda/params.rs` mirrors them field by field.
#pragma once

#include "device/types.cuh"

namespace danaus::attention {

// One problem. Lengths are those of every sequence, or the longest of packed ones.
struct Problem {
    // (batch + 1) bounds along the packed axis; null unless packed.
    const int* cu_seqlens_q;
    const int* cu_seqlens_k;
    int batch;
    int heads;
    int group;  // query heads of a key head
    int q_len;
    int k_len;
    int total_q;  // rows of a packed q
    // Keys visible left and right of the diagonal; read only by kernels built with a window.
    int window_left;
    int window_right;
    // Scores are `exponent_factor * s` in base 2, where s is the dot product, or with softcap
    // tanh(score_factor * dot product).
    float score_factor;
    float exponent_factor;
};

// How tiles become work: see scheduler.cuh.
struct Schedule {
    int* ticket;  // one counter, 0 between launches
    int tiles;
    int tiles_of_head;
    int section;  // heads whose tiles are interleaved
};

// A tensor of 16-bit rows for ordinary stores; strides in elements.
struct Rows {
    void* data;
    i64 row_stride;
    i64 head_stride;
    i64 batch_stride;
};

struct ForwardParams {
    Problem problem;
    Schedule schedule;
    float* lse;  // (batch, heads, q_len), packed (heads, total_q)
    // For rows that the copy engine cannot write: a packed sequence's last ones, which it would not
    // clip, and queries without keys.
    Rows out;
};

// Row blocks: the queries of a head in blocks of kBlockM, so that no block spans two sequences. A packed
// sequence b starts at block (cu_seqlens_q[b] + b kBlockM) / kBlockM of its head. Row statistics and sums
// of dq are stored by row block.
struct BackwardParams {
    Problem problem;
    Schedule schedule;  // of tiles of keys
    int row_blocks;     // of a head, packed: of all its sequences
    float softmax_scale;
    int* turns;            // one a row block: how many key tiles have added to it
    float* log_sum_exp_2;  // (row block, row), in base 2; +inf for rows without keys or beyond the end
    float* delta;          // (row block, row): rowsum(dout out) - dlse
    float* dq_sum;         // (row block, kBlockM kHeadDim), in the registers' order
    const float* lse;      // as in ForwardParams
    const float* grad_lse;  // null or like lse
    Rows out;
    Rows grad_out;
    Rows dq;
    Rows dk;
    Rows dv;
};

}  // namespace danaus::attention
