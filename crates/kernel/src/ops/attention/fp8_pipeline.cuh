// Shared memory, barriers and the producer of the FP8 forward kernel.
//
// As forward_pipeline.cuh, but tiles come by flat copies: they were written in the layout of shared
// memory when they were quantised. Scales of a tile of keys and of its values arrive with the keys.
#pragma once

#include "attention/fp8_params.cuh"
#include "attention/scheduler.cuh"
#include "attention/tile_range.cuh"
#include "device/fp8.cuh"
#include "device/shared_tile.cuh"
#include "device/tma.cuh"

namespace danaus::attention {

template <class Config>
struct Fp8Storage {
    static constexpr int kConsumers = Config::kBlockM / 64;
    using Queries = wgmma::ByteRows<64, Config::kHeadDim>;
    using Keys = wgmma::ByteRows<Config::kBlockN, Config::kHeadDim>;
    using Values = wgmma::ByteRows<Config::kHeadDim, Config::kBlockN>;
    static constexpr u32 kScaleBytes = 16;

    static constexpr u32 kQuery = 0;
    static constexpr u32 kKey = kQuery + kConsumers * Queries::kTileBytes;
    static constexpr u32 kValue = kKey + Config::kStages * Keys::kTileBytes;
    static constexpr u32 kOut = kValue + Config::kStages * Values::kTileBytes;
    static constexpr u32 kOutStep = 64 * Config::kValueDim * 2;  // of one warpgroup
    static constexpr u32 kScales = kOut + kConsumers * kOutStep;
    static constexpr u32 kBarriers = kScales + Config::kStages * kScaleBytes;
    static constexpr int kBarrierCount = 2 * kConsumers + 4 * Config::kStages + 2 * TileMail::kSlots;
    static constexpr u32 kNumbers = kBarriers + 8 * kBarrierCount;
    static constexpr u32 kScratch = kNumbers + 4 * TileMail::kSlots;
    static constexpr u32 kBytes = kScratch + 8;

    static_assert(Config::kBlockM % 64 == 0 && kConsumers <= 3, "a consumer warpgroup owns 64 query rows; at most 3 fit the registers");
    static_assert(Config::kValueDim == Config::kHeadDim, "one head dim");
    static_assert(Config::kBlockN % 32 == 0 && Config::kBlockN <= 256, "key tiles are k-steps of 32, at most 256");
    static_assert(Keys::kTileBytes % 1024 == 0 && Queries::kTileBytes % 1024 == 0, "tiles start at multiples of the swizzle");
    static_assert(kBytes <= 232448, "a thread block has 227 KiB of shared memory");
};

template <class Config>
struct Fp8Pipeline {
    using Storage = Fp8Storage<Config>;
    static constexpr int kConsumers = Storage::kConsumers;
    static constexpr int kConsumerWarps = 4 * kConsumers;

    u32 base;
    BarrierArray query_full, query_empty;  // by warpgroup
    BarrierArray key_full, key_empty, value_full, value_empty;
    TileMail mail;
    u32 query_wraps = 0;
    Ring<Config::kStages> keys, values;

    DEVICE Fp8Pipeline() : base(dynamic_shared()) {
        u32 next = base + Storage::kBarriers;
        const auto take = [&](int count) {
            const BarrierArray barriers{next};
            next += 8u * count;
            return barriers;
        };
        query_full = take(kConsumers);
        query_empty = take(kConsumers);
        key_full = take(Config::kStages);
        key_empty = take(Config::kStages);
        value_full = take(Config::kStages);
        value_empty = take(Config::kStages);
        mail.full = take(TileMail::kSlots);
        mail.empty = take(TileMail::kSlots);
        mail.numbers = base + Storage::kNumbers;
    }

    // By one thread, before the block synchronises. Empty barriers take one arrival a consumer warp.
    DEVICE void init() const {
        for (int i = 0; i < kConsumers; ++i) {
            query_full[i].init(1);
            query_empty[i].init(4);
        }
        for (int i = 0; i < Config::kStages; ++i) {
            key_full[i].init(1);
            value_full[i].init(1);
            key_empty[i].init(kConsumerWarps);
            value_empty[i].init(kConsumerWarps);
        }
        for (int i = 0; i < TileMail::kSlots; ++i) {
            mail.full[i].init(1);
            mail.empty[i].init(kConsumerWarps);
        }
        fence_barrier_init();
    }

    DEVICE u32 scratch() const { return base + Storage::kScratch; }
    DEVICE u32 query(int warpgroup) const { return base + Storage::kQuery + warpgroup * Storage::Queries::kTileBytes; }
    DEVICE u32 out(int warpgroup) const { return base + Storage::kOut + warpgroup * Storage::kOutStep; }
    DEVICE u32 key(int stage) const { return base + Storage::kKey + stage * Storage::Keys::kTileBytes; }
    DEVICE u32 value(int stage) const { return base + Storage::kValue + stage * Storage::Values::kTileBytes; }
    DEVICE u32 scales(int stage) const { return base + Storage::kScales + stage * Storage::kScaleBytes; }
};

// First query of a tile.
template <class Config>
DEVICE int first_query(const Schedule& schedule, const Tile& tile) {
    return Config::kBlockM * (Config::kLastFirst ? schedule.tiles_of_head - 1 - tile.order : tile.order);
}

// The producer thread's program.
template <class Config>
struct Fp8Producer {
    using Storage = Fp8Storage<Config>;
    const Fp8Params& params;
    Fp8Pipeline<Config> pipeline;

    DEVICE void run() {
        const Problem& problem = params.problem;
        int number = blockIdx.x;
        while (number < params.schedule.tiles) {
            const Tile tile = tile_of(params.schedule, problem.heads, problem.batch, number);
            pipeline.mail.send(number);
            load(tile, first_query<Config>(params.schedule, tile));
            number = draw(params.schedule);
        }
        pipeline.mail.send(-1);
    }

private:
    DEVICE void load(const Tile& tile, int first) {
        const Problem& problem = params.problem;
        const Band<Config> band(problem, Sequence::of<Config>(problem, tile.batch));
        const KeyTiles tiles = KeyTiles::of<Config>(band, first, min(first + Config::kBlockM, problem.q_len));
        if (tiles.empty()) return;
        const i64 head = static_cast<i64>(tile.batch) * problem.heads + tile.head;
        const i64 kv_head = static_cast<i64>(tile.batch) * (problem.heads / problem.group) + tile.head / problem.group;
        const i64 first_tile = kv_head * params.k_tiles;
        load_key(first_tile + tiles.begin);
        load_queries(head * params.q_blocks + first / 64);
        for (int n = tiles.begin + 1; n < tiles.end; ++n) {
            load_key(first_tile + n);
            load_value(first_tile + n - 1);
        }
        load_value(first_tile + tiles.end - 1);
    }

    DEVICE void load_queries(i64 block) {
#pragma unroll
        for (int w = 0; w < Storage::kConsumers; ++w) {
            constexpr u32 kBytes = Storage::Queries::kTileBytes;
            pipeline.query_empty[w].wait(pipeline.query_wraps ^ 1u);
            pipeline.query_full[w].arrive_expect(kBytes);
            load_run(pipeline.query(w), params.operands.q + (block + w) * kBytes, kBytes, pipeline.query_full[w]);
        }
        pipeline.query_wraps ^= 1u;
    }

    DEVICE void load_key(i64 tile) {
        constexpr u32 kBytes = Storage::Keys::kTileBytes;
        auto& ring = pipeline.keys;
        const Barrier full = pipeline.key_full[ring.stage];
        pipeline.key_empty[ring.stage].wait(ring.producer());
        full.arrive_expect(kBytes + Storage::kScaleBytes);
        load_run(pipeline.key(ring.stage), params.operands.k + tile * kBytes, kBytes, full);
        load_run(pipeline.scales(ring.stage), params.operands.kv_scales + tile, Storage::kScaleBytes, full);
        ring.advance();
    }

    DEVICE void load_value(i64 tile) {
        constexpr u32 kBytes = Storage::Values::kTileBytes;
        auto& ring = pipeline.values;
        pipeline.value_empty[ring.stage].wait(ring.producer());
        pipeline.value_full[ring.stage].arrive_expect(kBytes);
        load_run(pipeline.value(ring.stage), params.operands.v + tile * kBytes, kBytes, pipeline.value_full[ring.stage]);
        ring.advance();
    }
};

}  // namespace danaus::attention
