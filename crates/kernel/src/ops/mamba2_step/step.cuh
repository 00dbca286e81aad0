// The decoding step of a Mamba-2 layer: convolution, step sizes, state update, skip and gate, in one pass
// over the states; the module's documentation has the contract.
//
// A block is a row of the call, a head and a slice of the head's rows: it asks for its part of the state,
// convolves what it needs of x, B and C while that is on its way, and walks the tokens with the state in
// registers. B and C are convolved by every head that reads them: a few hundred numbers beside the state's
// thousands. Rings are read and written at different places, so blocks of a row need not wait for one
// another; the last one to arrive moves the slot's cursor on.
//
// Constants: ELEMENT; TAPS; LANE_STATES numbers of a lane and row; VECTOR 1 if d_state
// is 32 LANE_STATES and states are aligned to a lane's part; BULK 1 to move states with Hopper's copy
// engine, which needs VECTOR; BLOCKS of a multiprocessor at least.
#pragma once
#include "scalar.cuh"
#include "fault.cuh"
#if BULK
#include "device/tma.cuh"
#endif
#include "ssd/step_size.cuh"

namespace danaus::mamba2 {

typedef ELEMENT T;
typedef typename Accumulator<T>::type A;
constexpr int kTaps = TAPS, kHistory = kTaps - 1, kStates = LANE_STATES;
constexpr int kRows = 8, kWarps = 8, kThreads = 32 * kWarps, kBlockRows = kWarps * kRows;

// Row strides are in elements.
struct Arrays {
    const T *z, *xbc, *dt;
    const A *weight, *conv_bias, *dt_bias, *a_log, *d;
    const int *slots, *to_slots, *accepted;
    T *rings, *steps;
    A* states;
    i64* cursors;
    T* y;
    Fault* fault;
    i64 z_row, xbc_row, dt_row;
};

struct Sizes {
    int batch, seqlen, heads, groups, head_dim, d_state, places, slots;
    int most;       // tokens that may be replayed
    int per_head;   // D has one number a head
    int commit;
    u32 slot_check, accepted_check, cursor_check;
};

DEVICE u32 shared_address(const void* at) { return static_cast<u32>(__cvta_generic_to_shared(at)); }

template <class E, int kCount>
struct alignas(sizeof(E) * kCount) Pack {
    E values[kCount];
};

// A lane's part of a row of d_state numbers.
DEVICE void load_part(A (&to)[kStates], const A* row, int lane, int n) {
    if constexpr (VECTOR && sizeof(A) * kStates <= 16) {
        const Pack<A, kStates> pack = reinterpret_cast<const Pack<A, kStates>*>(row)[lane];
#pragma unroll
        for (int k = 0; k < kStates; ++k) to[k] = pack.values[k];
    } else {
#pragma unroll
        for (int k = 0; k < kStates; ++k) to[k] = lane * kStates + k < n ? row[lane * kStates + k] : (A)0;
    }
}

DEVICE void store_part(A* row, const A (&from)[kStates], int lane, int n) {
    if constexpr (VECTOR && sizeof(A) * kStates <= 16) {
        Pack<A, kStates> pack;
#pragma unroll
        for (int k = 0; k < kStates; ++k) pack.values[k] = from[k];
        reinterpret_cast<Pack<A, kStates>*>(row)[lane] = pack;
    } else {
#pragma unroll
        for (int k = 0; k < kStates; ++k)
            if (lane * kStates + k < n) row[lane * kStates + k] = from[k];
    }
}

// For 16-bit results the special-function unit is exact enough: relative error 2^-20.
DEVICE A silu(A value) {
    if constexpr (sizeof(T) == 2) return __fdividef(value, 1.f + __expf(-value));
    else return value / ((A)1 + exp(-value));
}

// Rows of four f32 taps are aligned, in any tensor that starts at 16 bytes.
DEVICE void load_taps(A (&taps)[kTaps], const A* row) {
    if constexpr (kTaps == 4 && sizeof(A) == 4) {
        if ((reinterpret_cast<u64>(row) & 15) == 0) {
            const float4 four = *reinterpret_cast<const float4*>(row);
            taps[0] = four.x, taps[1] = four.y, taps[2] = four.z, taps[3] = four.w;
            return;
        }
    }
#pragma unroll
    for (int w = 0; w < kTaps; ++w) taps[w] = row[w];
}

// What a block works on.
struct Task {
    int row, head, slice, from, to, replay;
    int rows;    // of the head, in this block
    int width;   // channels that the block needs: B, C, its rows of x
    int stride;  // a token's place for them in shared memory, whole vectors
    int cursor;  // place of the first token

    DEVICE Task(const Sizes& s) {
        const int slices = (s.head_dim + kBlockRows - 1) / kBlockRows;
        slice = blockIdx.x % slices;
        head = blockIdx.x / slices % s.heads;
        row = blockIdx.x / slices / s.heads;
        rows = s.head_dim - slice * kBlockRows < kBlockRows ? s.head_dim - slice * kBlockRows : kBlockRows;
        width = rows + 2 * s.d_state;
        stride = (width + 3) & ~3;
    }

    // Whether the row is computed; the same for all blocks of a row.
    DEVICE bool set(const Arrays& a, const Sizes& s) {
        from = a.slots[row];
        to = a.to_slots ? a.to_slots[row] : from;
        replay = a.accepted ? a.accepted[row] : 0;
        if (from == -1) return false;
        if (!fault_index(a.fault, s.slot_check, from, s.slots) || !fault_index(a.fault, s.slot_check, to, s.slots)) return false;
        return fault_index(a.fault, s.accepted_check, replay, s.most + 1);
    }

    // A channel of the convolution, and whether this block leaves its inputs in the ring.
    DEVICE int channel(int local, const Sizes& s, bool& owner) const {
        const int group = head / (s.heads / s.groups), values = s.heads * s.head_dim, keys = 2 * s.d_state;
        owner = local >= keys || (slice == 0 && head % (s.heads / s.groups) == 0);
        if (local >= keys) return head * s.head_dim + slice * kBlockRows + local - keys;
        return local < s.d_state ? values + group * s.d_state + local : values + (s.groups + group - 1) * s.d_state + local;
    }

    // The place `offset` tokens behind the first one, or before it.
    DEVICE int place(int offset, int places) const {
        const int at = cursor + offset;
        return at < 0 ? at + places : at < places ? at : at - places;
    }
};

// The block's share of the convolution, a thread's channels in registers. Whatever does not depend on the
// slot is asked for first, then all old inputs, so that a step waits for memory three times: slot, cursor,
// ring.
struct Convolution {
    static constexpr int kPer = (kBlockRows + 64 * kStates + kThreads - 1) / kThreads;
    A taps[kPer][kTaps], bias[kPer];
    T next[kPer], old[kPer][kHistory > 0 ? kHistory : 1];
    int channel[kPer];
    bool owner[kPer], used[kPer];

    DEVICE void load_parameters(const Task& task, const Arrays& a, const Sizes& s) {
#pragma unroll
        for (int i = 0; i < kPer; ++i) {
            const int local = threadIdx.x + i * kThreads;
            used[i] = local < task.width;
            if (!used[i]) continue;
            channel[i] = task.channel(local, s, owner[i]);
            load_taps(taps[i], a.weight + (i64)channel[i] * kTaps);
            bias[i] = a.conv_bias ? a.conv_bias[channel[i]] : (A)0;
            if (s.seqlen > 0) next[i] = added(i, 0, task, a, s);
        }
    }

    DEVICE T added(int i, int token, const Task& task, const Arrays& a, const Sizes& s) const {
        return a.xbc[((i64)task.row * s.seqlen + token) * a.xbc_row + channel[i]];
    }

    DEVICE i64 channels(const Sizes& s) const { return s.heads * s.head_dim + 2 * s.groups * s.d_state; }

    DEVICE T& at(int i, int slot, int place, const Arrays& a, const Sizes& s) const {
        return a.rings[((i64)slot * s.places + place) * channels(s) + channel[i]];
    }

    DEVICE void load_inputs(const Task& task, const Arrays& a, const Sizes& s) {
#pragma unroll
        for (int i = 0; i < kPer; ++i) {
            if (!used[i]) continue;
#pragma unroll
            for (int w = 0; w < kHistory; ++w) old[i][w] = at(i, task.from, task.place(w - kHistory, s.places), a, s);
            if (task.replay > 0) next[i] = at(i, task.from, task.cursor, a, s);
        }
    }

    // `mixed` [tokens, stride] of all tokens; leaves new inputs, and in another slot the last old ones.
    DEVICE void run(const Task& task, const Arrays& a, const Sizes& s, A* mixed) {
        const int total = task.replay + s.seqlen;
        const bool moved = task.to != task.from;
#pragma unroll
        for (int i = 0; i < kPer; ++i) {
            if (!used[i]) continue;
            A window[kTaps];
#pragma unroll
            for (int w = 0; w < kHistory; ++w) {
                if (owner[i] && moved && w >= task.replay) at(i, task.to, task.place(w - kHistory, s.places), a, s) = old[i][w];
                window[w + 1] = Cast<A, T>::of(old[i][w]);
            }
            for (int t = 0; t < total; ++t) {
                const T input = next[i];
                const int place = task.place(t, s.places);
                if (t + 1 < task.replay) next[i] = at(i, task.from, task.place(t + 1, s.places), a, s);
                else if (t + 1 < total) next[i] = added(i, t + 1 - task.replay, task, a, s);
                if (owner[i] && (t >= task.replay || (moved && t >= task.replay - kHistory))) at(i, task.to, place, a, s) = input;
                A sum = bias[i];
#pragma unroll
                for (int w = 0; w < kHistory; ++w) window[w] = window[w + 1];
                window[kHistory] = Cast<A, T>::of(input);
#pragma unroll
                for (int w = 0; w < kTaps; ++w) sum = fma(taps[i][w], window[w], sum);
                mixed[t * task.stride + threadIdx.x + i * kThreads] = Cast<A, T>::of(Cast<T, A>::of(silu(sum)));
            }
        }
    }
};

// Decay and scale of every token by one warp, and new step sizes into the ring.
DEVICE void step_sizes(const Task& task, const Arrays& a, const Sizes& s, const ssd::StepOptions& options, A* steps) {
    const A bias = a.dt_bias ? a.dt_bias[task.head] : (A)0, log = a.a_log[task.head];
    for (int t = threadIdx.x % 32; t < task.replay + s.seqlen; t += 32) {
        const bool fresh = t >= task.replay;
        const i64 place = task.place(t, s.places), ring = (i64)s.places * s.heads;
        const T dt = fresh ? a.dt[((i64)task.row * s.seqlen + t - task.replay) * a.dt_row + task.head] : a.steps[task.from * ring + place * s.heads + task.head];
        if (fresh && !s.commit && task.slice == 0) a.steps[task.to * ring + place * s.heads + task.head] = dt;
        const A scale = ssd::step_size<A>(Cast<A, T>::of(dt), bias, options).value;
        steps[2 * t] = exp(-exp(log) * scale);
        steps[2 * t + 1] = scale;
    }
}

// A block's part of a state between memory and registers. On chips that have it, the copy engine brings it
// to shared memory and back: nothing is held in registers while the convolution runs, and more blocks fit.
struct StateRows {
    A* shared;
    int bytes;

#if BULK
    DEVICE Barrier barrier() const { return Barrier{shared_address(shared) + kBlockRows * 32 * kStates * (u32)sizeof(A)}; }
#endif

    DEVICE void ask(const A* from) const {
#if BULK
        if (threadIdx.x == 0) {
            barrier().init(1);
            fence_barrier_init();
            barrier().arrive_expect(bytes);
            load_run(shared_address(shared), from, bytes, barrier());
        }
#endif
    }

    DEVICE void load(A (&state)[kRows][kStates], const A* from, int own, int rows, int n) const {
#if BULK
        from = shared;
#endif
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int k = 0; k < kStates; ++k) state[r][k] = 0;
            if (own + r < rows) load_part(state[r], from + (i64)(own + r) * n, threadIdx.x % 32, n);
        }
    }

    DEVICE void store(A* to, const A (&state)[kRows][kStates], int own, int rows, int n) const {
        A* target = to;
#if BULK
        target = shared;
#endif
#pragma unroll
        for (int r = 0; r < kRows; ++r)
            if (own + r < rows) store_part(target + (i64)(own + r) * n, state[r], threadIdx.x % 32, n);
#if BULK
        fence_shared_for_async();
        __syncwarp();
        if (threadIdx.x % 32 == 0 && own < rows) {
            const int count = rows - own < kRows ? rows - own : kRows;
            store_run(to + (i64)own * n, shared_address(shared + (i64)own * n), count * n * (int)sizeof(A));
            commit_stores();
        }
#endif
    }
};

// Sums of kRows values over a warp; lane r (of the first kRows) gets the r-th. Halves the values at each
// exchange, then folds what is left.
DEVICE A sum_rows(A (&values)[kRows], int lane) {
    int held = kRows;
#pragma unroll
    for (int step = 1; step < kRows; step *= 2) {
        held /= 2;
#pragma unroll
        for (int r = 0; r < held; ++r) {
            const bool odd = lane & step;
            const A mine = odd ? values[2 * r + 1] : values[2 * r], other = odd ? values[2 * r] : values[2 * r + 1];
            values[r] = mine + __shfl_xor_sync(0xffffffffu, other, step);
        }
    }
    A sum = values[0];
#pragma unroll
    for (int step = kRows; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    return sum;
}

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
mamba2_step(const Arrays a, const Sizes s, const ssd::StepOptions options) {
    extern __shared__ __align__(128) unsigned char shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = s.d_state;
    const i64 values = (i64)s.heads * s.head_dim;
    Task task(s);
    const i64 first = (i64)task.head * s.head_dim + task.slice * kBlockRows;
    Convolution convolution;
    convolution.load_parameters(task, a, s);
    if (!task.set(a, s)) {
        for (int at = threadIdx.x; at < s.seqlen * task.rows; at += kThreads)
            a.y[((i64)task.row * s.seqlen + at / task.rows) * values + first + at % task.rows] = Cast<T, A>::of(0);
        return;
    }
    const int own = warp * kRows;  // first row in the block
    const A* from = a.states + (task.from * values + first) * n;
    A* to = a.states + (task.to * values + first) * n;
    const StateRows rows{reinterpret_cast<A*>(shared), task.rows * n * (int)sizeof(A)};
    rows.ask(from);
    A state[kRows][kStates];
    if constexpr (!BULK) rows.load(state, from, own, task.rows, n);
    const i64 cursor = a.cursors[2 * (i64)task.from];
    task.cursor = fault_index(a.fault, s.cursor_check, cursor, s.places) ? (int)cursor : 0;
    convolution.load_inputs(task, a, s);
    const int total = task.replay + s.seqlen, kept = s.commit ? total : task.replay;
    A* mixed = reinterpret_cast<A*>(shared + (BULK ? kBlockRows * 32 * kStates * sizeof(A) + 16 : 0));
    A* steps = mixed + ((a.accepted ? s.most : 0) + s.seqlen) * task.stride;
    if (warp == kWarps - 1) step_sizes(task, a, s, options, steps);
    convolution.run(task, a, s, mixed);
    __syncthreads();
#if BULK
    rows.barrier().wait(0);
    rows.load(state, from, own, task.rows, n);
#endif
    for (int t = 0; t <= total; ++t) {
        if (t == kept && (kept > 0 || task.to != task.from)) rows.store(to, state, own, task.rows, n);
        if (t == total) break;
        const A *b = mixed + t * task.stride, *c = b + n, *x = c + n;
        const A decay = steps[2 * t], scale = steps[2 * t + 1];
        A key[kStates], query[kStates], sums[kRows];
        load_part(key, b, lane, n);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            // Rows behind the head's last one compute with whatever lies there, and are not stored.
            const A factor = scale * x[own + r];
#pragma unroll
            for (int k = 0; k < kStates; ++k) state[r][k] = fma(decay, state[r][k], factor * key[k]);
        }
        if (t < task.replay) continue;
        load_part(query, c, lane, n);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            sums[r] = 0;
#pragma unroll
            for (int k = 0; k < kStates; ++k) sums[r] = fma(state[r][k], query[k], sums[r]);
        }
        A out = sum_rows(sums, lane);
        if (lane < kRows && own + lane < task.rows) {
            const i64 token = (i64)task.row * s.seqlen + t - task.replay, column = first + own + lane;
            if (a.d) out = fma(a.d[s.per_head ? task.head : column], x[own + lane], out);
            if (a.z) {
                const A gate = Cast<A, T>::of(a.z[token * a.z_row + column]);
                out *= gate / ((A)1 + exp(-gate));
            }
            a.y[token * values + column] = Cast<T, A>::of(out);
        }
    }
    // All threads have read the cursor: it is behind them that a block arrives.
    if (threadIdx.x == 0) {
        const u32 blocks = s.heads * ((s.head_dim + kBlockRows - 1) / kBlockRows);
        i64* cursor = a.cursors + 2 * (i64)task.to;
        __threadfence();
        if (atomicInc(reinterpret_cast<u32*>(cursor + 1), blocks - 1) == blocks - 1) cursor[0] = (task.cursor + kept) % s.places;
    }
#if BULK
    // The block's memory is read until then.
    if (lane == 0) wait_stores_read<0>();
#endif
}

// A row of the pool, piece by piece: slots are overwritten in place.
extern "C" __global__ void __launch_bounds__(256)
copy_row(const u16* __restrict__ from, u16* __restrict__ to, const i64 count) {
    for (i64 at = (i64)blockIdx.x * 256 + threadIdx.x; at < count; at += (i64)gridDim.x * 256) to[at] = from[at];
}

// The last inputs of a slot, oldest first, [channels, history].
extern "C" __global__ void __launch_bounds__(256)
read_ring(const T* __restrict__ rings, const i64* __restrict__ cursors, A* __restrict__ to, const i64 slot, const int places, const int channels, const int history) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= (i64)channels * history) return;
    const i64 place = at % history, channel = at / history;
    const i64 from = (cursors[2 * slot] + place - history + places) % places;
    to[at] = Cast<A, T>::of(rings[(slot * places + from) * channels + channel]);
}

}  // namespace danaus::mamba2
