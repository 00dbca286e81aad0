// The warpgroup of the gradient kernel whose rows are the tokens that write: dB, dx, and the scale.
#pragma once

#include "ssd/gradient.cuh"

namespace danaus::ssd {

template <class Config>
struct ColumnConsumer : GradientConsumer<Config> {
    using Base = GradientConsumer<Config>;
    using Storage = GradientStorage<Config>;
    using Base::at, Base::params, Base::pipeline, Base::steps, Base::task;
    static constexpr int kState = Config::kState;
    float db[kState / 2];
    float product[32];  // B C^T

    DEVICE ColumnConsumer(const GradientParams& params, const GradientPipeline<Config>& pipeline) : Base(params, pipeline, 1) {}

    DEVICE void run() {
        this->await_keys();
        wgmma::settle(product);
        wgmma::arrive();
        wgmma::product<Bf16, 64, kState / 16, wgmma::AlongRows<64>, wgmma::AlongRows<64>>(product, pipeline.own(Storage::kB), pipeline.own(Storage::kC), false);
        wgmma::commit();
        wgmma::wait<0>();
        wgmma::settle(product);
#pragma unroll
        for (int r = 0; r < kState / 2; ++r) db[r] = 0.f;
        for (int h = task.head; h < task.head + task.heads; ++h) {
            this->await_head();
            head(h);
        }
        finish();
    }

private:
    // x_j . values_j of this thread's rows.
    DEVICE static float2 row_dots(const u32 (&x)[16], const float (&values)[32]) {
        float sum[2] = {0.f, 0.f};
#pragma unroll
        for (int s = 0; s < 8; ++s) {
#pragma unroll
            for (int i = 0; i < 2; ++i) sum[i] += Bf16::low(x[2 * s + i]) * values[4 * s + 2 * i] + Bf16::high(x[2 * s + i]) * values[4 * s + 2 * i + 1];
        }
        return float2{quad_sum(sum[0]), quad_sum(sum[1])};
    }

    // (E o C B^T)^T as an operand: row j, column i.
    DEVICE void decay_product(u32 (&weights)[16], float2 sums) const {
        const int warp_start = at.row - lane_index() / 4;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            if (8 * j + 7 < warp_start) {
                weights[2 * j] = weights[2 * j + 1] = 0u;
                continue;
            }
            const int column = 8 * j + at.column;
            const float2 sum = load_pair(steps() + 4 * column);
            const float low = column >= at.row ? product[4 * j] * exp2_unit(sum.x - sums.x) : 0.f;
            const float high = column + 1 >= at.row ? product[4 * j + 1] * exp2_unit(sum.y - sums.x) : 0.f;
            const float low8 = column >= at.row + 8 ? product[4 * j + 2] * exp2_unit(sum.x - sums.y) : 0.f;
            const float high8 = column + 1 >= at.row + 8 ? product[4 * j + 3] * exp2_unit(sum.y - sums.y) : 0.f;
            weights[2 * j] = Bf16::pack(low, high);
            weights[2 * j + 1] = Bf16::pack(low8, high8);
        }
    }

    DEVICE void head(int h) {
        u32 x[16], weights[16];
        float y[32];
        wgmma::settle(y);
        wgmma::arrive();
        wgmma::product<Bf16, 64, kState / 16, wgmma::AlongRows<64>, wgmma::AlongRows<64>>(y, pipeline.own(Storage::kB), pipeline.at(Storage::kDh), false);
        wgmma::commit();
        const u32 mine = steps() + 4 * at.row;
        const float2 sums{load_number(mine), load_number(mine + 32)}, scale{load_number(mine + 256), load_number(mine + 288)};
        const float total = load_number(steps() + 4 * 63);
        const float2 left{exp2_unit(total - sums.x), exp2_unit(total - sums.y)};
        load_operand(x, pipeline.at(Storage::kX));
        decay_product(weights, sums);
        wgmma::wait<0>();
        wgmma::settle(y);
        scale_rows(y, left);
        const float2 leaving = row_dots(x, y);
        u32 scaled[16];
#pragma unroll
        for (int s = 0; s < 8; ++s) {
            scaled[2 * s] = scale_pair(x[2 * s], float2{left.x * scale.x, left.x * scale.x});
            scaled[2 * s + 1] = scale_pair(x[2 * s + 1], float2{left.y * scale.y, left.y * scale.y});
        }
        wgmma::settle(weights);
        wgmma::settle(scaled);
        wgmma::settle(y);
        wgmma::settle(db);
        wgmma::arrive();
        wgmma::product<Bf16, 64, 4, wgmma::OverRows<64>>(y, weights, pipeline.at(Storage::kDy), true);
        wgmma::product<Bf16, kState, 4, wgmma::OverRows<64>>(db, scaled, pipeline.at(Storage::kDh), true);
        wgmma::commit();
        if (at.column == 0) {
            store_number(pipeline.own(Storage::kLeaving) + 4 * at.row, scale.x * leaving.x);
            store_number(pipeline.own(Storage::kLeaving) + 4 * at.row + 32, scale.y * leaving.y);
        }
        if (params.dd) add_skip_parts();
        wgmma::wait<0>();
        wgmma::settle(y);
        wgmma::settle(db);
        const float2 dscale = row_dots(x, y);
        if (at.column == 0) {
            float* to = this->dsteps(h) + 128 + at.row;
            to[0] = dscale.x;
            to[8] = dscale.y;
        }
        scale_rows(y, scale);
        if (params.d) add_skip(y, h);
        this->release();
        store_head(h, y);
    }

    DEVICE void store_head(int h, const float (&y)[32]) const {
        u32 packed[16];
        wgmma::pack<Bf16>(packed, y);
        const i64 heads = params.problem.heads;
        store_rows(params.dx + (task.chunk.start * heads + h) * 128, 128 * heads, task.chunk.rows, packed, pipeline.own(Storage::kOut));
        this->sync();
        const u32 thread = threadIdx.x % kWarpgroup;
        if (thread < 32) {
            const float2 own = load_pair(pipeline.own(Storage::kLeaving) + 8 * thread), before = Base::sums_before(own);
            reinterpret_cast<float2*>(this->dsteps(h) + 64)[thread] = float2{before.x - own.x, before.y - own.y};
        } else if (params.dd && thread >= 64) {
            const u32 column = thread - 64;
            float sum = 0.f;
#pragma unroll
            for (int w = 0; w < 4; ++w) sum += load_number(pipeline.own(Storage::kSkip) + 256 * w + 4 * column);
            params.dd[(static_cast<i64>(task.index) * heads + h) * 64 + column] = sum;
        }
        this->sync();
    }

    // Sums of dy x over this warp's rows, two columns a lane.
    DEVICE void add_skip_parts() const {
        const u32 lane = lane_index(), warp = warp_index() % 4;
        float2 sum{0.f, 0.f};
        for (int k = 0; k < 16; ++k) {
            const u32 place = swizzled<64>(16 * warp + k, lane / 4) + 4 * (lane % 4);
            const u32 x = load_word(pipeline.at(Storage::kX) + place), dy = load_word(pipeline.at(Storage::kDy) + place);
            sum.x += Bf16::low(x) * Bf16::low(dy);
            sum.y += Bf16::high(x) * Bf16::high(dy);
        }
        store_number(pipeline.own(Storage::kSkip) + 256 * warp + 8 * lane, sum.x);
        store_number(pipeline.own(Storage::kSkip) + 256 * warp + 8 * lane + 4, sum.y);
    }

    DEVICE void add_skip(float (&y)[32], int h) const {
        u32 dy[16];
        load_operand(dy, pipeline.at(Storage::kDy));
#pragma unroll
        for (int s = 0; s < 8; ++s) {
            const float2 d = *reinterpret_cast<const float2*>(params.d + h * 64 + 8 * s + at.column);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                y[4 * s + 2 * i] += d.x * Bf16::low(dy[2 * s + i]);
                y[4 * s + 2 * i + 1] += d.y * Bf16::high(dy[2 * s + i]);
            }
        }
    }

    DEVICE void finish() {
        named_sync(3, 2 * kWarpgroup);
        named_sync(4, 2 * kWarpgroup);  // the sum of M lies in the tile
        wgmma::settle(db);
        wgmma::arrive();
        wgmma::product<Bf16, kState, 4, wgmma::OverRows<64>, wgmma::OverRows<64>>(db, pipeline.own(Storage::kOut), pipeline.own(Storage::kC), true);
        wgmma::commit();
        wgmma::wait<0>();
        wgmma::settle(db);
        this->store_sum(params.db, db);
    }
};

}  // namespace danaus::ssd
