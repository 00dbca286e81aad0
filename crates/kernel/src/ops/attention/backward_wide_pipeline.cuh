// Shared memory, barriers and producers of the two kernels of backward_wide.cuh.
#pragma once

#include "attention/backward_order.cuh"
#include "attention/backward_pipeline.cuh"
#include "device/shared_tile.cuh"
#include "device/tma.cuh"

namespace danaus::attention {

struct WideParams : BackwardParams {
    Schedule query_schedule;  // of tiles of 128 queries; `schedule` is of tiles of 64 keys
};

struct WideMaps : BackwardMaps {
    const TensorMap& dq;
};

// Barriers one after the other.
struct BarrierStore {
    u32 next;

    DEVICE BarrierArray take(int count) {
        const BarrierArray barriers{next};
        next += 8u * count;
        return barriers;
    }
};

template <class Config>
struct KeysPipeline {
    static constexpr int kStages = 2, kConsumerWarps = 8;
    using Ring = RingAt<kStages>;  // all rings advance once a visit
    static constexpr u32 kTileBytes = 64 * Config::kHeadDim * 2, kScoreBytes = 64 * 64 * 2, kStatisticBytes = 64 * 4;
    static constexpr u32 kScore = (2 + 2 * kStages) * kTileBytes;
    static constexpr u32 kStatistics = kScore + kStages * kScoreBytes;
    static constexpr u32 kBarriers = kStatistics + 2 * kStages * kStatisticBytes;
    static constexpr u32 kScratch = kBarriers + 8 * (2 + 6 * kStages);
    static constexpr u32 kBytes = kScratch + 8;
    static_assert(kBytes <= 232448, "a thread block has 227 KiB of shared memory");
    static_assert(Config::kBlockM == 64 && Config::kBlockN == 64, "tiles are one warpgroup's rows");

    u32 base;
    BarrierArray key_full;  // of keys, of values
    BarrierArray query_full, query_empty, grad_full, grad_empty;
    BarrierArray score_full, score_empty;  // what ds takes from p, between the warpgroups

    DEVICE KeysPipeline() : base(dynamic_shared()) {
        BarrierStore store{base + kBarriers};
        key_full = store.take(2);
        query_full = store.take(kStages);
        query_empty = store.take(kStages);
        grad_full = store.take(kStages);
        grad_empty = store.take(kStages);
        score_full = store.take(kStages);
        score_empty = store.take(kStages);
    }

    // By one thread, before the block synchronises.
    DEVICE void init() const {
        key_full[0].init(1);
        key_full[1].init(1);
        for (int i = 0; i < kStages; ++i) {
            query_full[i].init(1);
            grad_full[i].init(1);
            query_empty[i].init(kConsumerWarps);
            grad_empty[i].init(kConsumerWarps);
            score_full[i].init(kConsumerWarps / 2);
            score_empty[i].init(kConsumerWarps / 2);
        }
        fence_barrier_init();
    }

    DEVICE u32 key() const { return base; }
    DEVICE u32 value() const { return base + kTileBytes; }
    DEVICE u32 query(u32 stage) const { return base + (2 + stage) * kTileBytes; }
    DEVICE u32 grad_out(u32 stage) const { return base + (2 + kStages + stage) * kTileBytes; }
    DEVICE u32 score(u32 stage) const { return base + kScore + stage * kScoreBytes; }
    DEVICE u32 log_sum_exp(u32 stage) const { return base + kStatistics + stage * kStatisticBytes; }
    DEVICE u32 delta(u32 stage) const { return base + kStatistics + (kStages + stage) * kStatisticBytes; }
    DEVICE u32 scratch() const { return base + kScratch; }
};

template <class Config>
struct KeysProducer {
    using Pipeline = KeysPipeline<Config>;
    const WideMaps& maps;
    const WideParams& params;
    Pipeline pipeline;

    DEVICE void run(const Tile& tile, const Sequence& sequence, const Visits<Config>& visits) {
        const int batch = Config::kPacked ? 0 : tile.batch, group = params.problem.group;
        const TileOrigin keys{sequence.k_start + visits.n * 64, tile.head, batch};
        for (int i = 0; i < 2; ++i) {
            pipeline.key_full[i].arrive_expect(Pipeline::kTileBytes);
            load_tile(i ? pipeline.value() : pipeline.key(), i ? maps.v : maps.k, pipeline.key_full[i], keys, L2::kEvictFirst);
        }
        u32 visit = 0;
        for (int g = 0; g < group; ++g) {
            const int head = tile.head * group + g, first_block = row_block<Config>(params, sequence, tile.batch, head);
            int m = visits.first();
            for (int i = 0; i < visits.count(); ++i, ++visit, m = visits.next(m)) {
                const TileOrigin rows{sequence.q_start + m * 64, head, batch};
                const i64 statistics = static_cast<i64>(first_block + m) * 64;
                const typename Pipeline::Ring ring{visit};
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
        full.arrive_expect(Pipeline::kTileBytes + Pipeline::kStatisticBytes);
        load_tile(tile, map, full, at, L2::kEvictLast);
        load_run(statistics_tile, statistics, Pipeline::kStatisticBytes, full);
    }
};

template <class Config>
struct QueriesPipeline {
    static constexpr int kKeyStages = 2, kValueStages = 1, kConsumerWarps = 8;
    static constexpr u32 kTileBytes = 64 * Config::kHeadDim * 2;
    static constexpr u32 kKey = 4 * kTileBytes;  // after the rows of two warpgroups: queries, gradients
    static constexpr u32 kValue = kKey + kKeyStages * kTileBytes;
    static constexpr u32 kBarriers = kValue + kValueStages * kTileBytes;
    static constexpr u32 kScratch = kBarriers + 8 * (1 + 2 * kKeyStages + 2 * kValueStages);
    static constexpr u32 kBytes = kScratch + 8;
    static_assert(kBytes <= 232448, "a thread block has 227 KiB of shared memory");

    u32 base;
    Barrier rows_full;
    BarrierArray key_full, key_empty, value_full, value_empty;
    Ring<kKeyStages> keys;
    Ring<kValueStages> values;

    DEVICE QueriesPipeline() : base(dynamic_shared()) {
        BarrierStore store{base + kBarriers};
        rows_full = store.take(1)[0];
        key_full = store.take(kKeyStages);
        key_empty = store.take(kKeyStages);
        value_full = store.take(kValueStages);
        value_empty = store.take(kValueStages);
    }

    DEVICE void init() const {
        rows_full.init(1);
        for (int i = 0; i < kKeyStages; ++i) {
            key_full[i].init(1);
            key_empty[i].init(kConsumerWarps);
        }
        for (int i = 0; i < kValueStages; ++i) {
            value_full[i].init(1);
            value_empty[i].init(kConsumerWarps);
        }
        fence_barrier_init();
    }

    DEVICE u32 query(int warpgroup) const { return base + warpgroup * kTileBytes; }
    DEVICE u32 grad_out(int warpgroup) const { return base + (2 + warpgroup) * kTileBytes; }
    DEVICE u32 key(int stage) const { return base + kKey + stage * kTileBytes; }
    DEVICE u32 value(int stage) const { return base + kValue + stage * kTileBytes; }
    DEVICE u32 scratch() const { return base + kScratch; }
};

template <class Config>
struct QueriesProducer {
    using Pipeline = QueriesPipeline<Config>;
    const WideMaps& maps;
    const WideParams& params;
    Pipeline pipeline;

    DEVICE void run(const Tile& tile, const Sequence& sequence, int first, const KeyTiles& tiles) {
        if (tiles.empty()) return;
        const int batch = Config::kPacked ? 0 : tile.batch, kv_head = tile.head / params.problem.group;
        pipeline.rows_full.arrive_expect(4 * Pipeline::kTileBytes);
        for (int w = 0; w < 2; ++w) {
            const TileOrigin at{sequence.q_start + first + 64 * w, tile.head, batch};
            load_tile(pipeline.query(w), maps.q, pipeline.rows_full, at, L2::kEvictFirst);
            load_tile(pipeline.grad_out(w), maps.grad_out, pipeline.rows_full, at, L2::kEvictFirst);
        }
        for (int n = tiles.begin; n < tiles.end; ++n) {
            const TileOrigin at{sequence.k_start + n * 64, kv_head, batch};
            load(maps.k, pipeline.key(pipeline.keys.stage), pipeline.key_full, pipeline.key_empty, pipeline.keys, at);
            load(maps.v, pipeline.value(pipeline.values.stage), pipeline.value_full, pipeline.value_empty, pipeline.values, at);
        }
    }

private:
    template <int kStages>
    DEVICE static void load(const TensorMap& map, u32 tile, BarrierArray full, BarrierArray empty, Ring<kStages>& ring, TileOrigin at) {
        empty[ring.stage].wait(ring.producer());
        full[ring.stage].arrive_expect(Pipeline::kTileBytes);
        load_tile(tile, map, full[ring.stage], at, L2::kEvictLast);
        ring.advance();
    }
};

}  // namespace danaus::attention
