// From 16-bit q, k and v to e4m3 tiles with scales, in the layouts of fp8_forward.cuh.
//
// A thread block owns one tile of a head and keeps it in registers between finding its largest magnitude
// and rounding. q and k are first rotated, on request: x -> x D H / sqrt(d) with signs D and the Hadamard
// matrix H, which leaves q k^T as it is and spreads outliers over the row. The lanes of a row hold 8
// neighbours each, so three stages of the transform stay in a thread and the others are shuffles.
#pragma once

#include "attention/fp8_params.cuh"
#include "device/fp8.cuh"
#include "device/math.cuh"

namespace danaus::attention {

constexpr int kQuantizeThreads = 512;

// Largest magnitude over the block; all threads must call it.
DEVICE float block_largest(float x) {
    __shared__ float of_warp[kQuantizeThreads / kWarp];
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    if (lane_index() == 0) of_warp[threadIdx.x / kWarp] = x;
    __syncthreads();
    x = of_warp[lane_index() % (kQuantizeThreads / kWarp)];
#pragma unroll
    for (int distance = kQuantizeThreads / kWarp / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

// 8 neighbours of a row as floats; rows beyond the tensor are 0.
template <class Element>
DEVICE void load_eight(float (&x)[8], const QuantizeParams& params, int row, int column) {
    if (row >= params.rows) {
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = 0.f;
        return;
    }
    const Rows& source = params.source;
    const u16* start = static_cast<const u16*>(source.data) + blockIdx.z * source.batch_stride + blockIdx.y * source.head_stride + row * source.row_stride;
    const uint4 packed = *reinterpret_cast<const uint4*>(start + column);
    const u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        x[2 * i] = Element::low(words[i]);
        x[2 * i + 1] = Element::high(words[i]);
    }
}

// Signs of 8 neighbours, times 1 / sqrt(head dim).
template <int kHeadDim>
DEVICE void load_signs(float (&signs)[8], const float* from) {
    constexpr float kNorm = kHeadDim == 64 ? 0.125f : kHeadDim == 128 ? 0.08838834764831845f : 0.0625f;
#pragma unroll
    for (int i = 0; i < 8; ++i) signs[i] = from[i] * kNorm;
}

// One row over kHeadDim / 8 neighbouring lanes; all lanes must call it.
template <int kHeadDim>
DEVICE void rotate(float (&x)[8], const float (&signs)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] *= signs[i];
#pragma unroll
    for (int distance = 1; distance < 8; distance *= 2) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (i & distance) continue;
            const float a = x[i], b = x[i + distance];
            x[i] = a + b;
            x[i + distance] = a - b;
        }
    }
#pragma unroll
    for (int distance = 1; distance < kHeadDim / 8; distance *= 2) {
        const bool upper = threadIdx.x & distance;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float other = __shfl_xor_sync(0xffffffffu, x[i], distance);
            x[i] = upper ? other - x[i] : x[i] + other;
        }
    }
}

// Stores the block's scale and returns the magnitude that becomes the largest code. With a scale a head,
// `largest` was found before.
DEVICE float tile_largest(const QuantizeParams& params, i64 head, float largest) {
    if (params.largest) largest = __uint_as_float(params.largest[head]);
    if (largest == 0.f) largest = kLargestE4m3;
    if (threadIdx.x == 0) params.scales[(head * params.tiles + blockIdx.x) * params.scale_stride] = largest / kLargestE4m3;
    return largest;
}

// What is rounded to a code. The product is exact for 16-bit inputs and the quotient the nearest float, so
// that what lies half way between two codes stays there and goes to the even one, as in the reference.
DEVICE float scaled(float x, float largest) { return x * kLargestE4m3 / largest; }

// Rows of a tile in their order: q and k. With kMeasure only the head's largest magnitude is found.
template <class Element, int kHeadDim, int kRows, bool kMeasure>
DEVICE void quantize_rows(const QuantizeParams& params) {
    using Tile = wgmma::ByteRows<kRows, kHeadDim>;
    constexpr int kLanes = kHeadDim / 8, kPasses = ceil_div(kRows * kLanes, kQuantizeThreads);
    const i64 head = static_cast<i64>(blockIdx.z) * params.heads + blockIdx.y;
    const int column = 8 * (threadIdx.x % kLanes);
    float x[kPasses][8], signs[8], largest = 0.f;
    if (params.signs) load_signs<kHeadDim>(signs, params.signs + column);
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
        const int row = (pass * kQuantizeThreads + threadIdx.x) / kLanes;
        load_eight<Element>(x[pass], params, row < kRows ? blockIdx.x * kRows + row : params.rows, column);
        if (params.signs) rotate<kHeadDim>(x[pass], signs);
#pragma unroll
        for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(x[pass][i]));
    }
    largest = block_largest(largest);
    if constexpr (kMeasure) {
        // Magnitudes order as their bits do.
        if (threadIdx.x == 0) atomicMax(params.largest + head, __float_as_uint(largest));
    } else {
        largest = tile_largest(params, head, largest);
        u8* tile = params.codes + (head * params.tiles + blockIdx.x) * Tile::kTileBytes;
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) {
            const int row = (pass * kQuantizeThreads + threadIdx.x) / kLanes;
            if (row >= kRows) break;
            float(&y)[8] = x[pass];
#pragma unroll
            for (int i = 0; i < 8; ++i) y[i] = scaled(y[i], largest);
            *reinterpret_cast<uint2*>(tile + Tile::place(row, column)) = uint2{pack_e4m3(y[0], y[1], y[2], y[3]), pack_e4m3(y[4], y[5], y[6], y[7])};
        }
    }
}

// A transposed tile: v. A thread takes two columns of 16 rows, which are 16 bytes of two rows of codes.
template <class Element, int kHeadDim, int kRows, bool kMeasure>
DEVICE void quantize_columns(const QuantizeParams& params) {
    using Tile = wgmma::ByteRows<kHeadDim, kRows>;
    constexpr int kLanes = kHeadDim / 2, kPasses = ceil_div(kRows / 16 * kLanes, kQuantizeThreads);
    const i64 head = static_cast<i64>(blockIdx.z) * params.heads + blockIdx.y;
    const int column = 2 * (threadIdx.x % kLanes);
    const Rows& source = params.source;
    const u16* start = static_cast<const u16*>(source.data) + blockIdx.z * source.batch_stride + blockIdx.y * source.head_stride + column;
    u32 x[kPasses][16];  // pairs
    float largest = 0.f;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
        const int group = (pass * kQuantizeThreads + threadIdx.x) / kLanes;
#pragma unroll
        for (int at = 0; at < 16; ++at) {
            const int row = blockIdx.x * kRows + 16 * group + permuted(at);
            const bool exists = group < kRows / 16 && row < params.rows;
            x[pass][at] = exists ? *reinterpret_cast<const u32*>(start + row * source.row_stride) : 0;
        }
#pragma unroll
        for (int at = 0; at < 16; ++at) {
            largest = fmaxf(largest, fmaxf(fabsf(Element::low(x[pass][at])), fabsf(Element::high(x[pass][at]))));
        }
    }
    largest = block_largest(largest);
    if constexpr (kMeasure) {
        if (threadIdx.x == 0) atomicMax(params.largest + head, __float_as_uint(largest));
    } else {
        largest = tile_largest(params, head, largest);
        u8* tile = params.codes + (head * params.tiles + blockIdx.x) * Tile::kTileBytes;
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) {
            const int group = (pass * kQuantizeThreads + threadIdx.x) / kLanes;
            if (group >= kRows / 16) break;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                u32 words[4];
#pragma unroll
                for (int w = 0; w < 4; ++w) {
                    const auto value = [&](int at) { return scaled(half ? Element::high(x[pass][at]) : Element::low(x[pass][at]), largest); };
                    words[w] = pack_e4m3(value(4 * w), value(4 * w + 1), value(4 * w + 2), value(4 * w + 3));
                }
                *reinterpret_cast<uint4*>(tile + Tile::place(column + half, 16 * group)) = uint4{words[0], words[1], words[2], words[3]};
            }
        }
    }
}

}  // namespace danaus::attention
