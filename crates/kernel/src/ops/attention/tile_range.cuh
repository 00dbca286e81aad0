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

// The keys that query `i` may see and the queries that see key `j`, clipped to the sequence.
template <class Config>
struct Band {
    int diagonal;  // key under query 0
    int left;
    int right;
    int q_len;
    int k_len;

    DEVICE Band(const Problem& problem, const Sequence& sequence)
        : diagonal(sequence.k_len - sequence.q_len),
          left(problem.window_left),
          right(Config::kCausal ? 0 : problem.window_right),
          q_len(sequence.q_len),
          k_len(sequence.k_len) {}

    DEVICE int first_key(int i) const {
        if constexpr (Config::kWindowLeft) return max(0, i + diagonal - left);
        return 0;
    }

    DEVICE int end_key(int i) const {
        if constexpr (Config::kCausal || Config::kWindowRight) return min(k_len, i + diagonal + right + 1);
        return k_len;
    }

    DEVICE int first_query(int j) const {
        if (j >= k_len) return q_len;
        if constexpr (Config::kCausal || Config::kWindowRight) return max(0, j - diagonal - right);
        return 0;
    }

    DEVICE int end_query(int j) const {
        if constexpr (Config::kWindowLeft) return min(q_len, j - diagonal + left + 1);
        return q_len;
    }
};

// Tiles of keys for one tile of queries: [begin, end) are visible, [full_begin, full_end) wholly.
//
// `KeyTiles` and `QueryBlocks` describe the same pairs: the backward pass counts on it.
struct KeyTiles {
    int begin;
    int end;
    int full_begin;
    int full_end;

    DEVICE bool empty() const { return begin >= end; }

    template <class Config>
    DEVICE static KeyTiles of(const Band<Config>& band, int first_query, int end_query) {
        constexpr int kTile = Config::kBlockN;
        const int first = band.first_key(first_query);
        KeyTiles tiles;
        tiles.begin = first / kTile;
        tiles.end = first < band.k_len ? max(0, div_up(band.end_key(end_query - 1), kTile)) : tiles.begin;
        tiles.full_begin = div_up(band.first_key(end_query - 1), kTile);
        tiles.full_end = max(0, band.end_key(first_query)) / kTile;
        return tiles;
    }
};

// Blocks of queries for one tile of keys: [begin, end) see some of it, [full_begin, full_end) all of it.
// Queries beyond the sequence count as seeing: their probabilities are 0 by their log-sum-exp.
struct QueryBlocks {
    int begin;
    int end;
    int full_begin;
    int full_end;

    template <class Config>
    DEVICE static QueryBlocks of(const Band<Config>& band, int first_key) {
        constexpr int kBlock = Config::kBlockM;
        const int last = min(first_key + Config::kBlockN, band.k_len) - 1, first = band.first_query(first_key);
        QueryBlocks blocks;
        blocks.begin = first / kBlock;
        blocks.end = first < band.q_len ? max(0, div_up(band.end_query(last), kBlock)) : blocks.begin;
        blocks.full_begin = div_up(band.first_query(last), kBlock);
        blocks.full_end = Config::kWindowLeft ? max(0, band.end_query(first_key)) / kBlock : blocks.end;
        if (first_key + Config::kBlockN > band.k_len) blocks.full_end = blocks.full_begin;
        return blocks;
    }
};

}  // namespace danaus::attention
