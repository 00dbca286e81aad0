// Which keys a tile of queries sees; the device side of tile_range.rs.
//
// Query i sees key j iff i + k_len - q_len - left <= j <= i + k_len - q_len + right.
#pragma once

#include "attention/params.cuh"

namespace danaus::attention {

// One sequence of the batch.
struct Sequence {
    int q_start;  // first row in a packed tensor, else 0
    int q_len;
    int k_start;
    int k_len;

    template <class Config>
    DEVICE static Sequence of(const Problem& problem, int batch) {
        if constexpr (Config::kPacked) {
            const int q = problem.cu_seqlens_q[batch], k = problem.cu_seqlens_k[batch];
            return {q, problem.cu_seqlens_q[batch + 1] - q, k, problem.cu_seqlens_k[batch + 1] - k};
        } else {
            return {0, problem.q_len, 0, problem.k_len};
        }
    }
};

// First and last key that query `i` may see, clipped to the sequence.
template <class Config>
struct Band {
    int diagonal;  // key under query 0
    int left;
    int right;
    int k_len;

    DEVICE Band(const Problem& problem, const Sequence& sequence)
        : diagonal(sequence.k_len - sequence.q_len),
          left(problem.window_left),
          right(Config::kCausal ? 0 : problem.window_right),
          k_len(sequence.k_len) {}

    DEVICE int first_key(int i) const {
        if constexpr (Config::kWindowLeft) return max(0, i + diagonal - left);
        return 0;
    }

    DEVICE int end_key(int i) const {
        if constexpr (Config::kCausal || Config::kWindowRight) return min(k_len, i + diagonal + right + 1);
        return k_len;
    }
};

// Tiles of keys for one tile of queries: [begin, end) are visible, [full_begin, full_end) wholly.
struct KeyTiles {
    int begin;
    int end;
    int full_begin;
    int full_end;

    DEVICE bool empty() const { return begin >= end; }

    template <class Config>
    DEVICE static KeyTiles of(const Band<Config>& band, int first_query, int end_query) {
        constexpr int kTile = Config::kBlockN;
        KeyTiles tiles;
        tiles.begin = band.first_key(first_query) / kTile;
        tiles.end = max(0, div_up(band.end_key(end_query - 1), kTile));
        tiles.full_begin = div_up(band.first_key(end_query - 1), kTile);
        tiles.full_end = max(0, band.end_key(first_query)) / kTile;
        return tiles;
    }
};

}  // namespace danaus::attention
