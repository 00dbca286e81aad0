// The warpgroup of the gradient kernel whose rows are the tokens that read: dC and most of the decay.
#pragma once

#include "ssd/gradient.cuh"

namespace danaus::ssd {

template <class Config>
struct RowConsumer : GradientConsumer<Config> {
    using Base = GradientConsumer<Config>;
    using Storage = GradientStorage<Config>;
    using Base::at, Base::params, Base::pipeline, Base::steps, Base::task;
    static constexpr int kState = Config::kState;
    float dc[kState / 2];
    float pairs[32];  // the sum of M over heads

    DEVICE RowConsumer(const GradientParams& params, const GradientPipeline<Config>& pipeline) : Base(params, pipeline, 0) {}

    DEVICE void run() {
        this->await_keys();
        keep_product();
#pragma unroll
        for (int r = 0; r < kState / 2; ++r) dc[r] = 0.f;
#pragma unroll
        for (int r = 0; r < 32; ++r) pairs[r] = 0.f;
        for (int h = task.head; h < task.head + task.heads; ++h) {
            this->await_head();
            head(h);
        }
        finish();
    }

private:
    DEVICE u32 product_slot(int slot) const { return pipeline.own(Storage::kProduct) + (slot * kWarpgroup + threadIdx.x % kWarpgroup) * 16; }

    // C B^T, where only this thread reads it.
    DEVICE void keep_product() const {
        float product[32];
        wgmma::settle(product);
        wgmma::arrive();
        wgmma::product<Bf16, 64, kState / 16, wgmma::AlongRows<64>, wgmma::AlongRows<64>>(product, pipeline.own(Storage::kC), pipeline.own(Storage::kB), false);
        wgmma::commit();
        wgmma::wait<0>();
        wgmma::settle(product);
#pragma unroll
        for (int j = 0; j < 8; ++j)
            store_16_bytes(product_slot(j), uint4{__float_as_uint(product[4 * j]), __float_as_uint(product[4 * j + 1]), __float_as_uint(product[4 * j + 2]), __float_as_uint(product[4 * j + 3])});
    }

    DEVICE void head(int h) {
        u32 dy[16];
        float entering[2];
        const float2 sums{load_number(steps() + 4 * at.row), load_number(steps() + 4 * at.row + 32)};
        const float2 factor{exp2_unit(sums.x), exp2_unit(sums.y)};
        {
            float g[32], y[32];
            wgmma::settle(g);
            wgmma::settle(y);
            wgmma::arrive();
            wgmma::product<Bf16, 64, 4, wgmma::AlongRows<64>, wgmma::AlongRows<64>>(g, pipeline.at(Storage::kDy), pipeline.at(Storage::kX), false);
            wgmma::product<Bf16, 64, kState / 16, wgmma::AlongRows<64>, wgmma::AlongRows<64>>(y, pipeline.own(Storage::kC), pipeline.at(Storage::kH), false);
            wgmma::commit();
            load_operand(dy, pipeline.at(Storage::kDy));
            const float pass = state_product();
            const u32 pass_at = pipeline.own(Storage::kPass) + 4 * (warp_index() % 4);
            if (lane_index() == 0) store_number(pass_at, pass);
            wgmma::wait<0>();
            wgmma::settle(g);
            wgmma::settle(y);
            add_pairs(g, sums);
            entering[0] = entering[1] = 0.f;
#pragma unroll
            for (int s = 0; s < 8; ++s) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const u32 pair = dy[2 * s + i];
                    entering[i] += Bf16::low(pair) * y[4 * s + 2 * i] + Bf16::high(pair) * y[4 * s + 2 * i + 1];
                }
            }
        }
        entering[0] = quad_sum(entering[0]) * factor.x;
        entering[1] = quad_sum(entering[1]) * factor.y;
#pragma unroll
        for (int s = 0; s < 8; ++s) {
            dy[2 * s] = scale_pair(dy[2 * s], float2{factor.x, factor.x});
            dy[2 * s + 1] = scale_pair(dy[2 * s + 1], float2{factor.y, factor.y});
        }
        wgmma::settle(dy);
        wgmma::settle(dc);
        wgmma::arrive();
        wgmma::product<Bf16, kState, 4, wgmma::OverRows<64>>(dc, dy, pipeline.at(Storage::kH), true);
        wgmma::commit();
        if (at.column == 0) {
            store_number(pipeline.own(Storage::kEntering) + 4 * at.row, entering[0]);
            store_number(pipeline.own(Storage::kEntering) + 4 * at.row + 32, entering[1]);
        }
        const float last = exp2_unit(load_number(steps() + 4 * 63));
        wgmma::wait<0>();
        wgmma::settle(dc);
        this->release();
        this->sync();
        if (warp_index() % 4 == 0) store_decays(this->dsteps(h), last);
        this->sync();
    }

    // <H, dH>, this warp's part.
    DEVICE float state_product() const {
        float sum = 0.f;
#pragma unroll
        for (int k = 0; k < kState / 16; ++k) {
            const u32 offset = (k * kWarpgroup + threadIdx.x % kWarpgroup) * 16;
            const uint4 a = load_16_bytes(pipeline.at(Storage::kH) + offset), b = load_16_bytes(pipeline.at(Storage::kDh) + offset);
            sum += Bf16::low(a.x) * Bf16::low(b.x) + Bf16::high(a.x) * Bf16::high(b.x);
            sum += Bf16::low(a.y) * Bf16::low(b.y) + Bf16::high(a.y) * Bf16::high(b.y);
            sum += Bf16::low(a.z) * Bf16::low(b.z) + Bf16::high(a.z) * Bf16::high(b.z);
            sum += Bf16::low(a.w) * Bf16::low(b.w) + Bf16::high(a.w) * Bf16::high(b.w);
        }
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        return sum;
    }

    // M from dy_i . x_j; and of M o C B^T below the diagonal the sums of rows and of columns, each warp's
    // part of a column.
    DEVICE void add_pairs(float (&g)[32], float2 sums) {
        const int warp_end = at.row - lane_index() / 4 + 15;
        const u32 columns = pipeline.own(Storage::kColumns) + 256 * (warp_index() % 4);
        float row[2] = {0.f, 0.f};
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int column = 8 * j + at.column;
            float low = 0.f, high = 0.f;
            if (8 * j <= warp_end) {
                const float2 sum = load_pair(steps() + 4 * column), scale = load_pair(steps() + 256 + 4 * column);
                const uint4 kept = load_16_bytes(product_slot(j));
                const float cb[4] = {__uint_as_float(kept.x), __uint_as_float(kept.y), __uint_as_float(kept.z), __uint_as_float(kept.w)};
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int r = at.row + 8 * i;
                    const float own = i == 0 ? sums.x : sums.y;
                    const float m0 = column <= r ? g[4 * j + 2 * i] * exp2_unit(own - sum.x) * scale.x : 0.f;
                    const float m1 = column + 1 <= r ? g[4 * j + 2 * i + 1] * exp2_unit(own - sum.y) * scale.y : 0.f;
                    pairs[4 * j + 2 * i] += m0;
                    pairs[4 * j + 2 * i + 1] += m1;
                    const float t0 = column < r ? m0 * cb[2 * i] : 0.f, t1 = column + 1 < r ? m1 * cb[2 * i + 1] : 0.f;
                    low += t0;
                    high += t1;
                    row[i] += t0 + t1;
                }
            }
#pragma unroll
            for (int step = 4; step < 32; step *= 2) {
                low += __shfl_xor_sync(0xffffffffu, low, step);
                high += __shfl_xor_sync(0xffffffffu, high, step);
            }
            if (lane_index() < 4) {
                store_number(columns + 4 * column, low);
                store_number(columns + 4 * column + 4, high);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            row[i] = quad_sum(row[i]);
            if (at.column == 0) store_number(pipeline.own(Storage::kRows) + 4 * at.row + 32 * i, row[i]);
        }
    }

    // One warp, two tokens a lane. Pairs (i, j) with i >= k > j: what columns before k hold, less what rows
    // before k hold of them. In f32, and of one chunk, the difference loses nothing that matters.
    DEVICE void store_decays(float* to, float last) const {
        const u32 own = 8 * lane_index();
        float2 column{0.f, 0.f};
        float pass = 0.f;
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            const float2 part = load_pair(pipeline.own(Storage::kColumns) + 256 * w + own);
            column.x += part.x;
            column.y += part.y;
            pass += load_number(pipeline.own(Storage::kPass) + 4 * w);
        }
        const float2 row = load_pair(pipeline.own(Storage::kRows) + own);
        const float2 entering = load_pair(pipeline.own(Storage::kEntering) + own);
        const float2 step{column.x - row.x, column.y - row.y};
        const float2 inside = Base::sums_before(step), behind = Base::sums_behind(entering);
        reinterpret_cast<float2*>(to)[lane_index()] =
            float2{inside.x - step.x + behind.x + last * pass, inside.y - step.y + behind.y + last * pass};
    }

    DEVICE void finish() {
        u32 operand[16];
        wgmma::pack<Bf16>(operand, pairs);
        const u32 tile = pipeline.own(Storage::kOut);
        named_sync(3, 2 * kWarpgroup);  // the columns' last rows have left the tile
        store_product<64, 64>(tile, 0, operand);
        fence_shared_for_async();
        named_sync(4, 2 * kWarpgroup);
        wgmma::settle(operand);
        wgmma::settle(dc);
        wgmma::arrive();
        wgmma::product<Bf16, kState, 4, wgmma::OverRows<64>>(dc, operand, pipeline.own(Storage::kB), true);
        wgmma::commit();
        wgmma::wait<0>();
        wgmma::settle(dc);
        this->store_sum(params.dc, dc);
    }
};

}  // namespace danaus::ssd
