// Attention of few query rows to a long cache: a stream of keys and values from memory into the matrix
// units, without shared memory on the way.
//
// Constant: DIM, features of queries, keys and values (64, 128, 256). 16 bits are bfloat16. A block of
// four warps takes one part of the keys for up to eight packed rows of one key head (row r is query
// r / group of head r % group); its warps take tiles of 16 keys in turn and are joined at the end.
//
// Both products have the keys or features as rows of the 16 x 8 result and the packed rows as columns,
// so that eight heads fill them: S^T = K Q^T, O^T = V^T P^T. Which feature is which index of a sum, or
// which row of a result, is free; it is chosen so that a lane's fragments are 16 bytes in a row of
// memory. Lane 4 g + c holds of a tile: keys g and g + 8, features 32 i + 8 c ... + 7 (K); keys 2 c,
// 2 c + 1, 2 c + 8, 2 c + 9, features 64 i + 8 g ... + 7 (V); scores of keys g, g + 8 and rows 2 c,
// 2 c + 1.
#pragma once
#include "attention/plain_problem.cuh"
#include "device/math.cuh"

using danaus::exp2_unit;

constexpr int TILE_KEYS = 16;
constexpr int WARPS = 4;
constexpr int ROWS = 8;
constexpr int K_CHUNKS = DIM / 32;
constexpr int V_CHUNKS = DIM / 64;

struct alignas(16) Quad { u32 at[4]; };

DEVICE Quad load(const void* from) {
    Quad x;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.at[0]), "=r"(x.at[1]), "=r"(x.at[2]), "=r"(x.at[3])
                 : "l"(from));
    return x;
}

DEVICE void product(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Two floats as bfloat16, the first in the low half.
DEVICE u32 pack(float low, float high) {
    u32 x;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
    return x;
}

// The transpose of the 8 x 8 matrix of 16-bit values that a warp holds.
DEVICE u32 transpose(u32 x) {
    u32 y;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// Over the eight lanes that hold the scores of a row.
DEVICE float column_max(float x) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}
DEVICE float column_sum(float x) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

// What a block works on.
struct Work {
    Sequence sequence;
    int first, count;  // packed rows
    int kv_head, batch, part;
};

struct Tile {
    Quad k[2][K_CHUNKS];
};
struct Values {
    Quad v[4][V_CHUNKS];
};

// Rows beyond the end are those of the last key, and count nothing.
DEVICE const char* tile_row(const Problem& p, const Work& w, const Rows& rows, int key, int end) {
    return (const char*)key_row(p, w.sequence, w.batch, rows, min(key, end - 1), w.kv_head, 2);
}

DEVICE void load_tile(Tile& to, const Problem& p, const Work& w, int key, int end) {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const char* row = tile_row(p, w, p.k, key + g + 8 * half, end) + 16 * c;
#pragma unroll
        for (int i = 0; i < K_CHUNKS; ++i) to.k[half][i] = load(row + 64 * i);
    }
}

DEVICE void load_values(Values& to, const Problem& p, const Work& w, int key, int end) {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const char* row = tile_row(p, w, p.v, key + 2 * c + i % 2 + i / 2 * 8, end) + 16 * g;
#pragma unroll
        for (int half = 0; half < V_CHUNKS; ++half) to.v[i][half] = load(row + 128 * half);
    }
}

// The online softmax of the two rows whose scores a lane holds, in powers of two.
struct State {
    float most[2], total[2];
    float out[2 * V_CHUNKS * 2][4];
};

// Scores of a tile to probabilities; rescales what was summed before.
DEVICE void soften(const Problem& p, const Work& w, State& state, float (&s)[4], int key, const Range& keys,
                   const int (&query)[2]) {
    const int g = threadIdx.x % 32 / 4, diagonal = w.sequence.k_len - w.sequence.q_len;
    const float factor = (float)(p.softmax_scale * 1.4426950408889634);
    bool moved = false;
    float keep[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        int low = keys.start, high = keys.end - 1;
        if (p.window_left >= 0) low = max(low, query[row] + diagonal - p.window_left);
        if (p.window_right >= 0) high = min(high, query[row] + diagonal + p.window_right);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float& x = s[2 * half + row];
            if (p.softcap > 0.0) {
                x = tanhf(x * (float)(p.softmax_scale / p.softcap)) *
                    (float)(p.softcap * 1.4426950408889634);
            } else {
                x *= factor;
            }
            const int at = key + g + 8 * half;
            if (at < low || at > high) x = -danaus::kInfinity;
        }
        const float top = fmaxf(state.most[row], column_max(fmaxf(s[row], s[2 + row])));
        const float base = top == -danaus::kInfinity ? 0.0f : top;
        keep[row] = exp2_unit(state.most[row] - base);
        moved |= top != state.most[row];
        state.most[row] = top;
        s[row] = exp2_unit(s[row] - base);
        s[2 + row] = exp2_unit(s[2 + row] - base);
        state.total[row] = state.total[row] * keep[row] + s[row] + s[2 + row];
    }
    if (!__any_sync(0xffffffffu, moved)) return;
#pragma unroll
    for (int i = 0; i < 4 * V_CHUNKS; ++i)
#pragma unroll
        for (int at = 0; at < 4; ++at) state.out[i][at] *= keep[at % 2];
}

DEVICE void add_values(State& state, const Values& values, u32 low, u32 high) {
#pragma unroll
    for (int half = 0; half < V_CHUNKS; ++half)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const u32 a = values.v[0][half].at[i], b = values.v[1][half].at[i];
            const u32 c = values.v[2][half].at[i], d = values.v[3][half].at[i];
            product(state.out[4 * half + i], __byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632),
                    __byte_perm(c, d, 0x5410), __byte_perm(c, d, 0x7632), low, high);
        }
}

// Joins the warps and writes the rows of the block.
template <class Result>
DEVICE void finish(const Problem& p, const Work& w, State& state, Result* out_start) {
    __shared__ float most[WARPS][ROWS], total[WARPS][ROWS], sums[WARPS][ROWS][DIM + 4];
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        state.total[row] = column_sum(state.total[row]);
        if (g == 0) {
            most[warp][2 * c + row] = state.most[row];
            total[warp][2 * c + row] = state.total[row];
        }
    }
#pragma unroll
    for (int half = 0; half < V_CHUNKS; ++half)
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int at = 0; at < 4; ++at)
                sums[warp][2 * c + at % 2][64 * half + 8 * g + 2 * i + at / 2] =
                    state.out[4 * half + i][at];
    __syncthreads();
    for (int row = warp; row < w.count; row += WARPS) {
        float top = -danaus::kInfinity, all = 0.0f, factor[WARPS];
#pragma unroll
        for (int from = 0; from < WARPS; ++from) top = fmaxf(top, most[from][row]);
        const float base = top == -danaus::kInfinity ? 0.0f : top;
#pragma unroll
        for (int from = 0; from < WARPS; ++from) {
            factor[from] = exp2_unit(most[from][row] - base);
            all += factor[from] * total[from][row];
        }
        const bool empty = all == 0.0f;
        const float scale = empty ? 0.0f : 1.0f / all;
        const int packed = w.first + row, query = packed / p.group;
        const int head = w.kv_head * p.group + packed % p.group;
        Result* to = out_start + (w.part * (i64)p.batch + w.sequence.q_batch) * p.out.batch_stride +
                     (i64)(w.sequence.q_start + query) * p.out.row_stride + head * p.out.head_stride;
        for (int column = threadIdx.x % 32; column < DIM; column += 32) {
            float sum = 0.0f;
#pragma unroll
            for (int from = 0; from < WARPS; ++from) sum += factor[from] * sums[from][row][column];
            to[column] = Cast<Result, float>::of(sum * scale);
        }
        if (threadIdx.x % 32 == 0)
            p.lse[w.part * p.lse_part + lse_index(p, w.sequence, head, query)] =
                empty ? -danaus::kInfinity : (top + log2f(all)) * danaus::kLn2;
    }
}

template <class Result>
DEVICE void decode(const Problem& p, int row_tiles, Result* out_start) {
    Work w;
    int index = blockIdx.x;
    const int row_tile = index % row_tiles;
    index /= row_tiles;
    w.kv_head = index % p.kv_heads;
    index /= p.kv_heads;
    w.part = index / p.batch;
    w.batch = index % p.batch;
    w.sequence = p.sequences[w.batch];
    w.first = row_tile * ROWS;
    w.count = min(w.sequence.q_len * p.group - w.first, ROWS);
    if (w.count <= 0) return;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const int last = w.first + w.count - 1;
    const Range keys = visible_keys(p, w.sequence, w.first / p.group, last / p.group, w.part);

    // Queries: row g, features 32 i + 8 c ... + 7; missing rows repeat the last one.
    Quad q[K_CHUNKS];
    {
        const int packed = min(w.first + g, last);
        const char* row = (const char*)p.q.data +
                          2 * (w.sequence.q_batch * p.q.batch_stride +
                               (i64)(w.sequence.q_start + packed / p.group) * p.q.row_stride +
                               (w.kv_head * p.group + packed % p.group) * p.q.head_stride);
#pragma unroll
        for (int i = 0; i < K_CHUNKS; ++i) q[i] = load(row + 64 * i + 16 * c);
    }
    const int query[2] = {min(w.first + 2 * c, last) / p.group, min(w.first + 2 * c + 1, last) / p.group};
    State state;
    state.most[0] = state.most[1] = -danaus::kInfinity;
    state.total[0] = state.total[1] = 0.0f;
#pragma unroll
    for (int i = 0; i < 4 * V_CHUNKS; ++i)
#pragma unroll
        for (int at = 0; at < 4; ++at) state.out[i][at] = 0.0f;

    int key = keys.start / TILE_KEYS * TILE_KEYS + warp * TILE_KEYS;
    Tile tile;
    if (key < keys.end) load_tile(tile, p, w, key, keys.end);
    while (key < keys.end) {
        Values values;
        load_values(values, p, w, key, keys.end);
        float s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < K_CHUNKS; ++i) {
            product(s, tile.k[0][i].at[0], tile.k[1][i].at[0], tile.k[0][i].at[1], tile.k[1][i].at[1],
                    q[i].at[0], q[i].at[1]);
            product(s, tile.k[0][i].at[2], tile.k[1][i].at[2], tile.k[0][i].at[3], tile.k[1][i].at[3],
                    q[i].at[2], q[i].at[3]);
        }
        const int next = key + WARPS * TILE_KEYS;
        if (next < keys.end) load_tile(tile, p, w, next, keys.end);
        soften(p, w, state, s, key, keys, query);
        add_values(state, values, transpose(pack(s[0], s[1])), transpose(pack(s[2], s[3])));
        key = next;
    }
    finish(p, w, state, out_start);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
attention_decode(const Problem p, int row_tiles, bf16* __restrict__ out_start) {
    decode(p, row_tiles, out_start);
}

// Parts, to be joined by `attention_join`.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
attention_decode_part(const Problem p, int row_tiles, float* __restrict__ out_start) {
    decode(p, row_tiles, out_start);
}
