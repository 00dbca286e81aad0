// The selective scan: channels in the lanes, their states in registers, tokens one by one. Constants:
// ELEMENT, LANES that share a channel, STATES numbers of the state that a lane keeps, MAPS 1 if B and C are
// per token and their rows aligned to 16 bytes and d_state is LANES STATES (bit 0), and whether B (bit 1)
// and C (bit 2) are constant instead.
//
// A run is a thread block's row of the grid; a block has 128 lanes of channels of one group. Tokens go by
// chunks: while one is computed the next is on its way, u and delta to registers, B and C, which all
// channels of the block read, to shared memory. Backward keeps the state before every chunk, and walks the
// chunks from the last: forward through a chunk with the states in shared memory, which only the thread
// itself reads, and then back.
#pragma once
#include "scalar.cuh"
#include "ssd/problem.cuh"
#include "ssd/step_size.cuh"

namespace danaus::selective_scan {

using namespace danaus::ssd;

typedef ELEMENT T;
typedef typename Accumulator<T>::type A;
constexpr int kLanes = LANES, kStates = STATES, kThreads = 128, kChannels = kThreads / kLanes;
constexpr int kTile = 8;  // tokens of a chunk
constexpr bool kVector = MAPS & 1, kConstantB = MAPS & 2, kConstantC = MAPS & 4;

// Row strides are in elements. B and C are rows of all groups, or by channel.
struct Arrays {
    const T *u, *delta, *z, *dy;
    const void *b, *c;
    const A *a, *d, *bias, *initial, *dlast;
    T *y, *du, *ddelta, *dz;
    A *last, *checkpoints, *dinitial;
    A *da, *db_constant, *dc_constant, *dd, *dbias;  // by run
    A *db, *dc;                                      // by token, group and warp of channels
    i64 u_row, delta_row, z_row, dy_row, b_row, c_row;
};

DEVICE float power(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE double power(double x) { return exp2(x); }

// The sum over the lanes of a channel, in each of them.
DEVICE A lanes_sum(A value) {
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// Where a thread is: blocks of kChannels channels within a group, so that a warp's channels share B and C.
struct Place {
    int channel, part, group, warp_of_group, run;
    bool valid;

    DEVICE Place(const Problem& p) {
        const int per_group = p.heads / p.groups, blocks = (per_group + kChannels - 1) / kChannels;
        const int block = blockIdx.x % (blocks * p.groups), inside = block % blocks * kChannels + threadIdx.x / kLanes;
        run = blockIdx.x / (blocks * p.groups);
        group = block / blocks;
        part = threadIdx.x % kLanes;
        valid = inside < per_group;
        channel = group * per_group + (valid ? inside : per_group - 1);
        warp_of_group = block % blocks * (kThreads / 32) + threadIdx.x / 32;
    }

    // First of this lane's numbers in a row of d_state.
    DEVICE int first() const { return part * kStates; }
};

// This lane's part of a row of n numbers.
template <class E>
DEVICE void load_part(A (&to)[kStates], const E* row, const Place& at, int n) {
    constexpr int kCount = 16 / sizeof(E);
    if constexpr (kVector && kStates % kCount == 0) {
        struct alignas(16) Pack { E values[kCount]; };
        const Pack* packs = reinterpret_cast<const Pack*>(row + at.first());
#pragma unroll
        for (int i = 0; i < kStates / kCount; ++i) {
            const Pack pack = packs[i];
#pragma unroll
            for (int k = 0; k < kCount; ++k) to[i * kCount + k] = Cast<A, E>::of(pack.values[k]);
        }
    } else {
#pragma unroll
        for (int k = 0; k < kStates; ++k) to[k] = at.first() + k < n ? Cast<A, E>::of(row[at.first() + k]) : (A)0;
    }
}

// B and C of chunks, in shared memory: two chunks where they fit.
constexpr int kRow = kLanes * kStates, kMapBytes = kTile * 2 * kRow * sizeof(T);
constexpr int kBuffers = 2 * kMapBytes <= 32768 ? 2 : 1;

struct Maps {
    T rows[kBuffers][2][kTile][kRow];

    // Sends one chunk's rows on their way to a buffer.
    DEVICE void fetch(const Arrays& from, const Problem& p, const Place& at, const Chunk& chunk, int buffer) {
        const i64 group = (i64)at.group * p.d_state;
        if constexpr (!kConstantB) fetch(rows[buffer][0], static_cast<const T*>(from.b) + chunk.start * from.b_row + group, from.b_row, chunk.rows, p.d_state);
        if constexpr (!kConstantC) fetch(rows[buffer][1], static_cast<const T*>(from.c) + chunk.start * from.c_row + group, from.c_row, chunk.rows, p.d_state);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }

    DEVICE static void fetch(T (&to)[kTile][kRow], const T* from, i64 row, int rows, int n) {
        constexpr int kCount = kVector ? 16 / sizeof(T) : 1, kPieces = kRow / kCount > 0 ? kRow / kCount : 1;
        for (int i = threadIdx.x; i < rows * kPieces; i += kThreads) {
            const int r = i / kPieces, column = i % kPieces * kCount;
            T* target = &to[r][column];
            const T* source = from + r * row + column;
            if constexpr (kVector) {
                const u32 address = static_cast<u32>(__cvta_generic_to_shared(target));
                asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(address), "l"(source) : "memory");
            } else if (column < n) {
                *target = *source;
            }
        }
    }

    DEVICE static void arrive() {
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads();
    }
};

// What a thread reads of a chunk for itself.
struct Rows {
    T u[kTile], delta[kTile];

    DEVICE void load(const Arrays& from, const Place& at, const Chunk& chunk) {
#pragma unroll
        for (int row = 0; row < kTile; ++row) {
            if (row >= chunk.rows) break;
            u[row] = from.u[(chunk.start + row) * from.u_row + at.channel];
            delta[row] = from.delta[(chunk.start + row) * from.delta_row + at.channel];
        }
    }
};

// B and C of one token, or of all.
struct Token {
    A b[kStates], c[kStates];

    DEVICE void load(const Maps& maps, int buffer, int row, const Place& at, int n) {
        if constexpr (!kConstantB) load_part(b, maps.rows[buffer][0][row], at, n);
        if constexpr (!kConstantC) load_part(c, maps.rows[buffer][1][row], at, n);
    }

    DEVICE void load_constants(const Arrays& from, const Problem& p, const Place& at) {
        const i64 row = (i64)at.channel * p.d_state;
        if constexpr (kConstantB) load_part(b, static_cast<const A*>(from.b) + row, at, p.d_state);
        if constexpr (kConstantC) load_part(c, static_cast<const A*>(from.c) + row, at, p.d_state);
    }
};

struct Channel {
    A rate[kStates];  // log2
    A skip, bias;

    DEVICE Channel(const Arrays& from, const Problem& p, const Place& at) {
        load_part(rate, from.a + (i64)at.channel * p.d_state, at, p.d_state);
#pragma unroll
        for (int k = 0; k < kStates; ++k) rate[k] *= (A)kLog2;
        skip = from.d ? from.d[at.channel] : (A)0;
        bias = from.bias ? from.bias[at.channel] : (A)0;
    }
};

DEVICE void load_state(A (&state)[kStates], const A* states, i64 index, const Problem& p, const Place& at) {
#pragma unroll
    for (int k = 0; k < kStates; ++k) state[k] = 0;
    if (states && index >= 0) load_part(state, states + (index * p.heads + at.channel) * p.d_state, at, p.d_state);
}

DEVICE void store_part(A* rows, const A (&from)[kStates], i64 index, const Problem& p, const Place& at) {
    if (!at.valid) return;
#pragma unroll
    for (int k = 0; k < kStates; ++k)
        if (at.first() + k < p.d_state) rows[(index * p.heads + at.channel) * p.d_state + at.first() + k] = from[k];
}

// Kept states: neighbours in memory are neighbours in the grid.
DEVICE i64 checkpoint(const Problem& p, i64 chunk, int k, const Place& at) {
    return ((chunk * kStates + k) * p.heads + at.channel) * kLanes + at.part;
}

// Steps through chunks with the next one on its way. `order` gives the chunk of a step.
template <class Order, class Load, class Compute>
DEVICE void each_chunk(Maps& maps, const Arrays& arrays, const Problem& p, const Place& at, int count, Order order, Load load, Compute compute) {
    if (count == 0) return;
    load(order(0));
    if constexpr (kBuffers == 2) maps.fetch(arrays, p, at, order(0), 0);
    for (int step = 0; step < count; ++step) {
        const int buffer = kBuffers == 2 ? step % 2 : 0;
        if constexpr (kBuffers == 1) {
            __syncthreads();
            maps.fetch(arrays, p, at, order(step), 0);
        }
        Maps::arrive();
        if (kBuffers == 2 && step + 1 < count) maps.fetch(arrays, p, at, order(step + 1), 1 - buffer);
        compute(step, buffer);
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
scan(const Arrays arrays, const Problem p, const StepOptions options) {
    __shared__ __align__(16) Maps maps;
    const Place at(p);
    const Run run = run_at(p, at.run);
    const Channel channel(arrays, p, at);
    A state[kStates];
    load_state(state, arrays.initial, run.initial, p, at);
    Token token;
    token.load_constants(arrays, p, at);
    Rows next;
    const int count = chunks_of(p, run.length);
    const auto order = [&](int step) { return chunk_of(p, run, run.first_chunk + step); };
    const auto load = [&](const Chunk& chunk) { next.load(arrays, at, chunk); };
    const auto compute = [&](int step, int buffer) {
        const Chunk chunk = order(step);
        const Rows now = next;
        if (step + 1 < count) load(order(step + 1));
        if (arrays.checkpoints && at.valid) {
#pragma unroll
            for (int k = 0; k < kStates; ++k) arrays.checkpoints[checkpoint(p, run.first_chunk + step, k, at)] = state[k];
        }
#pragma unroll
        for (int row = 0; row < kTile; ++row) {
            if (row >= chunk.rows) break;
            token.load(maps, buffer, row, at, p.d_state);
            const A u = Cast<A, T>::of(now.u[row]);
            const A size = step_size<A>(Cast<A, T>::of(now.delta[row]), channel.bias, options).value, factor = size * u;
            A y = 0;
#pragma unroll
            for (int k = 0; k < kStates; ++k) {
                state[k] = power(size * channel.rate[k]) * state[k] + factor * token.b[k];
                y += state[k] * token.c[k];
            }
            if (arrays.y) {
                const i64 at_row = chunk.start + row;
                y = lanes_sum(y) + channel.skip * u;
                if (arrays.z) {
                    const A gate = Cast<A, T>::of(arrays.z[at_row * arrays.z_row + at.channel]);
                    y *= gate / ((A)1 + exp(-gate));
                }
                if (at.part == 0 && at.valid) arrays.y[at_row * p.heads + at.channel] = Cast<T, A>::of(y);
            }
        }
    };
    each_chunk(maps, arrays, p, at, count, order, load, compute);
    if (arrays.last && run.last >= 0) store_part(arrays.last, state, run.last, p, at);
}

// Sums over the channels of a warp, lane by lane fewer values in more lanes, and stores the row.
template <int kCount, int kStep>
DEVICE void store_warp_sums(A (&values)[kCount], int first, A* row, int n) {
    if constexpr (kStep == 32) {
#pragma unroll
        for (int k = 0; k < kCount; ++k)
            if (first + k < n) row[first + k] = values[k];
    } else if constexpr (kCount == 1) {
        values[0] += __shfl_xor_sync(0xffffffffu, values[0], kStep);
        store_warp_sums<1, 2 * kStep>(values, first, row, n);
    } else {
        const bool upper = threadIdx.x & kStep;
        A half[kCount / 2];
#pragma unroll
        for (int k = 0; k < kCount / 2; ++k) {
            const A mine = upper ? values[kCount / 2 + k] : values[k], theirs = upper ? values[k] : values[kCount / 2 + k];
            half[k] = mine + __shfl_xor_sync(0xffffffffu, theirs, kStep);
        }
        store_warp_sums<kCount / 2, 2 * kStep>(half, upper ? first + kCount / 2 : first, row, n);
    }
}

// One run backwards for one channel's part.
struct Reverse {
    const Arrays& arrays;
    const Problem& p;
    const StepOptions& options;
    const Place at;
    const Run run;
    const Channel channel;
    A dstate[kStates], da[kStates], db[kStates], dc[kStates];
    A dskip = 0, dbias = 0;
    A* kept;  // [row][state, u, delta and dy][thread]

    DEVICE A& before(int row, int k) { return kept[(row * (kStates + 3) + k) * kThreads + threadIdx.x]; }

    // Forward through a chunk, keeping the state before each token.
    DEVICE void replay(const Chunk& chunk, A (&state)[kStates], const Maps& maps, int buffer, Token& token) {
#pragma unroll 1
        for (int row = 0; row < chunk.rows; ++row) {
            token.load(maps, buffer, row, at, p.d_state);
            const A step = step_size<A>(before(row, kStates + 1), channel.bias, options).value;
            const A factor = step * before(row, kStates);
#pragma unroll
            for (int k = 0; k < kStates; ++k) {
                before(row, k) = state[k];
                state[k] = power(step * channel.rate[k]) * state[k] + factor * token.b[k];
            }
        }
    }

    // The cotangent before the gate; writes the gate's gradient.
    DEVICE A through_gate(i64 token, A dy, A y) {
        if (!arrays.z) return dy;
        const A gate = Cast<A, T>::of(arrays.z[token * arrays.z_row + at.channel]);
        const A sigmoid = (A)1 / ((A)1 + exp(-gate));
        if (at.part == 0 && at.valid)
            arrays.dz[token * p.heads + at.channel] = Cast<T, A>::of(dy * y * sigmoid * ((A)1 + gate * ((A)1 - sigmoid)));
        return dy * gate * sigmoid;
    }

    DEVICE void back(i64 row_at, int row, const Token& token) {
        const A u = before(row, kStates);
        A dy = before(row, kStates + 2);
        const StepSize<A> step = step_size<A>(before(row, kStates + 1), channel.bias, options);
        const A factor = step.value * u;
        A decay[kStates], y = 0;
#pragma unroll
        for (int k = 0; k < kStates; ++k) {
            decay[k] = power(step.value * channel.rate[k]);
            y += (decay[k] * before(row, k) + factor * token.b[k]) * token.c[k];
        }
        if (arrays.z) dy = through_gate(row_at, dy, lanes_sum(y) + channel.skip * u);
        A through_b = 0, through_decay = 0, db_now[kStates], dc_now[kStates];
#pragma unroll
        for (int k = 0; k < kStates; ++k) {
            const A passed = decay[k] * before(row, k), state = passed + factor * token.b[k];
            dstate[k] += dy * token.c[k];
            dc_now[k] = dy * state;
            db_now[k] = at.valid ? dstate[k] * factor : (A)0;
            through_b += dstate[k] * token.b[k];
            const A rate = dstate[k] * passed;
            through_decay += rate * channel.rate[k];
            da[k] += step.value * rate;
            dstate[k] *= decay[k];
        }
        through_b = lanes_sum(through_b);
        const A dstep = (u * through_b + lanes_sum(through_decay) * (A)(1 / kLog2)) * step.slope;
        dbias += dstep;
        dskip += dy * u;
        if (at.part == 0 && at.valid) {
            arrays.du[row_at * p.heads + at.channel] = Cast<T, A>::of(step.value * through_b + channel.skip * dy);
            arrays.ddelta[row_at * p.heads + at.channel] = Cast<T, A>::of(dstep);
        }
        sum_maps(row_at, db_now, dc_now);
    }

    DEVICE void sum_maps(i64 token, A (&db_now)[kStates], A (&dc_now)[kStates]) {
        const int per_group = p.heads / p.groups, warps = (per_group + kChannels - 1) / kChannels * (kThreads / 32);
        const i64 row = ((token * p.groups + at.group) * warps + at.warp_of_group) * p.d_state;
        if constexpr (kConstantB) {
#pragma unroll
            for (int k = 0; k < kStates; ++k) db[k] += db_now[k];
        } else {
            store_warp_sums<kStates, kLanes>(db_now, at.first(), arrays.db + row, p.d_state);
        }
        if constexpr (kConstantC) {
#pragma unroll
            for (int k = 0; k < kStates; ++k) dc[k] += dc_now[k];
        } else {
            store_warp_sums<kStates, kLanes>(dc_now, at.first(), arrays.dc + row, p.d_state);
        }
    }

    DEVICE void walk(Maps& maps) {
        load_state(dstate, arrays.dlast, run.last, p, at);
#pragma unroll
        for (int k = 0; k < kStates; ++k) da[k] = db[k] = dc[k] = 0;
        Token token;
        token.load_constants(arrays, p, at);
        Rows next;
        T next_dy[kTile];
        A next_state[kStates];
        const int count = chunks_of(p, run.length);
        const auto index_of = [&](int step) { return run.first_chunk + count - 1 - step; };
        const auto order = [&](int step) { return chunk_of(p, run, index_of(step)); };
        const auto load_own = [&](int step) {
            const Chunk chunk = order(step);
            next.load(arrays, at, chunk);
#pragma unroll
            for (int row = 0; row < kTile; ++row)
                if (row < chunk.rows) next_dy[row] = arrays.dy[(chunk.start + row) * arrays.dy_row + at.channel];
#pragma unroll
            for (int k = 0; k < kStates; ++k) next_state[k] = arrays.checkpoints[checkpoint(p, index_of(step), k, at)];
        };
        const auto compute = [&](int step, int buffer) {
            const Chunk chunk = order(step);
            A state[kStates];
#pragma unroll
            for (int row = 0; row < kTile; ++row) {
                before(row, kStates) = Cast<A, T>::of(next.u[row]);
                before(row, kStates + 1) = Cast<A, T>::of(next.delta[row]);
                before(row, kStates + 2) = at.valid ? Cast<A, T>::of(next_dy[row]) : (A)0;
            }
#pragma unroll
            for (int k = 0; k < kStates; ++k) state[k] = next_state[k];
            if (step + 1 < count) load_own(step + 1);
            replay(chunk, state, maps, buffer, token);
#pragma unroll 1
            for (int row = chunk.rows - 1; row >= 0; --row) {
                token.load(maps, buffer, row, at, p.d_state);
                back(chunk.start + row, row, token);
            }
        };
        each_chunk(maps, arrays, p, at, count, order, [&](const Chunk&) { load_own(0); }, compute);
        if (arrays.dinitial && run.initial >= 0) store_part(arrays.dinitial, dstate, run.initial, p, at);
        store_part(arrays.da, da, at.run, p, at);
        if constexpr (kConstantB) store_part(arrays.db_constant, db, at.run, p, at);
        if constexpr (kConstantC) store_part(arrays.dc_constant, dc, at.run, p, at);
        if (at.part == 0 && at.valid) {
            arrays.dd[(i64)at.run * p.heads + at.channel] = dskip;
            arrays.dbias[(i64)at.run * p.heads + at.channel] = dbias;
        }
    }
};

extern "C" __global__ void __launch_bounds__(kThreads, 1)
scan_backward(const Arrays arrays, const Problem p, const StepOptions options) {
    __shared__ __align__(16) Maps maps;
    extern __shared__ __align__(16) u8 shared[];
    const Place at(p);
    Reverse work{arrays, p, options, at, run_at(p, at.run), Channel(arrays, p, at)};
    work.kept = reinterpret_cast<A*>(shared);
    work.walk(maps);
}

// out[row, k] = the sum over `parts` neighbouring rows of n numbers.
extern "C" __global__ void __launch_bounds__(256)
sum_rows(const A* __restrict__ from, T* __restrict__ to, const i64 count, const i64 n, const i64 parts) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= count) return;
    const A* first = from + at / n * parts * n + at % n;
    A sum = 0;
    for (i64 part = 0; part < parts; ++part) sum += first[part * n];
    to[at] = Cast<T, A>::of(sum);
}

}  // namespace danaus::selective_scan
