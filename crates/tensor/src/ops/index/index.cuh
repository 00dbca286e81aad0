// Reading and writing at indices. Constants: BITS, an unsigned type with the size of an
// element (copies), or ELEMENT and its accumulator WIDE (sums). Indices are i64; bad ones are reported and skipped.
#pragma once
#include "fault.cuh"
#include "scalar.cuh"

#ifdef BITS
typedef BITS E;

// y[o, n, :] = x[o, index[n], :]; one block a row of y.
extern "C" __global__ void __launch_bounds__(256)
select_rows(const E* __restrict__ x, const i64* __restrict__ index, E* y, i64 size, i64 count,
            i64 inner, Fault* fault, u32 check) {
    const i64 row = blockIdx.x, at = index[row % count];
    if (!fault_index(fault, check, at, size)) return;
    const E* from = x + (row / count * size + at) * inner;
    E* to = y + row * inner;
    for (i64 i = threadIdx.x; i < inner; i += blockDim.x) to[i] = from[i];
}

// y[o, m, i] = x[o, index[o, m, i], i].
extern "C" __global__ void __launch_bounds__(256)
gather(const E* __restrict__ x, const i64* __restrict__ index, E* y, i64 total, i64 size, i64 count,
       i64 inner, Fault* fault, u32 check) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= total) return;
    const i64 place = index[at];
    if (!fault_index(fault, check, place, size)) return;
    y[at] = x[(at / (count * inner) * size + place) * inner + at % inner];
}

// y[o, index[o, m, i], i] = src[o, m, i] in the order of m: one thread a column.
extern "C" __global__ void __launch_bounds__(256)
scatter(const i64* __restrict__ index, const E* __restrict__ src, E* y, i64 columns, i64 size,
        i64 count, i64 inner, Fault* fault, u32 check) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= columns) return;
    const i64 row = at / inner, column = at % inner;
    for (i64 m = 0; m < count; ++m) {
        const i64 from = (row * count + m) * inner + column, place = index[from];
        if (fault_index(fault, check, place, size))
            y[(row * size + place) * inner + column] = src[from];
    }
}
#endif

#ifdef ELEMENT
typedef ELEMENT T;
typedef WIDE A;

// y[o, index[o, m, i], i] += src[o, m, i] in the order of m: one thread a column. Runs of one index are
// summed in the accumulator and rounded once.
extern "C" __global__ void __launch_bounds__(256)
scatter_add(const i64* __restrict__ index, const T* __restrict__ src, T* y, i64 columns, i64 size,
            i64 count, i64 inner, Fault* fault, u32 check) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= columns) return;
    const i64 row = at / inner, column = at % inner;
    T* to = nullptr;
    A sum = 0;
    for (i64 m = 0; m < count; ++m) {
        const i64 from = (row * count + m) * inner + column, place = index[from];
        if (!fault_index(fault, check, place, size)) continue;
        T* next = y + (row * size + place) * inner + column;
        if (next != to) {
            if (to) *to = Cast<T, A>::of(sum);
            to = next;
            sum = Cast<A, T>::of(*to);
        }
        sum += Cast<A, T>::of(src[from]);
    }
    if (to) *to = Cast<T, A>::of(sum);
}

// y[o, index[n], :] += src[o, n, :]. One block a position n: the block of an index's first occurrence
// adds all its rows in the order of their positions, the others have nothing to do. The sum is kept
// in the accumulator and rounded once, with the same bits on every run.
extern "C" __global__ void __launch_bounds__(256)
add_rows(const i64* __restrict__ index, const T* __restrict__ src, T* y, i64 size, i64 count,
         i64 inner, Fault* fault, u32 check) {
    constexpr int kList = 1024;
    __shared__ i64 list[kList];
    __shared__ int warps[8];
    const i64 n = blockIdx.x % count, outer = blockIdx.x / count, place = index[n];
    if (!fault_index(fault, check, place, size)) return;
    bool earlier = false;
    for (i64 m = threadIdx.x; m < n && !earlier; m += 256) earlier = index[m] == place;
    if (__syncthreads_or(earlier)) return;
    T* to = y + (outer * size + place) * inner;
    const T* from = src + outer * count * inner;
    // Columns in bands, so that the running sums of a band stay in registers between lists.
    for (i64 band = 0; band < inner; band += 1024) {
        A sums[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const i64 i = band + k * 256 + threadIdx.x;
            sums[k] = i < inner ? Cast<A, T>::of(to[i]) : (A)0;
        }
        for (i64 first = n; first < count;) {
            // The next positions with this index, in order.
            int found = 0;
            while (first < count && found + 256 <= kList) {
                const i64 m = first + threadIdx.x;
                const bool hit = m < count && index[m] == place;
                const u32 votes = __ballot_sync(0xffffffffu, hit);
                if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = __popc(votes);
                __syncthreads();
                int before = found, all = 0;
                for (int w = 0; w < 8; ++w) {
                    if (w < (int)(threadIdx.x / 32)) before += warps[w];
                    all += warps[w];
                }
                if (hit) list[before + __popc(votes & ((1u << threadIdx.x % 32) - 1))] = m;
                found += all;
                first += 256;
                __syncthreads();
            }
            for (int entry = 0; entry < found; ++entry) {
                const T* row = from + list[entry] * inner;
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const i64 i = band + k * 256 + threadIdx.x;
                    if (i < inner) sums[k] += Cast<A, T>::of(row[i]);
                }
            }
            __syncthreads();
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const i64 i = band + k * 256 + threadIdx.x;
            if (i < inner) to[i] = Cast<T, A>::of(sums[k]);
        }
    }
}
#endif
