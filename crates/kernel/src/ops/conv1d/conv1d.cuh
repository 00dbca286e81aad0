// Causal depthwise convolution over time, channel-last. Constants: ELEMENT, TAPS, WITH_SILU 1 for the
// activation. Runs of tokens are sequences that never mix; each may start from a state of TAPS - 1
// inputs and leave one.
#pragma once
#include "scalar.cuh"

typedef ELEMENT T;
constexpr int W = TAPS, kHistory = W > 1 ? W - 1 : 1;
typedef typename Accumulator<T>::type A;

struct Run {
    i64 start, length;
    i64 initial, last;  // states it starts from and leaves; -1 for none
};

// Runs of a batch of equal lengths follow from the position; otherwise `run_of` names each token's.
struct Shape {
    i64 tokens, seqlen, runs;
    i64 channels;
};

DEVICE const Run& run_at(const Run* runs, const int* run_of, const Shape& s, i64 token) {
    return runs[run_of ? run_of[token] : token / s.seqlen];
}

// The input `offset` rows after the start of a run; negative offsets reach into its state.
DEVICE A input(const T* x, const A* states, const Run& run, const Shape& s, i64 channel, i64 offset) {
    if (offset >= 0) return Cast<A, T>::of(x[(run.start + offset) * s.channels + channel]);
    if (!states || run.initial < 0) return 0;
    return states[(run.initial * s.channels + channel) * (W - 1) + W - 1 + offset];
}

DEVICE A before(const T* x, const A* states, const A* weight, const A* bias, const Run& run,
                const Shape& s, i64 channel, i64 row) {
    A sum = bias ? bias[channel] : (A)0;
#pragma unroll
    for (int w = 0; w < W; ++w)
        sum += weight[channel * W + w] * input(x, states, run, s, channel, row + w - (W - 1));
    return sum;
}

DEVICE A activated(A value) { return WITH_SILU ? value / ((A)1 + exp(-value)) : value; }

extern "C" __global__ void __launch_bounds__(256)
forward(const T* __restrict__ x, const A* __restrict__ weight, const A* __restrict__ bias,
        const A* __restrict__ states, const Run* __restrict__ runs, const int* __restrict__ run_of,
        T* __restrict__ y, const Shape s) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= s.tokens * s.channels) return;
    const i64 token = at / s.channels, channel = at % s.channels;
    const Run& run = run_at(runs, run_of, s, token);
    const A value = before(x, states, weight, bias, run, s, channel, token - run.start);
    y[at] = Cast<T, A>::of(activated(value));
}

// The same for channels in whole 16-byte pieces: a thread computes kTile tokens of kPiece channels from
// kTile + W - 1 pieces, all asked for before the first is used. Tiles that touch a run's start, where
// inputs come from a state, take every number by itself. Measured on an H100, width 4, as a share of what a
// copy moves: four blocks of 128 threads a multiprocessor 91 %, two of 256 with the same 128 registers 82 %,
// one with 150 registers 63 %; tiles of 4 tokens in four blocks of 256 78 %, of 16 tokens 70 to 78 %.
constexpr int kPiece = 16 / sizeof(T), kTile = 8, kTileThreads = 128;

struct alignas(16) Piece {
    T values[kPiece];
};

// For 16-bit results the special-function unit is exact enough: relative error 2^-20.
DEVICE A narrow_activated(A value) {
    if constexpr (sizeof(T) == 2) return WITH_SILU ? __fdividef(value, 1.f + __expf(-value)) : value;
    else return activated(value);
}

// Rows of four f32 taps are aligned, in any tensor that starts at 16 bytes.
DEVICE void load_taps(A (&taps)[W], const A* row) {
    if constexpr (W == 4 && sizeof(A) == 4) {
        if ((reinterpret_cast<u64>(row) & 15) == 0) {
            const float4 four = *reinterpret_cast<const float4*>(row);
            taps[0] = four.x, taps[1] = four.y, taps[2] = four.z, taps[3] = four.w;
            return;
        }
    }
#pragma unroll
    for (int w = 0; w < W; ++w) taps[w] = row[w];
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 4)
forward_tiles(const T* __restrict__ x, const A* __restrict__ weight, const A* __restrict__ bias,
              const A* __restrict__ states, const Run* __restrict__ runs, const int* __restrict__ run_of,
              T* __restrict__ y, const Shape s) {
    const i64 pieces = s.channels / kPiece, blocks = (pieces + 31) / 32;
    const i64 piece = blockIdx.x % blocks * 32 + threadIdx.x % 32;
    const i64 first = (blockIdx.x / blocks * (kTileThreads / 32) + threadIdx.x / 32) * kTile;
    if (piece >= pieces || first >= s.tokens) return;
    const i64 channel = piece * kPiece, end = first + kTile < s.tokens ? first + kTile : s.tokens;
    const Run& run = run_at(runs, run_of, s, first);
    if (first - (W - 1) < run.start || first + kTile > run.start + run.length) {
        for (i64 token = first; token < end; ++token) {
            const Run& own = run_at(runs, run_of, s, token);
            for (int k = 0; k < kPiece; ++k)
                y[token * s.channels + channel + k] = Cast<T, A>::of(activated(before(x, states, weight, bias, own, s, channel + k, token - own.start)));
        }
        return;
    }
    const T* from = x + (first - (W - 1)) * s.channels + channel;
    Piece rows[kTile + W - 1];
#pragma unroll
    for (int row = 0; row < kTile + W - 1; ++row) rows[row] = *reinterpret_cast<const Piece*>(from + row * s.channels);
    Piece out[kTile];
#pragma unroll
    for (int k = 0; k < kPiece; ++k) {
        A column[kTile + W - 1], taps[W];
#pragma unroll
        for (int row = 0; row < kTile + W - 1; ++row) column[row] = Cast<A, T>::of(rows[row].values[k]);
        load_taps(taps, weight + (channel + k) * W);
        const A start = bias ? bias[channel + k] : (A)0;
#pragma unroll
        for (int row = 0; row < kTile; ++row) {
            A sum = start;
#pragma unroll
            for (int w = 0; w < W; ++w) sum += taps[w] * column[row + w];
            out[row].values[k] = Cast<T, A>::of(narrow_activated(sum));
        }
    }
#pragma unroll
    for (int row = 0; row < kTile; ++row) *reinterpret_cast<Piece*>(y + (first + row) * s.channels + channel) = out[row];
}

// A decoding step, a thread a sequence and channel: x, y [rows, seqlen], states [rows, state_len]. With
// positions the state is a ring whose next place is positions[sequence] % state_len.
extern "C" __global__ void __launch_bounds__(256, 1)
update(const A* __restrict__ x, const A* __restrict__ state, const A* __restrict__ weight,
       const A* __restrict__ bias, const i64* __restrict__ positions, A* __restrict__ y,
       A* __restrict__ next, const i64 rows, const i64 channels, const i64 seqlen, const i64 state_len) {
    const i64 row = (i64)blockIdx.x * 256 + threadIdx.x;
    if (row >= rows) return;
    const i64 channel = row % channels;
    const A *own = state + row * state_len, *added = x + row * seqlen;
    i64 position = positions && state_len ? positions[row / channels] % state_len : 0;
    if (position < 0) position += state_len;
    // Of the line of old inputs and then new ones.
    const auto input = [&](i64 place) {
        return place < state_len ? own[(position + place) % state_len] : added[place - state_len];
    };
    for (i64 t = 0; t < seqlen; ++t) {
        A sum = bias ? bias[channel] : (A)0;
        for (int w = 0; w < W; ++w) sum += weight[channel * W + w] * input(state_len + t - (W - 1) + w);
        y[row * seqlen + t] = activated(sum);
    }
    for (i64 place = 0; place < state_len; ++place) {
        // What a ring's place holds afterwards is the last input that went there.
        const i64 old = positions ? (place - position + state_len) % state_len : place;
        const i64 turns = seqlen > old ? (seqlen - old - 1) / (state_len > 0 ? state_len : 1) + 1 : 0;
        next[row * state_len + place] = positions ? input(old + turns * state_len) : input(place + seqlen);
    }
}

// The last W - 1 inputs of every run; the target is zero before.
extern "C" __global__ void __launch_bounds__(256)
final_states(const T* __restrict__ x, const A* __restrict__ states, const Run* __restrict__ runs,
             A* __restrict__ last, const Shape s) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (W == 1 || at >= s.runs * s.channels * (W - 1)) return;
    const i64 place = at % kHistory, channel = at / kHistory % s.channels;
    const Run& run = runs[at / kHistory / s.channels];
    if (run.last < 0) return;
    last[(run.last * s.channels + channel) * (W - 1) + place] =
        input(x, states, run, s, channel, run.length + place - (W - 1));
}

// The cotangent before the activation.
extern "C" __global__ void __launch_bounds__(256)
slope(const T* __restrict__ x, const A* __restrict__ weight, const A* __restrict__ bias,
      const A* __restrict__ states, const Run* __restrict__ runs, const int* __restrict__ run_of,
      const T* __restrict__ dy, A* __restrict__ g, const Shape s) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= s.tokens * s.channels) return;
    A value = Cast<A, T>::of(dy[at]);
    if (WITH_SILU) {
        const i64 token = at / s.channels, channel = at % s.channels;
        const Run& run = run_at(runs, run_of, s, token);
        const A v = before(x, states, weight, bias, run, s, channel, token - run.start);
        const A sigmoid = (A)1 / ((A)1 + exp(-v));
        value *= sigmoid * ((A)1 + v * ((A)1 - sigmoid));
    }
    g[at] = value;
}

extern "C" __global__ void __launch_bounds__(256)
backward_x(const A* __restrict__ g, const A* __restrict__ weight, const A* __restrict__ dlast,
           const Run* __restrict__ runs, const int* __restrict__ run_of, T* __restrict__ dx,
           const Shape s) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= s.tokens * s.channels) return;
    const i64 token = at / s.channels, channel = at % s.channels;
    const Run& run = run_at(runs, run_of, s, token);
    const i64 end = run.start + run.length;
    A sum = 0;
#pragma unroll
    for (int w = 0; w < W; ++w) {
        const i64 later = token + W - 1 - w;
        if (later < end) sum += weight[channel * W + w] * g[later * s.channels + channel];
    }
    const i64 place = token - end + W - 1;
    if (dlast && run.last >= 0 && place >= 0)
        sum += dlast[(run.last * s.channels + channel) * (W - 1) + place];
    dx[at] = Cast<T, A>::of(sum);
}

// The gradient of the states that runs start from; the target is zero before.
extern "C" __global__ void __launch_bounds__(256)
backward_states(const A* __restrict__ g, const A* __restrict__ weight, const A* __restrict__ dlast,
                const Run* __restrict__ runs, A* __restrict__ dstates, const Shape s) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (W == 1 || at >= s.runs * s.channels * (W - 1)) return;
    const i64 place = at % kHistory, channel = at / kHistory % s.channels;
    const Run& run = runs[at / kHistory / s.channels];
    if (run.initial < 0) return;
    A sum = 0;
    for (int w = 0; w <= place; ++w)
        if (place - w < run.length)
            sum += weight[channel * W + w] * g[(run.start + place - w) * s.channels + channel];
    // A run shorter than the state hands part of it on.
    if (dlast && run.last >= 0 && place >= run.length)
        sum += dlast[(run.last * s.channels + channel) * (W - 1) + place - run.length];
    dstates[(run.initial * s.channels + channel) * (W - 1) + place] = sum;
}

// Partial sums of the gradients of weight (first W) and bias (last) over `per_part` tokens:
// sums[part, channel, W + 1]. 32 channels a block, eight tokens at a time.
extern "C" __global__ void __launch_bounds__(256)
backward_weight(const T* __restrict__ x, const A* __restrict__ states, const A* __restrict__ g,
                const Run* __restrict__ runs, const int* __restrict__ run_of, A* __restrict__ sums,
                i64 per_part, const Shape s) {
    __shared__ A scratch[8][32];
    const int lane = threadIdx.x % 32, group = threadIdx.x / 32;
    const i64 channel = (i64)blockIdx.x * 32 + lane;
    const i64 first = blockIdx.y * per_part;
    const i64 last = first + per_part < s.tokens ? first + per_part : s.tokens;
    A sum[W + 1];
#pragma unroll
    for (int w = 0; w <= W; ++w) sum[w] = 0;
    if (channel < s.channels) {
        for (i64 token = first + group; token < last; token += 8) {
            const Run& run = run_at(runs, run_of, s, token);
            const A value = g[token * s.channels + channel];
#pragma unroll
            for (int w = 0; w < W; ++w)
                sum[w] += value * input(x, states, run, s, channel, token - run.start + w - (W - 1));
            sum[W] += value;
        }
    }
#pragma unroll
    for (int w = 0; w <= W; ++w) {
        __syncthreads();
        scratch[group][lane] = sum[w];
        __syncthreads();
        if (group == 0 && channel < s.channels) {
            for (int other = 1; other < 8; ++other) sum[w] += scratch[other][lane];
            sums[(blockIdx.y * s.channels + channel) * (W + 1) + w] = sum[w];
        }
    }
}
