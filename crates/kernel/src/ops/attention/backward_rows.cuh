// Before and after the backward kernel: statistics of the query rows, and dq from its sums.
#pragma once

#include "attention/backward_order.cuh"
#include "attention/epilogue.cuh"
#include "device/math.cuh"
#include "device/shared_tile.cuh"
#include "device/wgmma.cuh"

namespace danaus::attention {

// The row block of a thread block in a grid of (row blocks of the longest sequence, heads, batch).
template <class Config>
struct GridBlock {
    int m, head, batch;
    Sequence sequence;

    DEVICE explicit GridBlock(const Problem& problem)
        : m(blockIdx.x), head(blockIdx.y), batch(blockIdx.z), sequence(Sequence::of<Config>(problem, batch)) {}

    DEVICE bool exists() const { return m * Config::kBlockM < sequence.q_len; }
    DEVICE int rows() const { return min(Config::kBlockM, sequence.q_len - m * Config::kBlockM); }
    DEVICE int tensor_batch() const { return Config::kPacked ? 0 : batch; }
};

// Sum over the kLanes neighbouring lanes that share a row.
template <int kLanes>
DEVICE float row_sum(float x) {
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

// Log-sum-exps in base 2, delta = rowsum(dout out) - dlse, and turns back to 0.
template <class Config>
DEVICE void prepare_rows(const BackwardParams& params) {
    using Element = typename Config::Element;
    const Problem& problem = params.problem;
    const GridBlock<Config> block(problem);
    if (!block.exists()) return;
    const int index = row_block<Config>(params, block.sequence, block.batch, block.head) + block.m;
    if (threadIdx.x == 0) params.turns[index] = 0;
    // Lanes of a row, 16 bytes each; at head dim 192 the last 8 of 32 have none.
    constexpr int kChunks = Config::kHeadDim / 8, kLanes = kChunks == 24 ? 32 : kChunks;
    const i64 lse_start = Config::kPacked ? static_cast<i64>(block.head) * problem.total_q + block.sequence.q_start
                                          : (static_cast<i64>(block.batch) * problem.heads + block.head) * problem.q_len;
    const auto address = [&](const Rows& rows, int row, int lane) {
        return reinterpret_cast<const uint4*>(static_cast<const u16*>(rows.data) + block.tensor_batch() * rows.batch_stride +
                                              block.head * rows.head_stride + (block.sequence.q_start + row) * rows.row_stride + 8 * lane);
    };
    for (int i = threadIdx.x; i < Config::kBlockM * kLanes; i += blockDim.x) {
        const int row = block.m * Config::kBlockM + i / kLanes, lane = i % kLanes;
        const bool exists = row < block.sequence.q_len;
        float sum = 0.f;
        if (exists && lane < kChunks) {
            const uint4 a = *address(params.out, row, lane), b = *address(params.grad_out, row, lane);
            const u32 left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int w = 0; w < 4; ++w) {
                sum = fmaf(Element::low(left[w]), Element::low(right[w]), sum);
                sum = fmaf(Element::high(left[w]), Element::high(right[w]), sum);
            }
        }
        sum = row_sum<kLanes>(sum);
        if (lane != 0) continue;
        const i64 at = static_cast<i64>(index) * Config::kBlockM + i / kLanes;
        const float lse = exists ? params.lse[lse_start + row] : -kInfinity;
        params.log_sum_exp_2[at] = lse == -kInfinity ? kInfinity : lse * kLog2E;
        params.delta[at] = exists ? sum - (params.grad_lse ? params.grad_lse[lse_start + row] : 0.f) : 0.f;
    }
}

// dq = softmax_scale times the sums, whose layout is that of the registers of backward.cuh. Two
// warpgroups a row block.
template <class Config>
DEVICE void finish_rows(const BackwardParams& params) {
    constexpr int kM = Config::kBlockM, kDim = Config::kHeadDim;
    constexpr bool kTransposed = kDim == 128;
    constexpr int kColumns = kTransposed ? kM : kDim;
    const u32 tile = dynamic_shared();
    const GridBlock<Config> block(params.problem);
    if (!block.exists()) return;
    const int warpgroup = warp_index() / 4, first = block.m * kM;
    const Band<Config> band(params.problem, block.sequence);
    const bool empty = KeyTiles::of<Config>(band, first, first + block.rows()).empty();
    const int index = row_block<Config>(params, block.sequence, block.batch, block.head) + block.m;
    const float4* sums = reinterpret_cast<const float4*>(params.dq_sum + static_cast<i64>(index) * (kM * kDim)) +
                         warpgroup * (kColumns / 8 * kWarpgroup) + threadIdx.x % kWarpgroup;
    float dq[kColumns / 2];
#pragma unroll
    for (int i = 0; i < kColumns / 8; ++i) {
        const float4 four = empty ? float4{0.f, 0.f, 0.f, 0.f} : sums[i * kWarpgroup];
        dq[4 * i] = four.x * params.softmax_scale;
        dq[4 * i + 1] = four.y * params.softmax_scale;
        dq[4 * i + 2] = four.z * params.softmax_scale;
        dq[4 * i + 3] = four.w * params.softmax_scale;
    }
    u32 packed[kColumns / 4];
    wgmma::pack<typename Config::Element>(packed, dq);
    if constexpr (kTransposed) {
        store_product_transposed<kM, kM>(tile, 64 * warpgroup, packed);
    } else {
        store_product<kM, kDim>(tile, 64 * warpgroup, packed);
    }
    __syncthreads();
    for_rows<kDim, 2 * kWarpgroup>(params.dq, block.tensor_batch(), block.head, block.sequence.q_start + first, block.rows(),
                                   [=](uint4* out, int row, int chunk) { *out = load_16_bytes(tile + swizzled<kM>(row, chunk)); });
}

}  // namespace danaus::attention
