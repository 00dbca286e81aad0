// Arguments of the FP8 kernels; `cuda/fp8_params.rs` mirrors them field by field.
#pragma once

#include "attention/params.cuh"

namespace danaus::attention {

// Quantised operands: tiles as they stand in shared memory, one after the other along a head, heads
// within batches. Queries in blocks of 64, keys and values in tiles of kBlockN, values transposed, with
// the keys of each 16 in the order of `permuted`.
struct Fp8Operands {
    u8* q;
    u8* k;
    u8* v;
    float* q_scales;    // a block
    float4* kv_scales;  // a tile: of k, of v, unused
};

struct Fp8Params {
    Problem problem;
    Schedule schedule;
    float* lse;
    Rows out;
    Fp8Operands operands;
    int q_blocks;  // of a head
    int k_tiles;
};

// One tensor to quantise.
struct QuantizeParams {
    Rows source;
    int rows;   // of a head
    int heads;
    int tiles;  // of a head
    u8* codes;
    float* scales;
    int scale_stride;    // floats
    u32* largest;        // bits of a head's largest magnitude, or null for a scale a tile
    const float* signs;  // of the rotation, or null
};

}  // namespace danaus::attention
