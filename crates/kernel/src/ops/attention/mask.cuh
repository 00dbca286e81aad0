// Element masks and score transforms on a tile of scores held as a wgmma result.
//
// Each thread holds two rows, 8 apart, and of every 8 columns the two at 2 t: limits are moved into
// that frame once per tile, so that each element is compared with a compile-time column.
#pragma once

#include "attention/tile_range.cuh"
#include "device/math.cuh"

namespace danaus::attention {

// Hides the keys outside the band. `query` is the thread's first row; scores are 64 x kBlockN.
template <class Config>
DEVICE void mask_scores(float (&s)[Config::kBlockN / 2], const Band<Config>& band, int query, int tile) {
    const int frame = tile * Config::kBlockN + 2 * (lane_index() % 4);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int end = band.end_key(query + 8 * i) - frame;
        const int first = band.first_key(query + 8 * i) - frame;
#pragma unroll
        for (int j = 0; j < Config::kBlockN / 8; ++j) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                float& score = s[4 * j + 2 * i + c];
                if (8 * j + c >= end) score = -kInfinity;
                if constexpr (Config::kWindowLeft) {
                    if (8 * j + c < first) score = -kInfinity;
                }
            }
        }
    }
}

// The same for transposed scores, 64 keys x kBlockM queries; `key` is the thread's first row.
template <class Config>
DEVICE void mask_transposed_scores(float (&s)[Config::kBlockM / 2], const Band<Config>& band, int key, int block) {
    const int frame = block * Config::kBlockM + 2 * (lane_index() % 4);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int first = band.first_query(key + 8 * i) - frame;
        const int end = band.end_query(key + 8 * i) - frame;
#pragma unroll
        for (int j = 0; j < Config::kBlockM / 8; ++j) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                float& score = s[4 * j + 2 * i + c];
                if (8 * j + c < first || 8 * j + c >= end) score = -kInfinity;
            }
        }
    }
}

template <class Config, int kCount>
DEVICE void cap_scores(float (&s)[kCount], const Problem& problem) {
    if constexpr (Config::kSoftcap) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) s[i] = tanh_unit(s[i] * problem.score_factor);
    }
}

}  // namespace danaus::attention
