// Step sizes before the passes over chunks and their gradients after, and the gate's gradient. Constants:
// ELEMENT, the type of x. Blocks turn [tokens, heads] into vectors along a head's chunk and back.
#pragma once
#include "scalar.cuh"
#include "ssd/problem.cuh"
#include "ssd/step_size.cuh"

namespace danaus::ssd {

typedef ELEMENT T;
typedef typename Accumulator<T>::type A;

constexpr int kMostRows = 64, kTile = 33;  // heads of a block, and a column against bank conflicts

// One block a chunk and 32 heads. Rows behind a run's end decay by nothing and add nothing.
extern "C" __global__ void __launch_bounds__(256)
prologue(const A* __restrict__ dt, const A* __restrict__ a, const A* __restrict__ bias,
         A* __restrict__ steps, const Problem p, const StepOptions options) {
    __shared__ A scales[kMostRows * kTile], decays[kMostRows * kTile];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int chunk = blockIdx.x, first = blockIdx.y * 32;
    const Chunk at = chunk_at(p, chunk);
    for (int row = warp; row < p.chunk; row += 8) {
        A scale = 0, decay = 0;
        const int head = first + lane;
        if (row < at.rows && head < p.heads) {
            const i64 token = (at.start + row) * p.heads + head;
            scale = step_size<A>(dt[token], bias ? bias[head] : (A)0, options).value;
            decay = options.core ? a[token] : a[head] * scale;
        }
        scales[row * kTile + lane] = scale;
        decays[row * kTile + lane] = decay;
    }
    __syncthreads();
    for (int local = warp; local < 32 && first + local < p.heads; local += 8) {
        A* to = steps + steps_at(p, first + local, chunk);
        A before = 0;
        for (int start = 0; start < p.chunk; start += 32) {
            const int row = start + lane;
            A sum = row < p.chunk ? decays[row * kTile + local] * (A)kLog2 : (A)0;
            for (int step = 1; step < 32; step *= 2) {
                const A other = __shfl_up_sync(0xffffffffu, sum, step);
                if (lane >= step) sum += other;
            }
            sum += before;
            before = __shfl_sync(0xffffffffu, sum, 31);
            if (row < p.chunk) decays[row * kTile + local] = sum;
        }
        __syncwarp();
        for (int row = lane; row < p.chunk; row += 32) {
            const A sum = decays[row * kTile + local], scale = scales[row * kTile + local];
            to[row] = sum;
            to[p.chunk + row] = scale;
            to[2 * p.chunk + row] = exp2(before - sum) * scale;
        }
    }
}

// From the gradients of a chunk's vectors (two parts of log_decay's, and scale's) to those of dt, and for
// every chunk and head the sums for A and dt_bias; for the core, to those of scale and log_decay.
extern "C" __global__ void __launch_bounds__(256)
prologue_backward(const A* __restrict__ dt, const A* __restrict__ a, const A* __restrict__ bias,
                  const A* __restrict__ grads, A* __restrict__ ddt, A* __restrict__ ddecay,
                  A* __restrict__ sums, const Problem p, const StepOptions options) {
    __shared__ A dscales[kMostRows * kTile], ddecays[kMostRows * kTile];
    __shared__ A parts[2][8][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int chunk = blockIdx.x, first = blockIdx.y * 32;
    const Chunk at = chunk_at(p, chunk);
    for (int local = warp; local < 32 && first + local < p.heads; local += 8) {
        const A* from = grads + steps_at(p, first + local, chunk);
        for (int row = lane; row < p.chunk; row += 32) {
            ddecays[row * kTile + local] = from[row] + from[p.chunk + row];
            dscales[row * kTile + local] = from[2 * p.chunk + row];
        }
    }
    __syncthreads();
    const int head = first + lane;
    A da = 0, dbias = 0;
    for (int row = warp; row < at.rows && head < p.heads; row += 8) {
        const i64 token = (at.start + row) * p.heads + head;
        const A dscale = dscales[row * kTile + lane], decay = ddecays[row * kTile + lane];
        if (options.core) {
            ddt[token] = dscale;
            ddecay[token] = decay;
        } else {
            const StepSize<A> step = step_size<A>(dt[token], bias ? bias[head] : (A)0, options);
            const A grad = (dscale + a[head] * decay) * step.slope;
            ddt[token] = grad;
            da += step.value * decay;
            dbias += grad;
        }
    }
    parts[0][warp][lane] = da;
    parts[1][warp][lane] = dbias;
    __syncthreads();
    if (warp < 2 && head < p.heads && !options.core) {
        A sum = 0;
        for (int part = 0; part < 8; ++part) sum += parts[warp][part][lane];
        sums[((i64)chunk * 2 + warp) * p.heads + head] = sum;
    }
}

// Through out = y silu(z).
extern "C" __global__ void __launch_bounds__(256)
gate_backward(const T* __restrict__ y, const T* __restrict__ z, const T* __restrict__ dout,
              T* __restrict__ dy, T* __restrict__ dz, const i64 count) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= count) return;
    const A gate = Cast<A, T>::of(z[at]), grad = Cast<A, T>::of(dout[at]);
    const A sigmoid = (A)1 / ((A)1 + exp(-gate));
    dy[at] = Cast<T, A>::of(grad * gate * sigmoid);
    dz[at] = Cast<T, A>::of(grad * Cast<A, T>::of(y[at]) * sigmoid * ((A)1 + gate * ((A)1 - sigmoid)));
}

}  // namespace danaus::ssd
