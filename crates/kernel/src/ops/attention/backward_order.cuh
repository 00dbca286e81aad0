// The order of the backward pass: which row blocks a key tile visits when, and who adds to dq in turn.
//
// A thread block owns one tile of keys, keeps its dk and dv in registers and walks the row blocks that
// see it, adding to dq of each. Sums of floats depend on their order, so the additions to a row block
// happen in a fixed one. It is chosen so that blocks that start together meet it without waiting:
//   - with a diagonal, tile n starts at its first visible row block and goes on; row block m is reached
//     by the last visible tile first, then by the one before, ...
//   - without, tiles start evenly spread over the row blocks and wrap around; row block m is reached by
//     the last tile that starts at or before m first, then by the one before, ..., around the circle.
// The circle holds only tiles that are resident together (`wave` of them, at most one a multiprocessor);
// waves follow one another. Thread blocks take their numbers when they start, so a block waits only for
// blocks that have started or will start when earlier ones end: no deadlock.
#pragma once

#include "attention/tile_range.cuh"
#include "device/barrier.cuh"

namespace danaus::attention {

// What one thread block works on.
struct KeyTile {
    int n;
    int kv_head;
    int batch;
};

DEVICE KeyTile key_tile_of(const BackwardParams& params, int number) {
    const int kv_heads = params.problem.heads / params.problem.group;
    const int n = number % params.key_tiles, rest = number / params.key_tiles;
    return {n, rest % kv_heads, rest / kv_heads};
}

// First row block of a sequence in its head, and all before it.
template <class Config>
DEVICE int row_block(const BackwardParams& params, const Sequence& sequence, int batch, int head) {
    if constexpr (Config::kPacked) return head * params.row_blocks + (sequence.q_start + batch * Config::kBlockM) / Config::kBlockM;
    return (batch * params.problem.heads + head) * params.row_blocks;
}

// The visits of one key tile.
template <class Config>
struct Visits {
    static constexpr bool kCircle = !Config::kCausal && !Config::kWindowLeft && !Config::kWindowRight;

    Band<Config> band;
    QueryBlocks blocks;
    int n;
    int wave_begin;
    int wave_end;
    int start;

    DEVICE Visits(const BackwardParams& params, const Sequence& sequence, int n)
        : band(params.problem, sequence), blocks(QueryBlocks::of<Config>(band, n * Config::kBlockN)), n(n) {
        wave_begin = n / params.wave * params.wave;
        wave_end = min(wave_begin + params.wave, div_up(sequence.k_len, Config::kBlockN));
        start = kCircle ? (n - wave_begin) * blocks.end / (wave_end - wave_begin) : blocks.begin;
    }

    DEVICE int count() const { return max(0, blocks.end - blocks.begin); }

    DEVICE bool masked(int m) const { return m < blocks.full_begin || m >= blocks.full_end; }

    // The row block after m.
    DEVICE int next(int m) const { return m + 1 == blocks.end ? blocks.begin : m + 1; }

    // How many tiles add to row block m before this one.
    DEVICE int turn(int m) const {
        const int first = m * Config::kBlockM;
        const KeyTiles tiles = KeyTiles::of<Config>(band, first, min(first + Config::kBlockM, band.q_len));
        const int begin = max(wave_begin, tiles.begin), end = min(wave_end, tiles.end), width = end - begin;
        const int leader = kCircle ? begin + min(width - 1, ((m + 1) * width - 1) / blocks.end) : end - 1;
        const int behind = leader - n;
        return begin - tiles.begin + (behind < 0 ? behind + width : behind);
    }
};

}  // namespace danaus::attention
