// The backward pass of a chunk (Hopper, bf16, head_dim 64): all gradients but those of the states, which
// sweep.cuh has left before (H) and behind (dH) every chunk as images.
//
// A thread block is a chunk and a share of the heads of one group, whose B and C it reads once; it walks
// the heads and keeps the sums for dB and dC in registers. One producer thread; two consumer warpgroups:
//
//   rows i:    G = dy X^T,  M = E o scale o G,  sum M;  Y = C H^T, entering_i = e_i dy_i . Y_i
//              dC += (e o dy) H          decay: pairs M o C B^T across a token, entering, <H, dH>
//   columns j: Y = B dH^T (scaled by l_j), leaving_j = scale_j x_j . Y_j;  du = Y + (E o C B^T)^T dy
//              dx = scale o du + D dy,  dscale_j = x_j . du_j,  dB += (l o scale o x) dH
//
// with E_ij = exp2(sum_i - sum_j), e_i = exp2(sum_i), l_j = exp2(sum_end - sum_j). B and C are those of all
// heads, so M enters dC and dB as its sum over heads: dC += (sum M) B, dB += (sum M)^T C, once a block.
// Nothing is added in an order that depends on timing.
#pragma once

#include "device/math.cuh"
#include "device/shared_tile.cuh"
#include "device/tma.cuh"
#include "device/wgmma.cuh"
#include "ssd/problem.cuh"
#include "ssd/tile_math.cuh"

namespace danaus::ssd {

struct GradientParams {
    Problem problem;
    const float* steps;
    const u8* states;   // images by chunk and head
    const u8* dstates;
    float* dsteps;      // like steps: two parts of the decay's gradient, the scale's
    u8* dx;             // bf16 rows of all heads
    const float* d;
    float* dd;          // by chunk and head, or null
    void* db;           // bf16 by token and group; f32 by share, token and group when there are shares
    void* dc;
    int shares;
};

template <class Config>
struct GradientStorage {
    static constexpr int kState = Config::kState;
    static constexpr u32 kKeyBytes = 64 * kState * 2, kValueBytes = 64 * 64 * 2, kStateBytes = 64 * kState * 2;
    static constexpr u32 kStepBytes = 3 * 64 * 4, kStepPlace = 1024;
    // Of a stage.
    static constexpr u32 kX = 0, kDy = kValueBytes, kH = 2 * kValueBytes, kDh = kH + kStateBytes;
    static constexpr u32 kSteps = kDh + kStateBytes, kStage = kSteps + kStepPlace;
    static constexpr u32 kStageBytes = 2 * kValueBytes + 2 * kStateBytes + kStepBytes;
    // Of the block.
    static constexpr u32 kB = Config::kStages * kStage, kC = kB + kKeyBytes, kOut = kC + kKeyBytes;
    static constexpr u32 kProduct = kOut + kValueBytes;         // C B^T of the row warpgroup, a float4 a thread and slot
    static constexpr u32 kNumbers = kProduct + 64 * 64 * 4;     // of the row warpgroup
    static constexpr u32 kColumns = kNumbers, kRows = kColumns + 4 * 256, kEntering = kRows + 256, kPass = kEntering + 256;
    static constexpr u32 kLeaving = kPass + 16, kSkip = kLeaving + 256;  // of the column warpgroup
    static constexpr u32 kBarriers = kSkip + 4 * 256;
    static constexpr u32 kBytes = kBarriers + 8 * (2 * Config::kStages + 1);
    static_assert(kBytes <= 232448, "a thread block has 227 KiB of shared memory");
};

struct GradientTask {
    Chunk chunk;
    int index, group, share, head, heads;  // first head and number

    DEVICE static GradientTask of(const GradientParams& params) {
        const Problem& p = params.problem;
        const int per_group = p.heads / p.groups;
        GradientTask task;
        task.share = blockIdx.x % params.shares;
        task.group = blockIdx.x / params.shares % p.groups;
        task.index = blockIdx.x / params.shares / p.groups;
        task.chunk = chunk_at(p, task.index);
        const int begin = per_group * task.share / params.shares, end = per_group * (task.share + 1) / params.shares;
        task.head = task.group * per_group + begin;
        task.heads = end - begin;
        return task;
    }
};

template <class Config>
struct GradientPipeline {
    using Storage = GradientStorage<Config>;
    u32 base = dynamic_shared();
    BarrierArray full{base + Storage::kBarriers}, empty{base + Storage::kBarriers + 8 * Config::kStages};
    Barrier keys{base + Storage::kBarriers + 16 * Config::kStages};
    Ring<Config::kStages> ring;

    DEVICE void init() const {
        for (int i = 0; i < Config::kStages; ++i) {
            full[i].init(1);
            empty[i].init(8);
        }
        keys.init(1);
        fence_barrier_init();
    }

    DEVICE u32 at(u32 part) const { return base + ring.stage * Storage::kStage + part; }
    DEVICE u32 own(u32 part) const { return base + part; }
};

template <class Config>
DEVICE void produce(const TensorMap& x, const TensorMap& dy, const TensorMap& b, const TensorMap& c, const GradientParams& params, GradientPipeline<Config> pipeline) {
    using Storage = GradientStorage<Config>;
    const GradientTask task = GradientTask::of(params);
    const int row = static_cast<int>(task.chunk.start);
    pipeline.keys.arrive_expect(2 * Storage::kKeyBytes);
    load_tile(pipeline.own(Storage::kB), b, pipeline.keys, {row, task.group, 0}, L2::kEvictFirst);
    load_tile(pipeline.own(Storage::kC), c, pipeline.keys, {row, task.group, 0}, L2::kEvictFirst);
    for (int h = task.head; h < task.head + task.heads; ++h) {
        const Barrier full = pipeline.full[pipeline.ring.stage];
        pipeline.empty[pipeline.ring.stage].wait(pipeline.ring.producer());
        full.arrive_expect(Storage::kStageBytes);
        const i64 image = (static_cast<i64>(task.index) * params.problem.heads + h) * Storage::kStateBytes;
        load_tile(pipeline.at(Storage::kX), x, full, {row, h, 0}, L2::kEvictFirst);
        load_tile(pipeline.at(Storage::kDy), dy, full, {row, h, 0}, L2::kEvictFirst);
        load_run(pipeline.at(Storage::kH), params.states + image, Storage::kStateBytes, full);
        load_run(pipeline.at(Storage::kDh), params.dstates + image, Storage::kStateBytes, full);
        load_run(pipeline.at(Storage::kSteps), params.steps + steps_at(params.problem, h, task.index), Storage::kStepBytes, full);
        pipeline.ring.advance();
    }
}

// What both consumers do.
template <class Config>
struct GradientConsumer {
    using Storage = GradientStorage<Config>;
    static constexpr int kState = Config::kState;
    const GradientParams& params;
    GradientPipeline<Config> pipeline;
    GradientTask task;
    int which;
    Place at;

    DEVICE GradientConsumer(const GradientParams& params, const GradientPipeline<Config>& pipeline, int which)
        : params(params), pipeline(pipeline), task(GradientTask::of(params)), which(which) {}

    DEVICE void sync() const { named_sync(1 + which, kWarpgroup); }
    DEVICE u32 steps() const { return pipeline.at(Storage::kSteps); }

    // Rows behind the run belong to another sequence; both warpgroups write the same zeros.
    DEVICE void await_keys() const {
        pipeline.keys.wait(0);
        if (task.chunk.rows >= 64) return;
        clear_rows<64, kState>(pipeline.own(Storage::kB), task.chunk.rows);
        clear_rows<64, kState>(pipeline.own(Storage::kC), task.chunk.rows);
        fence_shared_for_async();
        sync();
    }

    DEVICE void await_head() const {
        pipeline.full[pipeline.ring.stage].wait(pipeline.ring.consumer());
        if (task.chunk.rows >= 64) return;
        clear_rows<64, 64>(pipeline.at(Storage::kX), task.chunk.rows);
        clear_rows<64, 64>(pipeline.at(Storage::kDy), task.chunk.rows);
        fence_shared_for_async();
        sync();
    }

    DEVICE void release() {
        if (lane_index() == 0) pipeline.empty[pipeline.ring.stage].arrive();
        pipeline.ring.advance();
    }

    DEVICE float* dsteps(int h) const { return params.dsteps + steps_at(params.problem, h, task.index); }

    // dB or dC: the sum over heads is complete, or one of several shares.
    DEVICE void store_sum(void* to, const float (&sum)[kState / 2]) const {
        const i64 columns = static_cast<i64>(params.problem.groups) * kState;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (at.row + 8 * i >= task.chunk.rows) continue;
            const i64 first = (task.chunk.start + at.row + 8 * i) * columns + task.group * kState + at.column;
            const i64 share = task.share * params.problem.tokens * columns;
#pragma unroll
            for (int j = 0; j < kState / 8; ++j) {
                const float low = sum[4 * j + 2 * i], high = sum[4 * j + 2 * i + 1];
                if (params.shares == 1) static_cast<u32*>(to)[(first + 8 * j) / 2] = Bf16::pack(low, high);
                else *reinterpret_cast<float2*>(static_cast<float*>(to) + share + first + 8 * j) = float2{low, high};
            }
        }
    }

    // Inclusive sums over 64 numbers, two a lane; from the front, or from the back.
    DEVICE static float2 sums_before(float2 v) {
        float sum = v.x + v.y;
        for (int step = 1; step < 32; step *= 2) {
            const float other = __shfl_up_sync(0xffffffffu, sum, step);
            if (lane_index() >= step) sum += other;
        }
        return float2{sum - v.y, sum};
    }

    DEVICE static float2 sums_behind(float2 v) {
        float sum = v.x + v.y;
        for (int step = 1; step < 32; step *= 2) {
            const float other = __shfl_down_sync(0xffffffffu, sum, step);
            if (lane_index() + step < 32) sum += other;
        }
        return float2{sum, sum - v.x};
    }
};

}  // namespace danaus::ssd
