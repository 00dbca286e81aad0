// The backward pass over chunks for every shape and type, and the small kernels that join parts. Constant:
// ELEMENT, the type of x. Symbols are those of gradient.cuh.
#pragma once
#include "scalar.cuh"
#include "block.cuh"
#include "ssd/problem.cuh"

namespace danaus::ssd {

typedef ELEMENT T;
typedef typename Accumulator<T>::type A;

constexpr int kMostRows = 32;

// One walk over the chunks of a head's run, a thread a number of the state, as sweep.cuh. Writes the state
// before every chunk (behind it, when reversed).
extern "C" __global__ void __launch_bounds__(256)
walk_states(const T* __restrict__ v, const i64 v_row, const T* __restrict__ k, const i64 k_row,
            const A* __restrict__ steps, const A* __restrict__ first, A* __restrict__ states,
            A* __restrict__ last, const Problem p, const int reverse) {
    __shared__ A weights[kMostRows];
    const int size = p.head_dim * p.d_state, blocks = (size + 255) / 256;
    const int element = (int)(blockIdx.x % blocks) * 256 + threadIdx.x;
    const int head = (int)(blockIdx.x / blocks % p.heads);
    const Run run = run_at(p, (int)(blockIdx.x / blocks / p.heads));
    const bool inside = element < size;
    const i64 from = reverse ? run.last : run.initial, to = reverse ? run.initial : run.last;
    A state = inside && first && from >= 0 ? first[(from * p.heads + head) * size + element] : (A)0;
    const T* values = v + (i64)head * p.head_dim + (inside ? element / p.d_state : 0);
    const T* keys = k + (i64)group_of(p, head) * p.d_state + element % p.d_state;
    const int count = chunks_of(p, run.length);
    for (int step = 0; step < count; ++step) {
        const i64 index = run.first_chunk + (reverse ? count - 1 - step : step);
        const Chunk chunk = chunk_of(p, run, index);
        const A* sums = steps + steps_at(p, head, (int)index);
        __syncthreads();
        if (threadIdx.x < p.chunk) weights[threadIdx.x] = reverse ? exp2(sums[threadIdx.x]) : sums[2 * p.chunk + threadIdx.x];
        __syncthreads();
        if (inside) states[(index * p.heads + head) * size + element] = state;
        state *= exp2(sums[p.chunk - 1]);
        for (int row = 0; row < chunk.rows && inside; ++row) {
            const i64 token = chunk.start + row;
            state += weights[row] * Cast<A, T>::of(values[token * v_row]) * Cast<A, T>::of(keys[token * k_row]);
        }
    }
    if (inside && last && to >= 0) last[(to * p.heads + head) * size + element] = state;
}

// Row strides are in elements; dy, dx are rows of all heads.
struct Arrays {
    const T *x, *b, *c, *dy;
    const A *d, *steps, *states, *dstates;
    T* dx;
    A *dsteps, *db, *dc;  // db, dc: by token and head
    A* dd;                // by chunk and head; null without d
    i64 x_row, b_row, c_row, dy_row;
};

template <class First, class Second>
DEVICE A dot(First first, Second second, int count) {
    A sum = 0;
    for (int i = 0; i < count; ++i) sum += first(i) * second(i);
    return sum;
}

// Gradients of one chunk and head. Warps take rows, lanes columns.
struct ChunkGradient {
    const Arrays& from;
    const Problem& p;
    Chunk chunk;
    int head, index, lane, warp;
    i64 group;
    const A *sums, *scales, *leaves, *state, *dstate;
    A *inner, *cb;                // exp2(sum_i - sum_j) scale_j dy_i.x_j and C_i.B_j
    A *rows, *columns;  // a number a token

    DEVICE A x(int i, int c) const { return Cast<A, T>::of(from.x[(chunk.start + i) * from.x_row + (i64)head * p.head_dim + c]); }
    DEVICE A dy(int i, int c) const { return Cast<A, T>::of(from.dy[(chunk.start + i) * from.dy_row + (i64)head * p.head_dim + c]); }
    DEVICE A b(int i, int c) const { return Cast<A, T>::of(from.b[(chunk.start + i) * from.b_row + group + c]); }
    DEVICE A c(int i, int k) const { return Cast<A, T>::of(from.c[(chunk.start + i) * from.c_row + group + k]); }

    DEVICE void products() {
        for (int at = threadIdx.x; at < chunk.rows * chunk.rows; at += 256) {
            const int i = at / chunk.rows, j = at % chunk.rows;
            if (j > i) continue;
            const A gx = dot([&](int k) { return dy(i, k); }, [&](int k) { return x(j, k); }, p.head_dim);
            inner[i * kMostRows + j] = exp2(sums[i] - sums[j]) * scales[j] * gx;
            cb[i * kMostRows + j] = dot([&](int k) { return c(i, k); }, [&](int k) { return b(j, k); }, p.d_state);
        }
    }

    // dC_i and what the state entering the chunk gives row i.
    DEVICE void queries() {
        for (int i = warp; i < chunk.rows; i += 8) {
            const A factor = exp2(sums[i]);
            A sum = 0;
            for (int k = lane; k < p.d_state; k += 32) {
                const A far = factor * dot([&](int q) { return dy(i, q); }, [&](int q) { return state[(i64)q * p.d_state + k]; }, p.head_dim);
                const A near = dot([&](int j) { return inner[i * kMostRows + j]; }, [&](int j) { return b(j, k); }, i + 1);
                from.dc[((chunk.start + i) * p.heads + head) * p.d_state + k] = far + near;
                sum += far * c(i, k);
            }
            sum = warp_fold<Plus>(sum);
            if (lane == 0) rows[i] = sum;
        }
    }

    // dB_j and what row j gives the state leaving the chunk.
    DEVICE void keys() {
        for (int j = warp; j < chunk.rows; j += 8) {
            A sum = 0;
            for (int k = lane; k < p.d_state; k += 32) {
                const A far = leaves[j] * dot([&](int q) { return x(j, q); }, [&](int q) { return dstate[(i64)q * p.d_state + k]; }, p.head_dim);
                const A near = dot([&](int i) { return inner[(j + i) * kMostRows + j]; }, [&](int i) { return c(j + i, k); }, chunk.rows - j);
                from.db[((chunk.start + j) * p.heads + head) * p.d_state + k] = far + near;
                sum += far * b(j, k);
            }
            sum = warp_fold<Plus>(sum);
            if (lane == 0) columns[j] = sum;
        }
    }

    // dx_j and the scale's gradient.
    DEVICE void values(A* dscale) {
        const A total = sums[p.chunk - 1];
        for (int j = warp; j < chunk.rows; j += 8) {
            A sum = 0;
            for (int q = lane; q < p.head_dim; q += 32) {
                const A far = exp2(total - sums[j]) * dot([&](int k) { return dstate[(i64)q * p.d_state + k]; }, [&](int k) { return b(j, k); }, p.d_state);
                const A near = dot([&](int i) { return exp2(sums[j + i] - sums[j]) * cb[(j + i) * kMostRows + j]; }, [&](int i) { return dy(j + i, q); }, chunk.rows - j);
                const A du = far + near, value = x(j, q);
                sum += value * du;
                const i64 column = (i64)head * p.head_dim + q;
                const A skip = from.d ? from.d[column] * dy(j, q) : (A)0;
                from.dx[(chunk.start + j) * p.heads * p.head_dim + column] = Cast<T, A>::of(scales[j] * du + skip);
            }
            sum = warp_fold<Plus>(sum);
            if (lane == 0) dscale[j] = sum;
        }
    }

    DEVICE void skip() {
        for (int q = threadIdx.x; q < p.head_dim; q += 256)
            from.dd[((i64)index * p.heads + head) * p.head_dim + q] = dot([&](int i) { return dy(i, q); }, [&](int i) { return x(i, q); }, chunk.rows);
    }

    // The decay's gradient: pairs across token k, later rows' share of the entering state, earlier rows'
    // share of the leaving one, and the state that passes through.
    DEVICE void decays(A* ddecay, A pass) {
        const int k = threadIdx.x;
        if (k >= chunk.rows) return;
        A sum = pass;
        for (int i = k; i < chunk.rows; ++i) {
            sum += rows[i];
            for (int j = 0; j < k; ++j) sum += inner[i * kMostRows + j] * cb[i * kMostRows + j];
        }
        for (int j = 0; j < k; ++j) sum += columns[j];
        ddecay[k] = sum;
        ddecay[p.chunk + k] = 0;
    }
};

extern "C" __global__ void __launch_bounds__(256, 1)
chunk_gradient(const Arrays from, const Problem p) {
    __shared__ A inner[kMostRows * kMostRows], cb[kMostRows * kMostRows];
    __shared__ A rows[kMostRows], columns[kMostRows], scratch[32];
    const int index = (int)(blockIdx.x / p.heads), head = (int)(blockIdx.x % p.heads);
    const i64 size = (i64)p.head_dim * p.d_state, at = ((i64)index * p.heads + head) * size;
    const A* steps = from.steps + steps_at(p, head, index);
    ChunkGradient work{from, p, chunk_at(p, index), head, index, (int)threadIdx.x % 32, (int)threadIdx.x / 32,
                       (i64)group_of(p, head) * p.d_state, steps, steps + p.chunk, steps + 2 * p.chunk,
                       from.states + at, from.dstates + at, inner, cb, rows, columns};
    A* dsteps = from.dsteps + steps_at(p, head, index);
    work.products();
    A pass = 0;
    for (i64 element = threadIdx.x; element < size; element += 256) pass += work.state[element] * work.dstate[element];
    pass = block_fold<Plus>(pass, (A)0, scratch) * exp2(steps[p.chunk - 1]);
    __syncthreads();
    work.queries();
    work.keys();
    work.values(dsteps + 2 * p.chunk);
    if (from.dd) work.skip();
    __syncthreads();
    work.decays(dsteps, pass);
}

// out[token, group] = the sum over `parts` neighbours, or over `parts` slices at a distance.
extern "C" __global__ void __launch_bounds__(256)
sum_parts(const A* __restrict__ from, T* __restrict__ to, const i64 count, const i64 inner_size,
          const i64 parts, const i64 part_step, const i64 outer_step) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= count) return;
    const A* first = from + at / inner_size * outer_step + at % inner_size;
    A sum = 0;
    for (i64 part = 0; part < parts; ++part) sum += first[part * part_step];
    to[at] = Cast<T, A>::of(sum);
}

// Turns what segments add to a state, and their decays, into the states that they enter with.
extern "C" __global__ void __launch_bounds__(256)
join_segments(float* __restrict__ states, const float* __restrict__ decays, const float* __restrict__ first,
              const Problem p, const int segments, const int reverse) {
    const int size = p.head_dim * p.d_state, blocks = (size + 255) / 256;
    const int element = (int)(blockIdx.x % blocks) * 256 + threadIdx.x;
    const int head = (int)(blockIdx.x / blocks % p.heads), index = (int)(blockIdx.x / blocks / p.heads);
    if (element >= size) return;
    const Run run = run_at(p, index);
    const i64 from = reverse ? run.last : run.initial;
    float state = first && from >= 0 ? first[(from * p.heads + head) * size + element] : 0.f;
    for (int step = 0; step < segments; ++step) {
        const i64 segment = reverse ? segments - 1 - step : step;
        const i64 place = ((i64)index * segments + segment) * p.heads + head;
        const float added = states[place * size + element];
        states[place * size + element] = state;
        state = exp2f(decays[place]) * state + added;
    }
}

}  // namespace danaus::ssd
