// Shared memory, barriers, producer and dq writer of the backward kernel.
//
// Warpgroup 0 holds programs of one thread each: the producer loads the tile of keys and values once and
// then, for each visit, queries, output gradients and row statistics; writers add finished blocks of dq to
// global memory in turn (backward_order.cuh). One writer a buffer, since waiting for the turn, adding and
// making the sum visible take longer than a visit.
#pragma once

#include "attention/backward_order.cuh"
#include "device/shared_tile.cuh"
#include "device/tma.cuh"

namespace danaus::attention {

// Byte offsets in shared memory.
template <class Config>
struct BackwardStorage {
    static constexpr u32 kKeyBytes = Config::kBlockN * Config::kHeadDim * 2;
    static constexpr u32 kRowBytes = Config::kBlockM * Config::kHeadDim * 2;  // of q or grad_out
    static constexpr u32 kScoreBytes = Config::kBlockM * Config::kBlockN * 2;
    static constexpr u32 kSumBytes = Config::kBlockM * Config::kHeadDim * 4;
    static constexpr u32 kStatisticBytes = Config::kBlockM * 4;

    static constexpr u32 kKey = 0;
    static constexpr u32 kValue = kKey + kKeyBytes;
    static constexpr u32 kQuery = kValue + kKeyBytes;
    static constexpr u32 kGradOut = kQuery + Config::kStages * kRowBytes;
    static constexpr u32 kScore = kGradOut + Config::kStages * kRowBytes;
    static constexpr u32 kSum = kScore + Config::kScoreStages * kScoreBytes;
    static constexpr u32 kLogSumExp = kSum + Config::kSumStages * kSumBytes;
    static constexpr u32 kDelta = kLogSumExp + Config::kStages * kStatisticBytes;
    static constexpr u32 kBarriers = kDelta + Config::kStages * kStatisticBytes;
    static constexpr int kBarrierCount = 1 + 4 * Config::kStages + 2 * Config::kScoreStages + 2 * Config::kSumStages;
    static constexpr u32 kNumber = kBarriers + 8 * kBarrierCount;
    static constexpr u32 kBytes = kNumber + 8;

    static_assert(Config::kBlockN == 128, "two consumer warpgroups own 64 keys each");
    static_assert(Config::kBlockM % 16 == 0, "row blocks are k-steps of 16");
    static_assert(Config::kHeadDim == 128 || (Config::kHeadDim == 64 && Config::kBlockM == 128),
                  "dq is shared by the warpgroups along the head dim 128 or along 128 rows");
    static_assert(Config::kScoreStages >= 2, "a warpgroup writes the next ds while dq of this one is computed");
    static_assert(kScore % 1024 == 0 && kRowBytes % 1024 == 0, "tiles start at multiples of the swizzle");
    static_assert(kBytes <= 232448, "a thread block has 227 KiB of shared memory");
};

// Every ring advances once a visit, so the number of the visit is the position in all of them.
template <class Config>
struct BackwardPipeline {
    using Storage = BackwardStorage<Config>;
    static constexpr int kConsumerWarps = 8;

    u32 base;
    Barrier key_full;
    BarrierArray query_full, query_empty, grad_full, grad_empty;
    BarrierArray score_full, score_empty;  // ds in 16 bits, between the consumer warpgroups
    BarrierArray sum_full, sum_empty;      // dq, to the writer
    using Rows = RingAt<Config::kStages>;
    using Scores = RingAt<Config::kScoreStages>;
    using Sums = RingAt<Config::kSumStages>;

    DEVICE BackwardPipeline() : base(dynamic_shared()) {
        u32 next = base + Storage::kBarriers;
        const auto take = [&](int count) {
            const BarrierArray barriers{next};
            next += 8u * count;
            return barriers;
        };
        key_full = take(1)[0];
        query_full = take(Config::kStages);
        query_empty = take(Config::kStages);
        grad_full = take(Config::kStages);
        grad_empty = take(Config::kStages);
        score_full = take(Config::kScoreStages);
        score_empty = take(Config::kScoreStages);
        sum_full = take(Config::kSumStages);
        sum_empty = take(Config::kSumStages);
    }

    // By one thread, before the block synchronises.
    DEVICE void init() const {
        key_full.init(1);
        for (int i = 0; i < Config::kStages; ++i) {
            query_full[i].init(1);
            grad_full[i].init(1);
            query_empty[i].init(kConsumerWarps);
            grad_empty[i].init(kConsumerWarps);
        }
        for (int i = 0; i < Config::kScoreStages; ++i) {
            score_full[i].init(kConsumerWarps);
            score_empty[i].init(kConsumerWarps);
        }
        for (int i = 0; i < Config::kSumStages; ++i) {
            sum_full[i].init(kConsumerWarps);
            sum_empty[i].init(1);
        }
        fence_barrier_init();
    }

    DEVICE u32 key() const { return base + Storage::kKey; }
    DEVICE u32 value() const { return base + Storage::kValue; }
    DEVICE u32 query(u32 stage) const { return base + Storage::kQuery + stage * Storage::kRowBytes; }
    DEVICE u32 grad_out(u32 stage) const { return base + Storage::kGradOut + stage * Storage::kRowBytes; }
    DEVICE u32 score(u32 stage) const { return base + Storage::kScore + stage * Storage::kScoreBytes; }
    DEVICE u32 sum(u32 stage) const { return base + Storage::kSum + stage * Storage::kSumBytes; }
    DEVICE u32 log_sum_exp(u32 stage) const { return base + Storage::kLogSumExp + stage * Storage::kStatisticBytes; }
    DEVICE u32 delta(u32 stage) const { return base + Storage::kDelta + stage * Storage::kStatisticBytes; }
    DEVICE u32 number() const { return base + Storage::kNumber; }
};

// The tensor maps, in the kernel's argument order.
struct BackwardMaps {
    const TensorMap& q;
    const TensorMap& k;
    const TensorMap& v;
    const TensorMap& grad_out;
    const TensorMap& dk;
    const TensorMap& dv;
};

template <class Config>
struct BackwardProducer {
    using Storage = BackwardStorage<Config>;
    const BackwardMaps& maps;
    const BackwardParams& params;
    BackwardPipeline<Config> pipeline;

    DEVICE void run(const Tile& tile, const Sequence& sequence, const Visits<Config>& visits) {
        const int batch = Config::kPacked ? 0 : tile.batch;
        const TileOrigin keys{sequence.k_start + visits.n * Config::kBlockN, tile.head, batch};
        pipeline.key_full.arrive_expect(2 * Storage::kKeyBytes);
        load_tile(pipeline.key(), maps.k, pipeline.key_full, keys, L2::kEvictFirst);
        load_tile(pipeline.value(), maps.v, pipeline.key_full, keys, L2::kEvictFirst);
        const int group = params.problem.group;
        u32 visit = 0;
        for (int g = 0; g < group; ++g) {
            const int head = tile.head * group + g, first_block = row_block<Config>(params, sequence, tile.batch, head);
            int m = visits.first();
            for (int i = 0; i < visits.count(); ++i, ++visit, m = visits.next(m)) {
                const TileOrigin rows{sequence.q_start + m * Config::kBlockM, head, batch};
                const i64 statistics = static_cast<i64>(first_block + m) * Config::kBlockM;
                const typename BackwardPipeline<Config>::Rows ring{visit};
                const u32 stage = ring.stage();
                pipeline.query_empty[stage].wait(ring.producer());
                load(maps.q, pipeline.query(stage), rows, pipeline.query_full[stage], params.log_sum_exp_2 + statistics, pipeline.log_sum_exp(stage));
                pipeline.grad_empty[stage].wait(ring.producer());
                load(maps.grad_out, pipeline.grad_out(stage), rows, pipeline.grad_full[stage], params.delta + statistics, pipeline.delta(stage));
            }
        }
    }

private:
    DEVICE static void load(const TensorMap& map, u32 tile, TileOrigin at, Barrier full, const float* statistics, u32 statistics_tile) {
        full.arrive_expect(Storage::kRowBytes + Storage::kStatisticBytes);
        load_tile(tile, map, full, at, L2::kEvictLast);
        load_run(statistics_tile, statistics, Storage::kStatisticBytes, full);
    }
};

template <class Config>
struct SumWriter {
    using Storage = BackwardStorage<Config>;
    const BackwardParams& params;
    BackwardPipeline<Config> pipeline;

    // The visits of buffer `own`.
    DEVICE void run(const Tile& tile, const Sequence& sequence, const Visits<Config>& visits, u32 own) {
        const int group = params.problem.group;
        u32 visit = 0;
        for (int g = 0; g < group; ++g) {
            const int first_block = row_block<Config>(params, sequence, tile.batch, tile.head * group + g);
            int m = visits.first();
            for (int i = 0; i < visits.count(); ++i, ++visit, m = visits.next(m)) {
                if (visit % Config::kSumStages == own) write(visit, first_block + m, visits.turn(m));
            }
        }
    }

private:
    DEVICE void write(u32 visit, int block, int turn) {
        const typename BackwardPipeline<Config>::Sums ring{visit};
        const u32 sum = pipeline.sum(ring.stage());
        float* destination = params.dq_sum + static_cast<i64>(block) * (Config::kBlockM * Config::kHeadDim);
        pipeline.sum_full[ring.stage()].wait(ring.consumer());
        if (turn == 0) {
            store_run(destination, sum, Storage::kSumBytes);  // the first: nothing has to be cleared
        } else {
            await(params.turns + block, turn);
            fence_global_for_async();
            add_run(destination, sum, Storage::kSumBytes);
        }
        commit_stores();
        wait_stores_read<0>();
        pipeline.sum_empty[ring.stage()].arrive();
        wait_stores<0>();
        fence_global_for_async();
        post(params.turns + block);
    }
};

}  // namespace danaus::attention
