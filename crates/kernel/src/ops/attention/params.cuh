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

struct ForwardParams {
    Problem problem;
    Schedule schedule;
    float* lse;  // (batch, heads, q_len), packed (heads, total_q)
    // The output for rows that the copy engine cannot write: a packed sequence's last ones, which it
    // would not clip, and queries without keys. Strides in elements.
    void* out;
    i64 out_row_stride;
    i64 out_head_stride;
    i64 out_batch_stride;
};

}  // namespace danaus::attention
