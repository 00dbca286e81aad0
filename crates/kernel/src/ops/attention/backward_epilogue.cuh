// From registers to dk and dv, over the tiles of keys and values, which nobody needs any more.
#pragma once

#include "attention/backward_pipeline.cuh"
#include "attention/epilogue.cuh"

namespace danaus::attention {

// Writes a warpgroup's 64 rows of a gradient to its half of the tile.
template <class Config>
DEVICE void stage_key_gradient(u32 tile, int warpgroup, const float (&gradient)[Config::kHeadDim / 2]) {
    u32 packed[Config::kHeadDim / 4];
    wgmma::pack<typename Config::Element>(packed, gradient);
    store_product<Config::kBlockN, Config::kHeadDim>(tile, 64 * warpgroup, packed);
}

// Sends both tiles off, by the consumer threads, once all of them have staged their rows. The copy
// engine would write a packed sequence's last rows on into the next one: those go by hand.
template <class Config>
DEVICE void store_key_gradients(const BackwardMaps& maps, const BackwardParams& params, const BackwardPipeline<Config>& pipeline,
                                const Tile& tile, const Sequence& sequence, int n) {
    constexpr int kN = Config::kBlockN;
    const int first = sequence.k_start + n * kN, count = min(kN, sequence.k_len - n * kN);
    if (Config::kPacked && count < kN) {
        const auto copy = [&](const Rows& rows, u32 staged) {
            for_rows<Config::kHeadDim, 2 * kWarpgroup>(rows, 0, tile.head, first, count, [=](uint4* out, int row, int chunk) {
                *out = load_16_bytes(staged + swizzled<kN>(row, chunk));
            });
        };
        copy(params.dk, pipeline.key());
        copy(params.dv, pipeline.value());
    } else if (threadIdx.x == kWarpgroup) {
        const TileOrigin at{first, tile.head, Config::kPacked ? 0 : tile.batch};
        store_tile(maps.dk, pipeline.key(), at);
        store_tile(maps.dv, pipeline.value(), at);
        commit_stores();
        wait_stores_read<0>();
    }
}

}  // namespace danaus::attention
