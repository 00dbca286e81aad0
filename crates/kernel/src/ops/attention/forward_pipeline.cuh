// Shared memory, barriers and the producer of the forward kernel.
//
// One thread of warpgroup 0 issues every copy: the 64 query rows of each consumer warpgroup, and rings
// of key and value tiles. It walks the same tiles as the consumers, from the last visible key tile to
// the first, so that masked tiles come first.
#pragma once

#include "attention/scheduler.cuh"
#include "attention/tile_range.cuh"
#include "device/shared_tile.cuh"
#include "device/tma.cuh"

namespace danaus::attention {

// First query of a tile.
template <class Config>
DEVICE int first_query(const Schedule& schedule, const Tile& tile) {
    return Config::kBlockM * (Config::kLastFirst ? schedule.tiles_of_head - 1 - tile.order : tile.order);
}

// Byte offsets in shared memory.
template <class Config>
struct ForwardStorage {
    static constexpr int kConsumers = Config::kBlockM / 64;
    static constexpr u32 kQueryBytes = 64 * Config::kHeadDim * 2;  // of one warpgroup
    static constexpr u32 kOutBytes = 64 * Config::kValueDim * 2;
    static constexpr u32 kKeyBytes = Config::kBlockN * Config::kHeadDim * 2;
    static constexpr u32 kValueBytes = Config::kBlockN * Config::kValueDim * 2;

    static constexpr u32 kQuery = 0;
    static constexpr u32 kKey = kQuery + kConsumers * kQueryBytes;
    static constexpr u32 kValue = kKey + Config::kStages * kKeyBytes;
    static constexpr u32 kTilesEnd = kValue + Config::kStages * kValueBytes;
    // Where the output is staged: over the queries, when there is no room beside.
    static constexpr u32 kOut = Config::kOutOverQuery ? kQuery : kTilesEnd;
    static constexpr u32 kOutStep = Config::kOutOverQuery ? kQueryBytes : kOutBytes;
    static constexpr u32 kBarriers = Config::kOutOverQuery ? kTilesEnd : kTilesEnd + kConsumers * kOutBytes;
    static constexpr int kBarrierCount = 2 * kConsumers + 4 * Config::kStages + 2 * TileMail::kSlots;
    static constexpr u32 kNumbers = kBarriers + 8 * kBarrierCount;
    static constexpr u32 kScratch = kNumbers + 4 * TileMail::kSlots;
    static constexpr u32 kBytes = kScratch + 8;

    static_assert(Config::kBlockM % 64 == 0 && kConsumers <= 3, "a consumer warpgroup owns 64 query rows; at most 3 fit the registers");
    static_assert(Config::kHeadDim % 64 == 0 && Config::kValueDim % 64 == 0, "head dims are whole panels of 64");
    static_assert(Config::kBlockN % 16 == 0 && Config::kBlockN <= 256, "key tiles are k-steps of 16, at most 256");
    static_assert(!Config::kOutOverQuery || kOutBytes <= kQueryBytes, "the output must fit over the queries");
    static_assert(kBytes <= 232448, "a thread block has 227 KiB of shared memory");
};

// The kernel's barriers; copies hold the same addresses and private positions in the rings.
template <class Config>
struct ForwardPipeline {
    using Storage = ForwardStorage<Config>;
    static constexpr int kConsumers = Storage::kConsumers;
    static constexpr int kConsumerWarps = 4 * kConsumers;

    u32 base;
    BarrierArray query_full, query_empty;  // by warpgroup
    BarrierArray key_full, key_empty, value_full, value_empty;
    TileMail mail;
    u32 query_wraps = 0;
    Ring<Config::kStages> keys, values;

    DEVICE ForwardPipeline() : base(dynamic_shared()) {
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
    DEVICE u32 query(int warpgroup) const { return base + Storage::kQuery + warpgroup * Storage::kQueryBytes; }
    DEVICE u32 out(int warpgroup) const { return base + Storage::kOut + warpgroup * Storage::kOutStep; }
    DEVICE u32 key(int stage) const { return base + Storage::kKey + stage * Storage::kKeyBytes; }
    DEVICE u32 value(int stage) const { return base + Storage::kValue + stage * Storage::kValueBytes; }
};

// The producer thread's program.
template <class Config>
struct ForwardProducer {
    using Storage = ForwardStorage<Config>;
    const TensorMap& q;
    const TensorMap& k;
    const TensorMap& v;
    const ForwardParams& params;
    ForwardPipeline<Config> pipeline;

    DEVICE void run() {
        const Problem& problem = params.problem;
        int number = blockIdx.x;
        while (number < params.schedule.tiles) {
            const Tile tile = tile_of(params.schedule, problem.heads, problem.batch, number);
            const Sequence sequence = Sequence::of<Config>(problem, tile.batch);
            const int first = first_query<Config>(params.schedule, tile);
            if (first < sequence.q_len) {
                pipeline.mail.send(number);
                load(tile, sequence, first);
            }
            number = draw(params.schedule);
        }
        pipeline.mail.send(-1);
    }

private:
    DEVICE void load(const Tile& tile, const Sequence& sequence, int first) {
        const Band<Config> band(params.problem, sequence);
        const KeyTiles tiles = KeyTiles::of<Config>(band, first, min(first + Config::kBlockM, sequence.q_len));
        if (tiles.empty()) return;
        // Packed sequences and batches both address rows as (row, head, batch); packed ones have batch 0.
        const int batch = Config::kPacked ? 0 : tile.batch, kv_head = tile.head / params.problem.group;
        int n = tiles.end - 1;
        load_key({sequence.k_start + n * Config::kBlockN, kv_head, batch});
        load_queries({sequence.q_start + first, tile.head, batch});
        for (; n > tiles.begin; --n) {
            load_key({sequence.k_start + (n - 1) * Config::kBlockN, kv_head, batch});
            load_value({sequence.k_start + n * Config::kBlockN, kv_head, batch});
        }
        load_value({sequence.k_start + n * Config::kBlockN, kv_head, batch});
    }

    DEVICE void load_queries(TileOrigin at) {
#pragma unroll
        for (int w = 0; w < Storage::kConsumers; ++w) {
            pipeline.query_empty[w].wait(pipeline.query_wraps ^ 1u);
            pipeline.query_full[w].arrive_expect(Storage::kQueryBytes);
            load_tile(pipeline.query(w), q, pipeline.query_full[w], {at.row + 64 * w, at.head, at.batch}, L2::kEvictFirst);
        }
        pipeline.query_wraps ^= 1u;
    }

    DEVICE void load_key(TileOrigin at) {
        auto& ring = pipeline.keys;
        pipeline.key_empty[ring.stage].wait(ring.producer());
        pipeline.key_full[ring.stage].arrive_expect(Storage::kKeyBytes);
        load_tile(pipeline.key(ring.stage), k, pipeline.key_full[ring.stage], at, L2::kEvictLast);
        ring.advance();
    }

    DEVICE void load_value(TileOrigin at) {
        auto& ring = pipeline.values;
        pipeline.value_empty[ring.stage].wait(ring.producer());
        pipeline.value_full[ring.stage].arrive_expect(Storage::kValueBytes);
        load_tile(pipeline.value(ring.stage), v, pipeline.value_full[ring.stage], at, L2::kEvictLast);
        ring.advance();
    }
};

}  // namespace danaus::attention
