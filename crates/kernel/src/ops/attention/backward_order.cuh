// The order of the backward pass: which row blocks a key tile visits when, and who adds to dq in turn.
//
// A thread block owns one tile of keys, keeps its dk and dv in registers and walks the row blocks that
// see it, adding to dq of each. Sums of floats depend on their order, so the additions to a row block
// happen in a fixed one. It is chosen so that blocks that run together meet it without waiting. Tiles are
// numbered head by head; `wave` of them, one a multiprocessor, run together, and of one head's tiles
// those of an earlier wave add first. Within a wave:
//   - Without a diagonal all tiles take equally long. They start evenly spread over the row blocks and
//     wrap around; row block m is reached by the last tile that starts at or before m, then by the one
//     before it, ..., around the circle.
//   - With a diagonal, tile n goes up from its first visible row block, and row block m is reached by the
//     last visible tile first. That holds when tiles start together. When a head fills most of a wave,
//     short tiles end early, those of the next wave start one after another, and going up they would all
//     reach m at the same time: such a wave goes down from the last row block, and the first tile leads.
//     It ends together, so every other wave is of this kind.
// Thread blocks take their numbers when they start, so a block waits only for blocks that have started
// or will start when earlier ones end: no deadlock.
#pragma once

#include "attention/tile_range.cuh"
#include "device/barrier.cuh"

namespace danaus::attention {

// What one thread block works on.
struct KeyTile {
    int number;
    int n;
    int kv_head;
    int batch;
};

DEVICE KeyTile key_tile_of(const BackwardParams& params, int number) {
    const int kv_heads = params.problem.heads / params.problem.group;
    const int n = number % params.key_tiles, rest = number / params.key_tiles;
    return {number, n, rest % kv_heads, rest / kv_heads};
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
    bool down;

    DEVICE Visits(const BackwardParams& params, const Sequence& sequence, const KeyTile& tile)
        : band(params.problem, sequence), blocks(QueryBlocks::of<Config>(band, tile.n * Config::kBlockN)), n(tile.n) {
        const int wave = tile.number / params.wave, wave_start = n + wave * params.wave - tile.number;
        wave_begin = max(0, wave_start);
        wave_end = min(wave_start + params.wave, div_up(sequence.k_len, Config::kBlockN));
        down = !kCircle && wave % 2 == 1 && 2 * params.key_tiles > params.wave;
        start = kCircle ? (n - wave_begin) * blocks.end / (wave_end - wave_begin) : down ? blocks.end - 1 : blocks.begin;
    }

    DEVICE int count() const { return max(0, blocks.end - blocks.begin); }

    DEVICE bool masked(int m) const { return m < blocks.full_begin || m >= blocks.full_end; }

    // The row block after m.
    DEVICE int next(int m) const {
        if (down) return m == blocks.begin ? blocks.end - 1 : m - 1;
        return m + 1 == blocks.end ? blocks.begin : m + 1;
    }

    // How many tiles add to row block m before this one.
    DEVICE int turn(int m) const {
        const int first = m * Config::kBlockM;
        const KeyTiles tiles = KeyTiles::of<Config>(band, first, min(first + Config::kBlockM, band.q_len));
        const int begin = max(wave_begin, tiles.begin), end = min(wave_end, tiles.end), width = end - begin;
        if (down) return n - tiles.begin;
        const int leader = kCircle ? begin + min(width - 1, ((m + 1) * width - 1) / blocks.end) : end - 1;
        const int behind = leader - n;
        return begin - tiles.begin + (behind < 0 ? behind + width : behind);
    }
};

}  // namespace danaus::attention
