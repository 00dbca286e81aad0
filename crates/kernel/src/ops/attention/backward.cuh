// Attention backward on Hopper: dk and dv of one tile of keys stay in registers, dq is added up in turn.
//
//     s^T = k q^T, p^T = 2^(c s - L)          dp^T = v dout^T, ds = p (dp - delta)
//     dv += p^T dout, dk += ds^T q (registers)   dq += ds k (through shared memory, f32)
//
// Two consumer warpgroups own 64 keys each. Scores are computed transposed, so that p^T and ds^T are A
// operands where they stand; only ds goes through shared memory, for dq needs all 128 keys. At head dim
// 128 the warpgroups share dq along the head dim (as dq^T = k^T ds^T), at 64 along the rows.
//
// The loop is turned so that a visit begins with s and dp of its row block at hand and computes those of
// the next one: s^T runs while dk does, dp^T under the exponentials, dv under the hand-over of ds, dk
// under that of dq. dq lags one visit behind: by then both warpgroups have handed over their ds, so
// neither waits and each can fill the tensor cores while the other computes ds. No product is in flight
// across the loop's edge: ptxas serialises those.
//
// A launch file defines `Config` and calls `backward<Config>`:
//   Element, kHeadDim (64 or 128), kBlockM, kBlockN (128), kStages, kScoreStages, kSumStages
//   kCausal, kWindowLeft, kWindowRight, kSoftcap, kPacked   as forward
//   kProducerRegisters, kConsumerRegisters
#pragma once

#include "attention/backward_epilogue.cuh"
#include "attention/backward_pipeline.cuh"
#include "attention/mask.cuh"

namespace danaus::attention {

template <class Config>
struct BackwardConsumer {
    using Element = typename Config::Element;
    using Storage = BackwardStorage<Config>;
    using Pipeline = BackwardPipeline<Config>;
    static constexpr int kM = Config::kBlockM, kN = Config::kBlockN, kDim = Config::kHeadDim;
    static constexpr int kConsumerThreads = 2 * kWarpgroup;
    static constexpr int kAllConsumers = 1, kWarpgroups = 2;  // named barriers
    static constexpr bool kTransposedSum = kDim == 128;       // dq^T, 64 of the head dim a warpgroup
    static constexpr int kSumColumns = kTransposedSum ? kM : kDim;
    using RowsOf = wgmma::AlongRows<kM>;
    using OverRowsOf = wgmma::OverRows<kM>;

    const BackwardMaps& maps;
    const BackwardParams& params;
    const Pipeline pipeline;
    const int warpgroup;
    const int key;  // of this thread's first row; the second is 8 further
    u32 at = 0;     // the visit, which is the position in every ring

    float s[kM / 2];   // s^T, then p^T
    float dp[kM / 2];  // dp^T, then ds^T
    float dk[kDim / 2];
    float dv[kDim / 2];

    u32 p[kM / 4];

    DEVICE BackwardConsumer(const BackwardMaps& maps, const BackwardParams& params, const Pipeline& pipeline, int warpgroup, int n)
        : maps(maps), params(params), pipeline(pipeline), warpgroup(warpgroup),
          key(n * kN + 64 * warpgroup + 16 * (warp_index() % 4) + lane_index() / 4) {}

    DEVICE void run(const Tile& tile, const Sequence& sequence, const Visits<Config>& visits) {
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) dk[i] = dv[i] = 0.f;
        pipeline.key_full.wait(0);
        clear_keys_beyond(sequence.k_len - visits.n * kN);
        int remaining = visits.count() * params.problem.group;
        if (remaining > 0) {
            int m = visits.first();
            issue_scores();
            finish_scores(visits, sequence, m);
            for (; remaining > 1; --remaining) {
                m = visits.next(m);
                visit<true>(visits, sequence, m);
            }
            visit<false>(visits, sequence, m);
            last_sum();
        }
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) dk[i] *= params.softmax_scale;
        named_sync(kAllConsumers, kConsumerThreads);
        stage_key_gradient<Config>(pipeline.key(), warpgroup, dk);
        stage_key_gradient<Config>(pipeline.value(), warpgroup, dv);
        fence_shared_for_async();
        named_sync(kAllConsumers, kConsumerThreads);
        store_key_gradients<Config>(maps, params, pipeline, tile, sequence, visits.n);
    }

private:
    DEVICE static void release(Barrier empty) {
        if (lane_index() == 0) empty.arrive();
    }

    // s^T = k q^T of the row block of this visit.
    DEVICE void issue_scores() {
        const typename Pipeline::Rows ring{at};
        pipeline.query_full[ring.stage()].wait(ring.consumer());
        wgmma::settle(s);
        wgmma::arrive();
        wgmma::product<Element, kM, kDim / 16, wgmma::AlongRows<kN>, RowsOf>(s, pipeline.key() + warpgroup * (64 * 128), pipeline.query(ring.stage()), false);
        wgmma::commit();
    }

    // dp^T = v dout^T, and p under it. The scores are the only product in flight.
    DEVICE void finish_scores(const Visits<Config>& visits, const Sequence& sequence, int m) {
        const typename Pipeline::Rows ring{at};
        const u32 stage = ring.stage();
        pipeline.grad_full[stage].wait(ring.consumer());
        clear_queries_beyond(sequence.q_len - m * kM);
        wgmma::settle(dp);
        wgmma::arrive();
        wgmma::product<Element, kM, kDim / 16, wgmma::AlongRows<kN>, RowsOf>(dp, pipeline.value() + warpgroup * (64 * 128), pipeline.grad_out(stage), false);
        wgmma::commit();
        wgmma::wait<1>();
        wgmma::settle(s);
        cap_scores<Config>(s, params.problem);
        if (visits.masked(m)) mask_transposed_scores<Config>(s, visits.band, key, m);
        probabilities(stage);
        wgmma::settle(s);
        wgmma::hold_wait(s, pipeline.number());
        wgmma::wait<0>();
        wgmma::settle(dp);
    }

    // dk and dv of this visit's row block and dq of the one before (at first there is none, and the product
    // is of whatever was there); then the scores of `next`, if there is one.
    template <bool kMore>
    DEVICE void visit(const Visits<Config>& visits, const Sequence& sequence, int next) {
        const u32 stage = typename Pipeline::Rows{at}.stage();
        u32 ds[kM / 4];
        score_gradients(stage);
        if constexpr (!Config::kSoftcap) wgmma::pack<Element>(p, s);
        wgmma::pack<Element>(ds, dp);
        wgmma::settle(p);
        wgmma::settle(dv);
        wgmma::arrive();
        wgmma::product<Element, kDim, kM / 16, OverRowsOf>(dv, p, pipeline.grad_out(stage), true);
        wgmma::commit();

        hand_over_scores(ds);
        float dq[kSumColumns / 2];
        await_scores(at - 1);
        wgmma::settle(dq);
        wgmma::settle(ds);
        wgmma::settle(dk);
        wgmma::arrive();
        issue_sum(dq, at - 1);
        wgmma::product<Element, kDim, kM / 16, OverRowsOf>(dk, ds, pipeline.query(stage), true);
        wgmma::commit();
        wgmma::wait<1>();
        wgmma::settle(dq);
        wgmma::settle(dv);
        wgmma::settle(p);
        release(pipeline.grad_empty[stage]);
        if (at > 0) write_sum(dq, at - 1);
        ++at;
        if constexpr (kMore) issue_scores();
        wgmma::wait<kMore ? 1 : 0>();
        wgmma::settle(dk);
        wgmma::settle(ds);
        release(pipeline.query_empty[stage]);
        if constexpr (kMore) finish_scores(visits, sequence, next);
    }

    DEVICE void last_sum() {
        float dq[kSumColumns / 2];
        await_scores(at - 1);
        wgmma::settle(dq);
        wgmma::arrive();
        issue_sum(dq, at - 1);
        wgmma::wait<0>();
        wgmma::settle(dq);
        write_sum(dq, at - 1);
    }

    DEVICE void hand_over_scores(const u32 (&ds)[kM / 4]) {
        const typename Pipeline::Scores ring{at};
        pipeline.score_empty[ring.stage()].wait(ring.producer());
        store_product_transposed<kM, kM>(pipeline.score(ring.stage()), 64 * warpgroup, ds);
        fence_shared_for_async();
        __syncwarp();
        release(pipeline.score_full[ring.stage()]);
    }

    // Visit -1 has the odd parity, for which a fresh barrier does not block.
    DEVICE void await_scores(u32 visit) const {
        const typename Pipeline::Scores ring{visit};
        pipeline.score_full[ring.stage()].wait(ring.consumer());
    }

    // Two neighbouring statistics of the thread's columns 8 j + 2 t.
    DEVICE static float2 statistics(u32 tile, int j) {
        float2 pair;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(tile + 32 * j + 8 * (lane_index() % 4)) : "memory");
        return pair;
    }

    // s to p; with softcap to p times the derivative of the cap, and p packed at once.
    DEVICE void probabilities(u32 stage) {
        const float c = params.problem.exponent_factor;
#pragma unroll
        for (int j = 0; j < kM / 8; ++j) {
            const float2 log_sum_exp = statistics(pipeline.log_sum_exp(stage), j);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float &a = s[4 * j + 2 * i], &b = s[4 * j + 2 * i + 1];
                const float2 tanh{a, b};
                a = exp2_unit(fmaf(a, c, -log_sum_exp.x));
                b = exp2_unit(fmaf(b, c, -log_sum_exp.y));
                if constexpr (Config::kSoftcap) {
                    p[2 * j + i] = Element::pack(a, b);
                    // A hidden key has tanh = -inf and probability 0.
                    a = a > 0.f ? a * fmaf(-tanh.x, tanh.x, 1.f) : 0.f;
                    b = b > 0.f ? b * fmaf(-tanh.y, tanh.y, 1.f) : 0.f;
                }
            }
        }
    }

    // dp to ds = p (dp - delta).
    DEVICE void score_gradients(u32 stage) {
#pragma unroll
        for (int j = 0; j < kM / 8; ++j) {
            const float2 delta = statistics(pipeline.delta(stage), j);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float &a = dp[4 * j + 2 * i], &b = dp[4 * j + 2 * i + 1];
                a = s[4 * j + 2 * i] * (a - delta.x);
                b = s[4 * j + 2 * i + 1] * (b - delta.y);
            }
        }
    }

    // This warpgroup's part of dq = ds k.
    DEVICE void issue_sum(float (&dq)[kSumColumns / 2], u32 visit) const {
        const u32 scores = pipeline.score(typename Pipeline::Scores{visit}.stage());
        if constexpr (kTransposedSum) {
            wgmma::product<Element, kSumColumns, kN / 16, wgmma::OverRows<kN>, RowsOf>(dq, pipeline.key() + warpgroup * (kN * 128), scores, false);
        } else {
            wgmma::product<Element, kSumColumns, kN / 16, RowsOf, wgmma::OverRows<kN>>(dq, scores + warpgroup * (64 * 128), pipeline.key(), false);
        }
        wgmma::commit();
    }

    // Frees the ds behind dq and sends dq to the writer. Registers go out as they are, 16 bytes a thread
    // side by side.
    DEVICE void write_sum(const float (&dq)[kSumColumns / 2], u32 visit) const {
        release(pipeline.score_empty[typename Pipeline::Scores{visit}.stage()]);
        const typename Pipeline::Sums ring{visit};
        pipeline.sum_empty[ring.stage()].wait(ring.producer());
        const u32 start = pipeline.sum(ring.stage()) + warpgroup * (Storage::kSumBytes / 2) + 16 * (threadIdx.x % kWarpgroup);
#pragma unroll
        for (int i = 0; i < kSumColumns / 8; ++i) {
            store_16_bytes(start + i * (16 * kWarpgroup), uint4{__float_as_uint(dq[4 * i]), __float_as_uint(dq[4 * i + 1]),
                                                                __float_as_uint(dq[4 * i + 2]), __float_as_uint(dq[4 * i + 3])});
        }
        fence_shared_for_async();
        __syncwarp();
        release(pipeline.sum_full[ring.stage()]);
    }

    // A packed sequence's last tile holds the next sequence's rows, which may be infinite: 0 times them
    // would be NaN. Each warpgroup clears them for itself; both write the same zeros.
    template <int kRows>
    DEVICE void clear_pair(u32 tile, u32 other, int first) const {
        clear_rows<kRows, kDim>(tile, first);
        clear_rows<kRows, kDim>(other, first);
        fence_shared_for_async();
        named_sync(kWarpgroups + warpgroup, kWarpgroup);
    }

    DEVICE void clear_keys_beyond(int rows) const {
        if (!Config::kPacked || rows >= kN) return;
        clear_pair<kN>(pipeline.key(), pipeline.value(), rows);
    }

    DEVICE void clear_queries_beyond(int rows) const {
        if (!Config::kPacked || rows >= kM) return;
        const u32 stage = typename Pipeline::Rows{at}.stage();
        clear_pair<kM>(pipeline.query(stage), pipeline.grad_out(stage), rows);
    }
};

template <class Config>
DEVICE void backward(const BackwardMaps& maps, const BackwardParams& params) {
    const BackwardPipeline<Config> pipeline;
    if (threadIdx.x == 0) {
        const int number = atomicAdd(params.schedule.ticket, 1);
        if (number == params.schedule.tiles - 1) *params.schedule.ticket = 0;
        asm volatile("st.shared.s32 [%0], %1;" ::"r"(pipeline.number()), "r"(number) : "memory");
        pipeline.init();
    }
    __syncthreads();
    int number;
    asm volatile("ld.shared.s32 %0, [%1];" : "=r"(number) : "r"(pipeline.number()) : "memory");
    const Problem& problem = params.problem;
    const Tile tile = tile_of(params.schedule, problem.heads / problem.group, problem.batch, number);
    const Sequence sequence = Sequence::of<Config>(problem, tile.batch);
    const Visits<Config> visits(params, sequence, tile);
    if (visits.n * Config::kBlockN >= sequence.k_len) return;
    const int warp = warp_index(), warpgroup = warp / 4;
    if (warpgroup == 0) {
        release_registers<Config::kProducerRegisters>();
        if (lane_index() != 0) return;
        if (warp == 0) {
            BackwardProducer<Config>{maps, params, pipeline}.run(tile, sequence, visits);
        } else if (warp <= Config::kSumStages) {
            SumWriter<Config>{params, pipeline}.run(tile, sequence, visits, warp - 1);
        }
    } else {
        claim_registers<Config::kConsumerRegisters>();
        BackwardConsumer<Config>(maps, params, pipeline, warpgroup - 1, visits.n).run(tile, sequence, visits);
    }
}

}  // namespace danaus::attention
