// Philox4x32: four random words as a pure function of counter and key; the same bits as on the
// processor. The counter is (block low, block high, stream low, stream high), the key the seed; element
// i of a stream is word i % 4 of block i / 4.
#pragma once
#include "scalar.cuh"

struct Words { u32 at[4]; };

template <int ROUNDS> DEVICE Words philox(u64 block, u64 stream, u64 seed) {
    u32 c0 = (u32)block, c1 = (u32)(block >> 32), c2 = (u32)stream, c3 = (u32)(stream >> 32);
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const u32 even_high = __umulhi(0xD2511F53u, c0), even_low = 0xD2511F53u * c0;
        const u32 odd_high = __umulhi(0xCD9E8D57u, c2), odd_low = 0xCD9E8D57u * c2;
        c0 = odd_high ^ c1 ^ k0;
        c2 = even_high ^ c3 ^ k1;
        c1 = odd_low;
        c3 = even_low;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Words{{c0, c1, c2, c3}};
}
