// The online softmax of the two rows a thread holds.
//
// For each row: reference r (a score near the largest so far), sum = sum_j 2^(c (s_j - r)), and the
// unnormalised output relative to the same r. A new tile moves r only when its maximum lies more than
// `kSlack` powers of two above, so that the output is rarely rescaled; exponentials then reach 2^kSlack,
// which f32 sums and 16-bit floats with 8 exponent bits hold without loss, and binary16 with kSlack 0
// is left at 1. A row's decision depends on that row alone, so its bits do not depend on neighbours.
#pragma once

#include "device/math.cuh"

namespace danaus::attention {

template <class Config>
struct Softmax {
    static constexpr float kSlack = Config::Element::kIsBf16 ? 8.f : 0.f;

    float reference[2] = {-kInfinity, -kInfinity};
    float sum[2] = {0.f, 0.f};  // this thread's columns only, until `finish`

    // Turns scores into exponentials; returns the factors of the output so far. `kEmptyRows`: a row may
    // have no visible key yet.
    template <bool kEmptyRows, int kCount>
    DEVICE float2 update(float (&s)[kCount], float c) {
        float factor[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float largest = quad_max(row_max(s, i));
            const float moved = fmaxf(reference[i], largest);
            const bool move = (moved - reference[i]) * c > kSlack;
            factor[i] = move ? exp2_unit((reference[i] - moved) * c) : 1.f;
            reference[i] = move ? moved : reference[i];
            // An empty row keeps -inf as reference: its exponents must be -inf, not NaN.
            const float offset = kEmptyRows && reference[i] == -kInfinity ? 0.f : reference[i] * c;
            sum[i] = sum[i] * factor[i] + exponentials(s, i, c, offset);
        }
        return {factor[0], factor[1]};
    }

    // Completes the sums; returns the factors that normalise the output. Rows without keys give 0.
    DEVICE float2 finish() {
        sum[0] = quad_sum(sum[0]);
        sum[1] = quad_sum(sum[1]);
        return {empty(0) ? 0.f : 1.f / sum[0], empty(1) ? 0.f : 1.f / sum[1]};
    }

    // Natural log-sum-exp of row i after `finish`.
    DEVICE float log_sum_exp(int i, float c) const {
        return empty(i) ? -kInfinity : (reference[i] * c + log2_unit(sum[i])) * kLn2;
    }

private:
    // The key that set the reference contributes 1, so the sum of a row with keys is at least about 1.
    // A NaN is not empty and stays NaN.
    DEVICE bool empty(int i) const { return sum[i] < 0.5f; }

    // Two chains each, since an addition waits four cycles for the one before.
    template <int kCount>
    DEVICE static float row_max(const float (&s)[kCount], int i) {
        float a = s[2 * i], b = s[2 * i + 1];
#pragma unroll
        for (int j = 1; j < kCount / 4; ++j) {
            a = fmaxf(a, s[4 * j + 2 * i]);
            b = fmaxf(b, s[4 * j + 2 * i + 1]);
        }
        return fmaxf(a, b);
    }

    template <int kCount>
    DEVICE static float exponentials(float (&s)[kCount], int i, float c, float offset) {
        float total[2] = {0.f, 0.f};
#pragma unroll
        for (int j = 0; j < kCount / 4; ++j) {
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                float& value = s[4 * j + 2 * i + k];
                value = exp2_unit(fmaf(value, c, -offset));
                total[k] += value;
            }
        }
        return total[0] + total[1];
    }
};

// Multiplies the rows of a product by their factors.
template <int kCount>
DEVICE void scale_rows(float (&o)[kCount], float2 factor) {
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j) {
        o[4 * j] *= factor.x;
        o[4 * j + 1] *= factor.x;
        o[4 * j + 2] *= factor.y;
        o[4 * j + 3] *= factor.y;
    }
}

}  // namespace danaus::attention
