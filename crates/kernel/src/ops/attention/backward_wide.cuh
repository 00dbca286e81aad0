// Attention backward on Hopper at head dims beyond 128, in two kernels without sums across thread blocks.
//
//     keys:     s^T = k q^T, dp^T = v dout^T,  dv += p^T dout, dk += ds^T q     for a tile of 64 keys
//     queries:  s = q k^T, dp = dout v^T,      dq += ds k                       for a tile of 128 queries
//
// Both compute the scores: 7 products where backward.cuh has 5. In return nothing is added in global
// memory. One kernel would send 64 KiB of dq for each 64 x 64 block of scores, since the registers hold dk
// and dv of 64 keys at most; that is more than the L2 adds at the speed of the products.
//
// In the kernel for keys the warpgroups differ: one owns s and dv, the other dp and dk, and the first
// hands p over through shared memory in 16 bits. Each runs the loop of the forward pass: the scores of the
// next block are computed after the sums of this one, exponentials under the other warpgroup's products. In the kernel for
// queries each warpgroup owns 64 rows.
//
// A launch file defines `Config`: Element, kHeadDim (192 or 256), kBlockM and kBlockN (64), kCausal,
// kWindowLeft, kWindowRight, kSoftcap, kPacked, kProducerRegisters, kConsumerRegisters.
#pragma once

#include "attention/backward_wide_pipeline.cuh"
#include "attention/epilogue.cuh"
#include "attention/mask.cuh"

namespace danaus::attention {

// One arrival a warp, once all its lanes are past their last read.
DEVICE void release_stage(Barrier empty) {
    if (lane_index() == 0) empty.arrive();
}

DEVICE float2 load_pair(u32 address) {
    float2 pair;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(address) : "memory");
    return pair;
}

// The 64 rows of a gradient in a warpgroup's registers, through the tile at `staged`, which nobody else
// reads. The copy engine would write a packed sequence's last rows on into the next one: those go by hand.
template <class Config>
DEVICE void store_gradient(const float (&gradient)[Config::kHeadDim / 2], u32 staged, const TensorMap& map, const Rows& rows,
                           int first, int count, int head, int batch, int barrier) {
    u32 packed[Config::kHeadDim / 4];
    wgmma::pack<typename Config::Element>(packed, gradient);
    named_sync(barrier, kWarpgroup);
    store_product<64, Config::kHeadDim>(staged, 0, packed);
    fence_shared_for_async();
    named_sync(barrier, kWarpgroup);
    if (Config::kPacked && count < 64) {
        for_rows<Config::kHeadDim, kWarpgroup>(rows, batch, head, first, max(0, count),
                                               [=](uint4* out, int row, int chunk) { *out = load_16_bytes(staged + swizzled<64>(row, chunk)); });
    } else if (threadIdx.x % kWarpgroup == 0) {
        store_tile(map, staged, {first, head, batch});
        commit_stores();
        wait_stores_read<0>();
    }
}

template <class Config>
struct KeysConsumer {
    using Element = typename Config::Element;
    using Pipeline = KeysPipeline<Config>;
    static constexpr int kDim = Config::kHeadDim;
    using Along = wgmma::AlongRows<64>;
    using Over = wgmma::OverRows<64>;

    const WideMaps& maps;
    const WideParams& params;
    const Pipeline pipeline;
    const Visits<Config>& visits;
    const Sequence& sequence;
    const int warpgroup;  // 0: s and dv; 1: dp and dk
    u32 at = 0;           // the visit whose scores are computed

    float s[32];           // s^T to p^T, or dp^T to ds^T
    float sum[kDim / 2];   // dv or dk
    u32 packed[16];        // p^T or ds^T of the visit before

    DEVICE KeysConsumer(const WideMaps& maps, const WideParams& params, const Pipeline& pipeline, const Visits<Config>& visits,
                        const Sequence& sequence, int warpgroup)
        : maps(maps), params(params), pipeline(pipeline), visits(visits), sequence(sequence), warpgroup(warpgroup) {}

    // kValues: this is the warpgroup of s and dv.
    template <bool kValues>
    DEVICE void run(const Tile& tile) {
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) sum[i] = 0.f;
        pipeline.key_full[kValues ? 0 : 1].wait(0);
        int remaining = visits.count() * params.problem.group;
        if (remaining > 0) {
            int m = visits.first();
            await_scores<kValues>(m);
            wgmma::settle(s);
            wgmma::arrive();
            issue_scores<kValues>();
            wgmma::wait<0>();
            wgmma::settle(s);
            release_scores<kValues>();
            finish_scores<kValues>(m);
            wgmma::pack<Element>(packed, s);
            hand_over<kValues>();
            for (; remaining > 1; --remaining) {
                const int next = visits.next(m);
                step<kValues>(m, next);
                m = next;
            }
            await_sums<kValues>(at, m);
            wgmma::settle(packed);
            wgmma::settle(sum);
            wgmma::arrive();
            issue_sums<kValues>(at);
            wgmma::wait<0>();
            wgmma::settle(sum);
        }
        if constexpr (!kValues) {
#pragma unroll
            for (int i = 0; i < kDim / 2; ++i) sum[i] *= params.softmax_scale;
        }
        const int first = visits.n * 64;
        store_gradient<Config>(sum, kValues ? pipeline.key() : pipeline.value(), kValues ? maps.dv : maps.dk, kValues ? params.dv : params.dk,
                               sequence.k_start + first, min(64, sequence.k_len - first), tile.head, Config::kPacked ? 0 : tile.batch, 1 + warpgroup);
    }

private:
    // Operands of the scores of visit `at`: queries, or output gradients.
    template <bool kValues>
    DEVICE void await_scores(int m) const {
        const typename Pipeline::Ring ring{at};
        const u32 stage = ring.stage();
        (kValues ? pipeline.query_full : pipeline.grad_full)[stage].wait(ring.consumer());
        clear_beyond(kValues ? pipeline.query(stage) : pipeline.grad_out(stage), m);
    }

    // Operands of the sums of a visit: output gradients, or queries.
    template <bool kValues>
    DEVICE void await_sums(u32 visit, int m) const {
        const typename Pipeline::Ring ring{visit};
        const u32 stage = ring.stage();
        (kValues ? pipeline.grad_full : pipeline.query_full)[stage].wait(ring.consumer());
        clear_beyond(kValues ? pipeline.grad_out(stage) : pipeline.query(stage), m);
    }

    // A packed sequence's last rows are the next sequence's, which may be infinite: 0 times them would be
    // NaN. Both warpgroups clear them, each before it reads.
    DEVICE void clear_beyond(u32 rows, int m) const {
        if constexpr (Config::kPacked) {
            const int count = sequence.q_len - m * 64;
            if (count >= 64) return;
            clear_rows<64, kDim>(rows, count);
            fence_shared_for_async();
            named_sync(1 + warpgroup, kWarpgroup);
        }
    }

    template <bool kValues>
    DEVICE void issue_scores() {
        const u32 stage = typename Pipeline::Ring{at}.stage();
        wgmma::product<Element, 64, kDim / 16, Along, Along>(s, kValues ? pipeline.key() : pipeline.value(),
                                                           kValues ? pipeline.query(stage) : pipeline.grad_out(stage), false);
        wgmma::commit();
    }

    template <bool kValues>
    DEVICE void issue_sums(u32 visit) {
        const u32 stage = typename Pipeline::Ring{visit}.stage();
        wgmma::product<Element, kDim, 4, Over>(sum, packed, kValues ? pipeline.grad_out(stage) : pipeline.query(stage), true);
        wgmma::commit();
    }

    // s to p, or dp to ds.
    template <bool kValues>
    DEVICE void finish_scores(int m) {
        const typename Pipeline::Ring ring{at};
        const u32 stage = ring.stage(), column = 8 * (lane_index() % 4);
        if constexpr (kValues) {
            const float c = params.problem.exponent_factor;
            cap_scores<Config>(s, params.problem);
            const int key = visits.n * 64 + 16 * (warp_index() % 4) + lane_index() / 4;
            if (visits.masked(m)) mask_transposed_scores<Config>(s, visits.band, key, m);
            u32 slopes[16];
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float2 log_sum_exp = load_pair(pipeline.log_sum_exp(stage) + 32 * j + column);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float &a = s[4 * j + 2 * i], &b = s[4 * j + 2 * i + 1];
                    const float2 tanh{a, b};
                    a = exp2_unit(fmaf(a, c, -log_sum_exp.x));
                    b = exp2_unit(fmaf(b, c, -log_sum_exp.y));
                    // A hidden key has tanh = -inf and probability 0.
                    if constexpr (Config::kSoftcap) {
                        slopes[2 * j + i] = Element::pack(a > 0.f ? a * fmaf(-tanh.x, tanh.x, 1.f) : 0.f, b > 0.f ? b * fmaf(-tanh.y, tanh.y, 1.f) : 0.f);
                    }
                }
            }
            if constexpr (Config::kSoftcap) send(slopes);
        } else {
            pipeline.score_full[stage].wait(ring.consumer());
            const u32 start = pipeline.score(stage) + 16 * (threadIdx.x % kWarpgroup);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const uint4 four = load_16_bytes(start + k * (16 * kWarpgroup));
                const u32 p[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (int j = 2 * k; j < 2 * k + 2; ++j) {
                    const float2 delta = load_pair(pipeline.delta(stage) + 32 * j + column);
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        float &a = s[4 * j + 2 * i], &b = s[4 * j + 2 * i + 1];
                        a = Element::low(p[2 * (j % 2) + i]) * (a - delta.x);
                        b = Element::high(p[2 * (j % 2) + i]) * (b - delta.y);
                    }
                }
            }
            __syncwarp();
            release_stage(pipeline.score_empty[stage]);
        }
    }

    // What ds takes from p, to the other warpgroup: registers as they are, 16 bytes a thread side by side.
    DEVICE void send(const u32 (&values)[16]) const {
        const typename Pipeline::Ring ring{at};
        pipeline.score_empty[ring.stage()].wait(ring.producer());
        const u32 start = pipeline.score(ring.stage()) + 16 * (threadIdx.x % kWarpgroup);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            store_16_bytes(start + i * (16 * kWarpgroup), uint4{values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3]});
        }
        __syncwarp();
        release_stage(pipeline.score_full[ring.stage()]);
    }

    template <bool kValues>
    DEVICE void hand_over() const {
        if constexpr (kValues && !Config::kSoftcap) send(packed);
    }

    // A stage is free when both warpgroups have read it: one for scores, early, the other for sums.
    template <bool kValues>
    DEVICE void release_scores() const {
        release_stage((kValues ? pipeline.query_empty : pipeline.grad_empty)[typename Pipeline::Ring{at}.stage()]);
    }

    template <bool kValues>
    DEVICE void release_sums(u32 visit) const {
        release_stage((kValues ? pipeline.grad_empty : pipeline.query_empty)[typename Pipeline::Ring{visit}.stage()]);
    }

    // The sums of row block m, then the scores of the next: in this order, so that the stage of the sums is
    // free for half a round before its next rows are wanted.
    template <bool kValues>
    DEVICE void step(int m, int next) {
        await_sums<kValues>(at, m);
        wgmma::settle(packed);
        wgmma::settle(sum);
        wgmma::settle(s);
        wgmma::arrive();
        issue_sums<kValues>(at);
        ++at;
        await_scores<kValues>(next);
        issue_scores<kValues>();
        wgmma::wait<1>();
        wgmma::settle(sum);
        wgmma::settle(packed);
        release_sums<kValues>(at - 1);
        wgmma::wait<0>();
        wgmma::settle(s);
        release_scores<kValues>();
        finish_scores<kValues>(next);
        wgmma::pack<Element>(packed, s);
        hand_over<kValues>();
    }
};

template <class Config>
struct QueriesConsumer {
    using Element = typename Config::Element;
    using Pipeline = QueriesPipeline<Config>;
    static constexpr int kDim = Config::kHeadDim;
    using Along = wgmma::AlongRows<64>;

    const WideMaps& maps;
    const WideParams& params;
    Pipeline pipeline;
    const int warpgroup;
    float log_sum_exp[2], delta[2];

    float s[32];
    float dp[32];
    float dq[kDim / 2];
    u32 ds[16];

    DEVICE QueriesConsumer(const WideMaps& maps, const WideParams& params, const Pipeline& pipeline, int warpgroup)
        : maps(maps), params(params), pipeline(pipeline), warpgroup(warpgroup) {}

    DEVICE void run(const Tile& tile, const Sequence& sequence, int first_of_block, const KeyTiles& tiles, const Band<Config>& band) {
        const int first = first_of_block + 64 * warpgroup, own = first + 16 * (warp_index() % 4) + lane_index() / 4;
        load_statistics(tile, sequence, first, own);
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) dq[i] = 0.f;
        if (!tiles.empty()) {
            int n = tiles.begin;
            pipeline.rows_full.wait(0);
            clear_own_rows(sequence.q_len - first);
            await_key(sequence.k_len - n * 64);
            await_value(sequence.k_len - n * 64);
            wgmma::settle(s);
            wgmma::settle(dp);
            wgmma::arrive();
            issue_scores();
            issue_gradients();
            wgmma::wait<1>();
            wgmma::settle(s);
            probabilities<true>(band, own, n);
            wgmma::settle(s);
            wgmma::hold_wait(s, pipeline.scratch());
            wgmma::wait<0>();
            wgmma::settle(dp);
            release_value();
            score_gradients();
            wgmma::pack<Element>(ds, dp);
            ++n;
            for (; n < min(tiles.full_begin, tiles.end); ++n) step<true>(sequence, band, own, n);
            for (; n < min(tiles.full_end, tiles.end); ++n) step<false>(sequence, band, own, n);
            for (; n < tiles.end; ++n) step<true>(sequence, band, own, n);
            wgmma::settle(ds);
            wgmma::settle(dq);
            wgmma::arrive();
            issue_sum(pipeline.keys.stage);
            wgmma::wait<0>();
            wgmma::settle(dq);
        }
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) dq[i] *= params.softmax_scale;
        store_gradient<Config>(dq, pipeline.query(warpgroup), maps.dq, params.dq, sequence.q_start + first, min(64, sequence.q_len - first),
                               tile.head, Config::kPacked ? 0 : tile.batch, 1 + warpgroup);
    }

private:
    DEVICE void load_statistics(const Tile& tile, const Sequence& sequence, int first, int own) {
        const i64 start = static_cast<i64>(row_block<Config>(params, sequence, tile.batch, tile.head)) * 64;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const bool exists = first < sequence.q_len;  // statistics cover whole blocks of rows
            log_sum_exp[i] = exists ? params.log_sum_exp_2[start + own + 8 * i] : kInfinity;
            delta[i] = exists ? params.delta[start + own + 8 * i] : 0.f;
        }
    }

    DEVICE void clear(u32 tile, int rows) const {
        if constexpr (Config::kPacked) {
            if (rows >= 64) return;
            clear_rows<64, kDim>(tile, max(0, rows));
            fence_shared_for_async();
            named_sync(1 + warpgroup, kWarpgroup);
        }
    }

    DEVICE void clear_own_rows(int rows) const {
        clear(pipeline.query(warpgroup), rows);
        clear(pipeline.grad_out(warpgroup), rows);
    }

    DEVICE void await_key(int rows) const {
        pipeline.key_full[pipeline.keys.stage].wait(pipeline.keys.consumer());
        clear(pipeline.key(pipeline.keys.stage), rows);
    }

    DEVICE void await_value(int rows) const {
        pipeline.value_full[pipeline.values.stage].wait(pipeline.values.consumer());
        clear(pipeline.value(pipeline.values.stage), rows);
    }

    DEVICE void release_value() {
        release_stage(pipeline.value_empty[pipeline.values.stage]);
        pipeline.values.advance();
    }

    DEVICE void issue_scores() {
        wgmma::product<Element, 64, kDim / 16, Along, Along>(s, pipeline.query(warpgroup), pipeline.key(pipeline.keys.stage), false);
        wgmma::commit();
    }

    DEVICE void issue_gradients() {
        wgmma::product<Element, 64, kDim / 16, Along, Along>(dp, pipeline.grad_out(warpgroup), pipeline.value(pipeline.values.stage), false);
        wgmma::commit();
    }

    DEVICE void issue_sum(int stage) {
        wgmma::product<Element, kDim, 4, wgmma::OverRows<64>>(dq, ds, pipeline.key(stage), true);
        wgmma::commit();
    }

    template <bool kMasked>
    DEVICE void probabilities(const Band<Config>& band, int own, int n) {
        const float c = params.problem.exponent_factor;
        cap_scores<Config>(s, params.problem);
        if constexpr (kMasked) mask_scores<Config>(s, band, own, n);
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            const float tanh = s[i];
            s[i] = exp2_unit(fmaf(s[i], c, -log_sum_exp[i / 2 % 2]));
            if constexpr (Config::kSoftcap) s[i] = s[i] > 0.f ? s[i] * fmaf(-tanh, tanh, 1.f) : 0.f;
        }
    }

    DEVICE void score_gradients() {
#pragma unroll
        for (int i = 0; i < 32; ++i) dp[i] = s[i] * (dp[i] - delta[i / 2 % 2]);
    }

    // The sum of the tile before, then scores and their gradients of tile n: in this order, so that the
    // stage of the keys before is free for most of a round before its next keys are wanted.
    template <bool kMasked>
    DEVICE void step(const Sequence& sequence, const Band<Config>& band, int own, int n) {
        const int before = pipeline.keys.stage;
        pipeline.keys.advance();
        wgmma::settle(s);
        wgmma::settle(dp);
        wgmma::settle(ds);
        wgmma::settle(dq);
        wgmma::arrive();
        issue_sum(before);
        await_key(sequence.k_len - n * 64);
        issue_scores();
        wgmma::wait<1>();
        wgmma::settle(dq);
        wgmma::settle(ds);
        release_stage(pipeline.key_empty[before]);
        await_value(sequence.k_len - n * 64);
        issue_gradients();
        wgmma::wait<1>();
        wgmma::settle(s);
        probabilities<kMasked>(band, own, n);
        wgmma::settle(s);
        wgmma::hold_wait(s, pipeline.scratch());
        wgmma::wait<0>();
        wgmma::settle(dp);
        release_value();
        score_gradients();
        wgmma::pack<Element>(ds, dp);
    }
};

template <class Config>
DEVICE void backward_keys(const WideMaps& maps, const WideParams& params) {
    const KeysPipeline<Config> pipeline;
    if (threadIdx.x == 0) pipeline.init();
    __syncthreads();
    const Problem& problem = params.problem;
    Tile tile = tile_of(params.schedule, problem.heads / problem.group, problem.batch, blockIdx.x);
    tile.last_section = true;  // nobody waits for another: the longest tiles start first
    const Sequence sequence = Sequence::of<Config>(problem, tile.batch);
    const Visits<Config> visits(params, sequence, tile);
    if (visits.n * 64 >= sequence.k_len) return;
    const int warpgroup = warp_index() / 4;
    if (warpgroup == 0) {
        release_registers<Config::kProducerRegisters>();
        if (threadIdx.x == 0) KeysProducer<Config>{maps, params, pipeline}.run(tile, sequence, visits);
    } else {
        claim_registers<Config::kConsumerRegisters>();
        KeysConsumer<Config> consumer(maps, params, pipeline, visits, sequence, warpgroup - 1);
        if (warpgroup == 1) {
            consumer.template run<true>(tile);
        } else {
            consumer.template run<false>(tile);
        }
    }
}

template <class Config>
DEVICE void backward_queries(const WideMaps& maps, const WideParams& params) {
    const QueriesPipeline<Config> pipeline;
    if (threadIdx.x == 0) pipeline.init();
    __syncthreads();
    const Problem& problem = params.problem;
    const Tile tile = tile_of(params.query_schedule, problem.heads, problem.batch, blockIdx.x);
    const Sequence sequence = Sequence::of<Config>(problem, tile.batch);
    const int first = 128 * (Config::kCausal ? params.query_schedule.tiles_of_head - 1 - tile.order : tile.order);
    if (first >= sequence.q_len) return;
    const Band<Config> band(problem, sequence);
    const KeyTiles tiles = KeyTiles::of<Config>(band, first, min(first + 128, sequence.q_len));
    const int warpgroup = warp_index() / 4;
    if (warpgroup == 0) {
        release_registers<Config::kProducerRegisters>();
        if (threadIdx.x == 0) QueriesProducer<Config>{maps, params, pipeline}.run(tile, sequence, first, tiles);
    } else {
        claim_registers<Config::kConsumerRegisters>();
        QueriesConsumer<Config>(maps, params, pipeline, warpgroup - 1).run(tile, sequence, first, tiles, band);
    }
}

}  // namespace danaus::attention
