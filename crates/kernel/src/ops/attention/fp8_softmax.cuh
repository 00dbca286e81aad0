// The online softmax of FP8 attention.
//
// As softmax.cuh, with three differences. Each tile has its own scale, so references are kept in powers
// of two after scaling. The reference is the exact running maximum: what rounds p to e4m3 depends on it,
// and the processor's reference follows the same steps. And p = 2^(x - reference + 8): it spans (0, 256]
// of the 448 that e4m3 holds.
#pragma once

#include "device/math.cuh"

namespace danaus::attention {

struct Fp8Softmax {
    static constexpr float kShift = 8.f;

    float reference[2] = {-kInfinity, -kInfinity};
    float sum[2] = {0.f, 0.f};  // this thread's columns only, until `finish`; of p before rounding

    float offset[2];  // of the tile at hand

    // Scores times `c` are exponents in base 2. Moves the references to a tile; returns the factors of the
    // output so far.
    template <bool kEmptyRows, int kCount>
    DEVICE float2 move(const float (&s)[kCount], float c) {
        float factor[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float moved = fmaxf(reference[i], quad_max(row_max(s, i)) * c);
            const bool unset = kEmptyRows && moved == -kInfinity;
            factor[i] = unset ? 1.f : exp2_unit(reference[i] - moved);
            reference[i] = moved;
            offset[i] = unset ? 0.f : moved - kShift;
            sum[i] *= factor[i];
        }
        return {factor[0], factor[1]};
    }

    // Scores to p, after `move`.
    template <int kCount>
    DEVICE void exponentials(float (&s)[kCount], float c) {
        float total[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
        for (int j = 0; j < kCount / 4; ++j) {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                float& value = s[4 * j + k];
                value = exp2_unit(fmaf(value, c, -offset[k / 2]));
                total[k] += value;
            }
        }
        sum[0] += total[0] + total[1];
        sum[1] += total[2] + total[3];
    }

    // Completes the sums; returns the factors that normalise the output. Rows without keys give 0.
    DEVICE float2 finish() {
        sum[0] = quad_sum(sum[0]);
        sum[1] = quad_sum(sum[1]);
        return {empty(0) ? 0.f : 1.f / sum[0], empty(1) ? 0.f : 1.f / sum[1]};
    }

    // Natural log-sum-exp of row i after `finish`.
    DEVICE float log_sum_exp(int i, float) const {
        return empty(i) ? -kInfinity : (reference[i] - kShift + log2_unit(sum[i])) * kLn2;
    }

private:
    DEVICE bool empty(int i) const { return sum[i] < 128.f; }  // the largest exponential is 256

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
};

}  // namespace danaus::attention
