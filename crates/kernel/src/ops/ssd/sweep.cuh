// One walk over the chunks of a head's run with its state in registers (Hopper, bf16, head_dim 64): the
// forward pass, and the states that the backward pass needs.
//
//   H <- exp2(sum_end) H + (w o V)^T K      V: x with K: B, or backwards in time dy with C
//   y_i = exp2(sum_i) C_i H + sum_j<=i exp2(sum_i - sum_j) scale_j (C_i . B_j) x_j + D x_i    (* silu z)
//
// One producer thread; a consumer warpgroup for each of two heads that share B and C. Products of a chunk:
// C B^T and C H^T together, then the masked C B^T times x, and the state's update from x as registers
// (scaled on the way) and B. The state is 64 x d_state f32; its bf16 copy in shared memory is an operand of
// the next chunk, or goes out as an image: exactly the bytes that the gradient kernel wants in its shared
// memory. Nothing depends on timing.
//
// A run may be cut into segments: one launch leaves what each segment adds to the state, `join_segments`
// (generic.cuh) passes them on, and the launch that matters enters from them.
#pragma once

#include "device/math.cuh"
#include "device/shared_tile.cuh"
#include "device/tma.cuh"
#include "device/wgmma.cuh"
#include "ssd/problem.cuh"
#include "ssd/tile_math.cuh"

namespace danaus::ssd {

struct SweepParams {
    Problem problem;
    const float* steps;
    const float* entering;  // by run, segment and head; null: `first`
    const float* first;     // by the run's state; null: zero
    float* leaving;         // by run, segment and head, from zero; null: none
    float* decays;          // log2, likewise
    float* last;            // by the run's state; null: none
    u8* images;             // by chunk and head, the state before the chunk; null: none
    u8* y;                  // bf16 rows of all heads
    const u8* z;
    const float* d;
    i64 z_row;  // elements
    int segments;
};

template <class Config>
struct SweepStorage {
    static constexpr int kState = Config::kState;
    static constexpr u32 kKeyBytes = 64 * kState * 2, kValueBytes = 64 * 64 * 2, kStateBytes = 64 * kState * 2;
    static constexpr u32 kStepBytes = 3 * 64 * 4, kStepPlace = 1024;
    // Of a stage.
    static constexpr u32 kKey = 0, kQuery = kKeyBytes, kValue = kQuery + (Config::kOutput ? kKeyBytes : 0);
    static constexpr u32 kSteps = kValue + 2 * kValueBytes, kStage = kSteps + 2 * kStepPlace;
    // Of the block.
    static constexpr int kCopies = Config::kOutput ? 1 : Config::kImages ? 2 : 0;
    static constexpr u32 kStates = Config::kStages * kStage, kOut = kStates + 2 * kCopies * kStateBytes;
    static constexpr u32 kBarriers = kOut + (Config::kOutput ? 2 * kValueBytes : 0);
    static constexpr u32 kBytes = kBarriers + 16 * Config::kStages;
    static_assert(kBytes <= 232448, "a thread block has 227 KiB of shared memory");
};

// What a thread block works on.
template <class Config>
struct SweepTask {
    Run run;
    int run_index, segment, group, head, heads;  // first head, and one or two
    i64 first, end;                              // chunks

    DEVICE static SweepTask of(const SweepParams& params) {
        const Problem& p = params.problem;
        const int per_group = p.heads / p.groups, pairs = (per_group + 1) / 2 * p.groups;
        SweepTask task;
        const int pair = blockIdx.x % pairs, rest = blockIdx.x / pairs;
        task.segment = rest % params.segments;
        task.run_index = rest / params.segments;
        task.run = run_at(p, task.run_index);
        const int of_group = (per_group + 1) / 2, inside = 2 * (pair % of_group);
        task.group = pair / of_group;
        task.head = task.group * per_group + inside;
        task.heads = inside + 1 < per_group ? 2 : 1;
        const i64 chunks = chunks_of(p, task.run.length);
        const i64 each = (chunks + params.segments - 1) / params.segments, from = each * task.segment;
        task.first = task.run.first_chunk + (from < chunks ? from : chunks);
        task.end = task.run.first_chunk + (from + each < chunks ? from + each : chunks);
        return task;
    }

    DEVICE int count() const { return static_cast<int>(end - first); }
    DEVICE i64 chunk(int step) const { return Config::kReverse ? end - 1 - step : first + step; }

    // Place of a head's state among those of segments.
    DEVICE i64 place(const SweepParams& params, int h) const {
        return (static_cast<i64>(run_index) * params.segments + segment) * params.problem.heads + h;
    }
};

template <class Config>
struct SweepPipeline {
    using Storage = SweepStorage<Config>;
    u32 base = dynamic_shared();
    BarrierArray full{base + Storage::kBarriers}, empty{base + Storage::kBarriers + 8 * Config::kStages};
    Ring<Config::kStages> ring;

    DEVICE void init() const {
        for (int i = 0; i < Config::kStages; ++i) {
            full[i].init(1);
            empty[i].init(8);
        }
        fence_barrier_init();
    }

    DEVICE u32 stage() const { return base + ring.stage * Storage::kStage; }
    DEVICE u32 key() const { return stage() + Storage::kKey; }
    DEVICE u32 query() const { return stage() + Storage::kQuery; }
    DEVICE u32 value(int h) const { return stage() + Storage::kValue + h * Storage::kValueBytes; }
    DEVICE u32 steps(int h) const { return stage() + Storage::kSteps + h * Storage::kStepPlace; }
    DEVICE u32 state(int h, int copy) const { return base + Storage::kStates + (h * Storage::kCopies + copy) * Storage::kStateBytes; }
    DEVICE u32 out(int h) const { return base + Storage::kOut + h * Storage::kValueBytes; }
};

template <class Config>
DEVICE void produce(const TensorMap& v, const TensorMap& k, const TensorMap& c, const SweepParams& params, SweepPipeline<Config> pipeline) {
    using Storage = SweepStorage<Config>;
    const auto task = SweepTask<Config>::of(params);
    const u32 bytes = (Config::kOutput ? 2 : 1) * Storage::kKeyBytes + task.heads * (Storage::kValueBytes + Storage::kStepBytes);
    for (int step = 0; step < task.count(); ++step) {
        const i64 chunk = task.chunk(step);
        const int row = static_cast<int>(chunk_of(params.problem, task.run, chunk).start);
        const Barrier full = pipeline.full[pipeline.ring.stage];
        pipeline.empty[pipeline.ring.stage].wait(pipeline.ring.producer());
        full.arrive_expect(bytes);
        load_tile(pipeline.key(), k, full, {row, task.group, 0}, L2::kEvictLast);
        if constexpr (Config::kOutput) load_tile(pipeline.query(), c, full, {row, task.group, 0}, L2::kEvictLast);
        for (int h = 0; h < task.heads; ++h) {
            load_tile(pipeline.value(h), v, full, {row, task.head + h, 0}, L2::kEvictFirst);
            load_run(pipeline.steps(h), params.steps + steps_at(params.problem, task.head + h, static_cast<int>(chunk)), Storage::kStepBytes, full);
        }
        pipeline.ring.advance();
    }
}

template <class Config>
struct SweepConsumer {
    using Storage = SweepStorage<Config>;
    static constexpr int kState = Config::kState;
    const SweepParams& params;
    SweepPipeline<Config> pipeline;
    SweepTask<Config> task;
    int which, head;
    Place at;
    float state[kState / 2];
    float skip[Config::kOutput ? 16 : 1];
    float decay = 0.f;

    DEVICE SweepConsumer(const SweepParams& params, const SweepPipeline<Config>& pipeline, int which)
        : params(params), pipeline(pipeline), task(SweepTask<Config>::of(params)), which(which), head(task.head + which) {}

    DEVICE void run() {
        if (which >= task.heads) {
            for (int step = 0; step < task.count(); ++step) {
                pipeline.full[pipeline.ring.stage].wait(pipeline.ring.consumer());
                release();
            }
            return;
        }
        enter();
        for (int step = 0; step < task.count(); ++step) {
            pipeline.full[pipeline.ring.stage].wait(pipeline.ring.consumer());
            const i64 index = task.chunk(step);
            const Chunk chunk = chunk_of(params.problem, task.run, index);
            clear_tail(chunk.rows);
            if constexpr (Config::kImages) store_image(index, step % 2);
            if constexpr (Config::kOutput) {
                output(chunk);
            } else {
                update();
                release();
            }
        }
        leave();
        if constexpr (Config::kImages) {
            if (threadIdx.x % kWarpgroup == 0) wait_stores<0>();
        }
    }

private:
    DEVICE void sync() const { named_sync(1 + which, kWarpgroup); }

    DEVICE void release() {
        if (lane_index() == 0) pipeline.empty[pipeline.ring.stage].arrive();
        pipeline.ring.advance();
    }

    // Rows behind the run belong to another sequence, and 0 times infinity is no zero. Both warpgroups
    // clear the shared tile: they write the same.
    DEVICE void clear_tail(int rows) const {
        if (rows >= 64) return;
        clear_rows<64, kState>(pipeline.key(), rows);
        clear_rows<64, 64>(pipeline.value(which), rows);
        fence_shared_for_async();
        sync();
    }

    // Where a state's numbers of this thread are: two at a time.
    template <class Visit>
    DEVICE void each_pair(Visit visit) {
#pragma unroll
        for (int j = 0; j < kState / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 2; ++i) visit(4 * j + 2 * i, (at.row + 8 * i) * kState + 8 * j + at.column);
        }
    }

    DEVICE void enter() {
        const i64 slot = Config::kReverse ? task.run.last : task.run.initial, heads = params.problem.heads;
        const float* from = nullptr;
        if (params.entering) from = params.entering + task.place(params, head) * (64 * kState);
        else if (params.first && slot >= 0) from = params.first + (slot * heads + head) * (64 * kState);
        each_pair([&](int r, int offset) {
            const float2 pair = from ? *reinterpret_cast<const float2*>(from + offset) : float2{0.f, 0.f};
            state[r] = pair.x;
            state[r + 1] = pair.y;
        });
        if constexpr (Config::kOutput) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float2 pair = params.d ? *reinterpret_cast<const float2*>(params.d + head * 64 + 8 * j + at.column) : float2{0.f, 0.f};
                skip[2 * j] = pair.x;
                skip[2 * j + 1] = pair.y;
            }
            copy_state();
        }
    }

    DEVICE void store_state(float* to) {
        each_pair([&](int r, int offset) { *reinterpret_cast<float2*>(to + offset) = float2{state[r], state[r + 1]}; });
    }

    DEVICE void leave() {
        const i64 slot = Config::kReverse ? task.run.initial : task.run.last;
        if (params.leaving) {
            store_state(params.leaving + task.place(params, head) * (64 * kState));
            if (threadIdx.x % kWarpgroup == 0) params.decays[task.place(params, head)] = decay;
        }
        const bool outermost = task.segment == (Config::kReverse ? 0 : params.segments - 1);
        if (params.last && outermost && slot >= 0) store_state(params.last + (slot * params.problem.heads + head) * (64 * kState));
    }

    // The operand of the next chunk's output.
    DEVICE void copy_state() {
        u32 packed[kState / 4];
        wgmma::pack<Bf16>(packed, state);
        store_product<64, kState>(pipeline.state(which, 0), 0, packed);
        fence_shared_for_async();
        sync();
    }

    DEVICE void store_image(i64 chunk, int copy) {
        const bool first_thread = threadIdx.x % kWarpgroup == 0;
        if (first_thread) wait_stores_read<1>();
        sync();
        u32 packed[kState / 4];
        wgmma::pack<Bf16>(packed, state);
        store_product<64, kState>(pipeline.state(which, copy), 0, packed);
        fence_shared_for_async();
        sync();
        if (first_thread) {
            u8* to = params.images + (chunk * params.problem.heads + head) * Storage::kStateBytes;
            store_run(to, pipeline.state(which, copy), Storage::kStateBytes);
            commit_stores();
        }
    }

    // V's columns as the rows of an operand, each token scaled by what it leaves at the chunk's end.
    DEVICE void load_scaled(u32 (&operand)[16]) const {
        const u32 steps = pipeline.steps(which);
        load_transposed(operand, pipeline.value(which));
#pragma unroll
        for (int s = 0; s < 4; ++s) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const u32 column = 16 * s + 8 * half + at.column;
                float2 w;
                if constexpr (Config::kReverse) {
                    w = load_pair(steps + 4 * column);
                    w = float2{exp2_unit(w.x), exp2_unit(w.y)};
                } else {
                    w = load_pair(steps + 512 + 4 * column);
                }
                operand[4 * s + 2 * half] = scale_pair(operand[4 * s + 2 * half], w);
                operand[4 * s + 2 * half + 1] = scale_pair(operand[4 * s + 2 * half + 1], w);
            }
        }
    }

    DEVICE void decay_state() {
        const float sum = load_number(pipeline.steps(which) + 4 * 63), factor = exp2_unit(sum);
        decay += sum;
#pragma unroll
        for (int r = 0; r < kState / 2; ++r) state[r] *= factor;
    }

    DEVICE void issue_update(const u32 (&operand)[16]) {
        wgmma::product<Bf16, kState, 4, wgmma::OverRows<64>>(state, operand, pipeline.key(), true);
    }

    DEVICE void update() {
        u32 operand[16];
        load_scaled(operand);
        decay_state();
        wgmma::settle(operand);
        wgmma::settle(state);
        wgmma::arrive();
        issue_update(operand);
        wgmma::commit();
        wgmma::wait<0>();
        wgmma::settle(state);
    }

    DEVICE void output(const Chunk& chunk) {
        float y[32];
        u32 operand[16], weights[16];
        {
            float scores[32];
            wgmma::settle(scores);
            wgmma::settle(y);
            wgmma::arrive();
            wgmma::product<Bf16, 64, kState / 16, wgmma::AlongRows<64>, wgmma::AlongRows<64>>(scores, pipeline.query(), pipeline.key(), false);
            wgmma::product<Bf16, 64, kState / 16, wgmma::AlongRows<64>, wgmma::AlongRows<64>>(y, pipeline.query(), pipeline.state(which, 0), false);
            wgmma::commit();
            load_scaled(operand);
            decay_state();
            wgmma::wait<0>();
            wgmma::settle(scores);
            wgmma::settle(y);
            const u32 steps = pipeline.steps(which);
            const float2 sums{load_number(steps + 4 * at.row), load_number(steps + 4 * at.row + 32)};
            scale_rows(y, float2{exp2_unit(sums.x), exp2_unit(sums.y)});
            decay_scores(scores, steps, sums);
            wgmma::pack<Bf16>(weights, scores);
        }
        wgmma::settle(weights);
        wgmma::settle(operand);
        wgmma::settle(state);
        wgmma::settle(y);
        wgmma::arrive();
        wgmma::product<Bf16, 64, 4, wgmma::OverRows<64>>(y, weights, pipeline.value(which), true);
        issue_update(operand);
        wgmma::commit();
        wgmma::wait<0>();
        wgmma::settle(y);
        wgmma::settle(state);
        add_skip(y);
        // All warps are past their products: the state's copy may change.
        sync();
        release();
        copy_state();
        store_output(y, chunk);
    }

    // scores_ij <- exp2(sum_i - sum_j) scale_j scores_ij below and on the diagonal.
    DEVICE void decay_scores(float (&scores)[32], u32 steps, float2 sums) const {
        const int warp_end = at.row - lane_index() / 4 + 15;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            if (8 * j > warp_end) {
                for (int r = 0; r < 4; ++r) scores[4 * j + r] = 0.f;
                continue;
            }
            const int column = 8 * j + at.column;
            const float2 sum = load_pair(steps + 4 * column), scale = load_pair(steps + 256 + 4 * column);
            scores[4 * j] = column <= at.row ? scores[4 * j] * exp2_unit(sums.x - sum.x) * scale.x : 0.f;
            scores[4 * j + 1] = column + 1 <= at.row ? scores[4 * j + 1] * exp2_unit(sums.x - sum.y) * scale.y : 0.f;
            scores[4 * j + 2] = column <= at.row + 8 ? scores[4 * j + 2] * exp2_unit(sums.y - sum.x) * scale.x : 0.f;
            scores[4 * j + 3] = column + 1 <= at.row + 8 ? scores[4 * j + 3] * exp2_unit(sums.y - sum.y) * scale.y : 0.f;
        }
    }

    DEVICE void add_skip(float (&y)[32]) const {
        if (!params.d) return;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const u32 x = load_word(pipeline.value(which) + swizzled<64>(at.row + 8 * i, j) + 2 * at.column);
                y[4 * j + 2 * i] += skip[2 * j] * Bf16::low(x);
                y[4 * j + 2 * i + 1] += skip[2 * j + 1] * Bf16::high(x);
            }
        }
    }

    DEVICE void store_output(float (&y)[32], const Chunk& chunk) {
        if (params.z) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int row = at.row + 8 * i;
                if (row >= chunk.rows) continue;
                const u8* z = params.z + ((chunk.start + row) * params.z_row + head * 64 + at.column) * 2;
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    const u32 gate = *reinterpret_cast<const u32*>(z + 16 * j);
                    y[4 * j + 2 * i] *= silu(Bf16::low(gate));
                    y[4 * j + 2 * i + 1] *= silu(Bf16::high(gate));
                }
            }
        }
        u32 packed[16];
        wgmma::pack<Bf16>(packed, y);
        store_rows(params.y + (chunk.start * params.problem.heads + head) * 128, 128 * static_cast<i64>(params.problem.heads), chunk.rows, packed, pipeline.out(which));
    }
};

template <class Config>
DEVICE void sweep(const TensorMap& v, const TensorMap& k, const TensorMap& c, const SweepParams& params) {
    const SweepPipeline<Config> pipeline;
    if (threadIdx.x == 0) {
        prefetch(v);
        prefetch(k);
        if (Config::kOutput) prefetch(c);
        pipeline.init();
    }
    __syncthreads();
    const int warpgroup = warp_index() / 4;
    if (warpgroup == 0) {
        release_registers<24>();
        if (threadIdx.x == 0) produce<Config>(v, k, c, params, pipeline);
    } else {
        claim_registers<240>();
        SweepConsumer<Config>(params, pipeline, warpgroup - 1).run();
    }
}

}  // namespace danaus::ssd
