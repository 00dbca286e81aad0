// Tiles of TILE packed rows by TILE keys in shared memory, sums in A: what the plain kernels share.
// Constants: ELEMENT; DIM, the widest head (64, 128, 256); TILE (16, 32, 64). 256 threads, 16 x 16, each
// with (TILE / 16)^2 scores. Packed row r of a key head is query r / group of its head r % group.
//
// Nothing depends on timing: a block sums its keys (or rows) in order, and no two blocks add to one
// place. A row's result depends on its own keys alone: tiles lie at absolute positions, and a tile
// that shows a row nothing leaves its bits as they are.
#pragma once
#include "attention/plain_problem.cuh"

constexpr int SIDE = 16;
constexpr int EACH = TILE / SIDE;
constexpr int WIDTH = DIM + 1;  // odd: columns of a tile lie in different banks
constexpr int CELLS = TILE + 1;
constexpr int PIECES = DIM / SIDE;

// The tile that a block works on.
struct Place {
    Sequence sequence;
    int tile, kv_head, batch, part;
};

DEVICE Place place(const Problem& p, int tiles) {
    Place at;
    int index = blockIdx.x;
    at.tile = index % tiles;
    index /= tiles;
    at.kv_head = index % p.kv_heads;
    index /= p.kv_heads;
    at.batch = index % p.batch;
    at.part = index / p.batch;
    at.sequence = p.sequences[at.batch];
    return at;
}

// Rows `first..first + TILE` of an operand into a tile; what is not there is 0. `packed` rows are
// (query, head of the group), others keys.
template <class From>
DEVICE void load_rows(A* to, const Problem& p, const Place& at, const Rows& rows, int first, int count,
                      int width, int start) {
    for (int i = threadIdx.x / SIDE; i < TILE; i += SIDE) {
        const int row = first + i;
        const From* from = 0;
        if (row < count) {
            const int head = at.kv_head * p.group + row % p.group;
            from = (const From*)rows.data + at.sequence.q_batch * rows.batch_stride +
                   (i64)(start + row / p.group) * rows.row_stride + head * rows.head_stride;
        }
        for (int c = threadIdx.x % SIDE; c < DIM; c += SIDE)
            to[i * WIDTH + c] = from && c < width ? Cast<A, From>::of(from[c]) : (A)0;
    }
}

DEVICE void load_keys(A* to, const Problem& p, const Place& at, const Rows& rows, int first, int width) {
    for (int i = threadIdx.x / SIDE; i < TILE; i += SIDE) {
        const int key = first + i;
        const void* row = key < at.sequence.k_len
                              ? key_row(p, at.sequence, at.batch, rows, key, at.kv_head, sizeof(T))
                              : 0;
        const T* from = (const T*)row;
        for (int c = threadIdx.x % SIDE; c < DIM; c += SIDE)
            to[i * WIDTH + c] = from && c < width ? Cast<A, T>::of(from[c]) : (A)0;
    }
}

// x[i][j] = row (EACH ty + i) of a times row (tx + 16 j) of b.
DEVICE void products(A (&x)[EACH][EACH], const A* a, const A* b, int width) {
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < EACH; ++i)
#pragma unroll
        for (int j = 0; j < EACH; ++j) x[i][j] = 0;
    for (int c = 0; c < width; ++c) {
        A u[EACH], w[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i) u[i] = a[(ty * EACH + i) * WIDTH + c];
#pragma unroll
        for (int j = 0; j < EACH; ++j) w[j] = b[(tx + SIDE * j) * WIDTH + c];
#pragma unroll
        for (int i = 0; i < EACH; ++i)
#pragma unroll
            for (int j = 0; j < EACH; ++j) x[i][j] += u[i] * w[j];
    }
}

// sum[i][c] += over t of weight(t, EACH ty + i) times column (tx + 16 c) of row t; `by_row` weights lie
// as (own row, t), others as (t, own row).
template <bool BY_ROW>
DEVICE void accumulate(A (&sum)[EACH][PIECES], const A* weights, const A* rows) {
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    for (int t = 0; t < TILE; ++t) {
        A w[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            w[i] = BY_ROW ? weights[(ty * EACH + i) * CELLS + t] : weights[t * CELLS + ty * EACH + i];
#pragma unroll
        for (int c = 0; c < PIECES; ++c) {
            const A x = rows[t * WIDTH + tx + SIDE * c];
#pragma unroll
            for (int i = 0; i < EACH; ++i) sum[i][c] += w[i] * x;
        }
    }
}

// Whether a block mask keeps anything of the tile, asked by all threads.
DEVICE bool tile_is_kept(const Problem& p, const Place& at, int first_row, int rows, int first_key) {
    if (!p.block_mask) return true;
    bool any = false;
    const int end = min(first_key + TILE, at.sequence.k_len);
    for (int i = threadIdx.x; i < TILE && first_row + i < rows; i += blockDim.x) {
        const int row = first_row + i, query = row / p.group;
        const int head = at.kv_head * p.group + row % p.group;
        for (int key = first_key; key < end; key += p.block_size - key % p.block_size)
            any |= block_is_kept(p, at.batch, head, query, key);
    }
    return __syncthreads_or(any);
}
