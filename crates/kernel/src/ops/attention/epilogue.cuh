// From a warpgroup's registers to the output: rows of out through shared memory, and log-sum-exps.
#pragma once

#include "attention/softmax.cuh"
#include "attention/tile_range.cuh"
#include "device/shared_tile.cuh"
#include "device/tma.cuh"
#include "device/wgmma.cuh"

namespace danaus::attention {

// The 64 rows of one warpgroup.
struct RowBlock {
    Sequence sequence;
    int first;  // query of the first row
    int head;
    int batch;
    int own;  // query of this thread's first row; the second is 8 further

    DEVICE RowBlock(const Sequence& sequence, int first, int head, int batch)
        : sequence(sequence), first(first), head(head), batch(batch), own(first + 16 * (warp_index() % 4) + lane_index() / 4) {}

    DEVICE int in_use() const { return max(0, min(64, sequence.q_len - first)); }
};

// Stores the log-sum-exps of the two rows this thread shares with its quad.
template <class Config, class Params, class RowSoftmax>
DEVICE void store_log_sum_exp(const Params& params, const RowBlock& rows, const RowSoftmax& softmax) {
    const Problem& problem = params.problem;
    if (lane_index() % 4 != 0) return;
    i64 start;
    if constexpr (Config::kPacked) {
        start = static_cast<i64>(rows.head) * problem.total_q + rows.sequence.q_start;
    } else {
        start = (static_cast<i64>(rows.batch) * problem.heads + rows.head) * problem.q_len;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = rows.own + 8 * i;
        if (row < rows.sequence.q_len) params.lse[start + row] = softmax.log_sum_exp(i, problem.exponent_factor);
    }
}

// Calls `write(address, row, chunk of 8 columns)` for `count` rows from `first` of one head, spread over
// kThreads threads.
template <int kColumns, int kThreads, class Write>
DEVICE void for_rows(const Rows& rows, int batch, int head, int first, int count, Write write) {
    constexpr int kChunks = kColumns / 8;
    u16* start = static_cast<u16*>(rows.data) + batch * rows.batch_stride + head * rows.head_stride + first * rows.row_stride;
    for (int i = threadIdx.x % kThreads; i < count * kChunks; i += kThreads) {
        const int row = i / kChunks, chunk = i % kChunks;
        write(reinterpret_cast<uint4*>(start + row * rows.row_stride + 8 * chunk), row, chunk);
    }
}

// Queries without keys.
template <class Config, class Params>
DEVICE void store_zeros(const Params& params, const RowBlock& rows) {
    for_rows<Config::kValueDim, kWarpgroup>(params.out, rows.batch, rows.head, rows.sequence.q_start + rows.first, rows.in_use(),
                                            [](uint4* out, int, int) { *out = uint4{0, 0, 0, 0}; });
}

// Stages o (64 x kValueDim, normalised) at `staged` and sends it off. The caller has made sure that
// nobody reads `staged`; `wait_stores_read` by the warpgroup's first thread, and a barrier, free it again.
// The copy engine would write a packed sequence's last rows on into the next one: those go by hand.
template <class Config, class Params>
DEVICE void store_out(const Params& params, const TensorMap& out_map, const RowBlock& rows, const float (&o)[Config::kValueDim / 2],
                      u32 staged, int barrier) {
    u32 packed[Config::kValueDim / 4];
    wgmma::pack<typename Config::Element>(packed, o);
    store_product<64, Config::kValueDim>(staged, 0, packed);
    if (Config::kPacked && rows.in_use() < 64) {
        named_sync(barrier, kWarpgroup);
        for_rows<Config::kValueDim, kWarpgroup>(
            params.out, rows.batch, rows.head, rows.sequence.q_start + rows.first, rows.in_use(),
            [=](uint4* out, int row, int chunk) { *out = load_16_bytes(staged + swizzled<64>(row, chunk)); });
        fence_shared_for_async();
        return;
    }
    fence_shared_for_async();
    named_sync(barrier, kWarpgroup);
    if (threadIdx.x % kWarpgroup == 0) {
        store_tile(out_map, staged, {rows.sequence.q_start + rows.first, rows.head, rows.batch});
        commit_stores();
    }
}

}  // namespace danaus::attention
