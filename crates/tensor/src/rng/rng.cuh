// Random tensors: element i is a function of (seed, stream, i) alone. Constant: NORMAL 1 for the normal
// distribution (Box-Muller), 0 for the uniform one with 53 bits.
#pragma once
#include "philox.cuh"

extern "C" __global__ void __launch_bounds__(256)
fill(double* y, i64 count, u64 seed, u64 stream, double shift, double scale) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= count) return;
    const Words words = philox<10>((u64)at, stream, seed);
#if NORMAL
    const double u = ((double)words.at[0] + 1.0) / 4294967296.0;
    const double v = (double)words.at[1] / 4294967296.0;
    const double value = sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
#else
    const u64 bits = ((u64)words.at[0] << 32 | words.at[1]) >> 11;
    const double value = (double)bits * (1.0 / 9007199254740992.0);
#endif
    // Two roundings, as on the processor.
    y[at] = __dadd_rn(shift, __dmul_rn(scale, value));
}
