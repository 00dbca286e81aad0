// Attention forward on Hopper: one producer thread feeds two or three consumer warpgroups.
//
//     s = q k^T,  p = 2^(c s - r),  o = o 2^(r_old - r) + p v,  l = l 2^(r_old - r) + rowsum p
//     out = o / l,  lse = r ln 2 + ln l
//
// Each consumer warpgroup owns 64 query rows and keeps s, p and o in registers. Two kinds of work
// overlap with the exponentials, which take about as long as the products at head dim 64 and half as
// long at 128: the same warpgroup's own product p v of the tile before (issued first, awaited after
// softmax), and the other warpgroups' products (turns: a warpgroup issues its two products only when
// it is its turn, so that one computes exponentials while another has the tensor cores).
//
// A launch file defines `Config` and calls `forward<Config>`:
//   Element                    Bf16 or F16
//   kHeadDim, kValueDim        multiples of 64
//   kBlockM, kBlockN, kStages  query rows of a block, keys of a tile, depth of the rings
//   kCausal, kWindowLeft, kWindowRight, kSoftcap, kPacked   what the problem asks for
//   kTurns, kOutOverQuery, kLastFirst                       how it is done
//   kProducerRegisters, kConsumerRegisters                  after the shares are moved
#pragma once

#include "attention/epilogue.cuh"
#include "attention/forward_pipeline.cuh"
#include "attention/mask.cuh"

namespace danaus::attention {

template <class Config>
struct ForwardConsumer {
    using Element = typename Config::Element;
    using Storage = ForwardStorage<Config>;
    static constexpr int kConsumers = Storage::kConsumers;
    static constexpr int kFirstTurn = 1, kFirstEpilogue = kFirstTurn + kConsumers;  // named barriers

    const TensorMap& out_map;
    const ForwardParams& params;
    ForwardPipeline<Config> pipeline;
    const int warpgroup;

    float s[Config::kBlockN / 2];
    u32 p[Config::kBlockN / 4];
    float o[Config::kValueDim / 2];

    DEVICE ForwardConsumer(const TensorMap& out_map, const ForwardParams& params, const ForwardPipeline<Config>& pipeline, int warpgroup)
        : out_map(out_map), params(params), pipeline(pipeline), warpgroup(warpgroup) {}

    DEVICE void run() {
        // The first turn is free: the last warpgroup passes it on.
        if (Config::kTurns && warpgroup == kConsumers - 1) pass_turn();
        for (int number = pipeline.mail.receive(); number >= 0; number = pipeline.mail.receive()) {
            const Problem& problem = params.problem;
            const Tile tile = tile_of(params.schedule, problem.heads, problem.batch, number);
            const Sequence sequence = Sequence::of<Config>(problem, tile.batch);
            const int first = first_query<Config>(params.schedule, tile);
            const Band<Config> band(problem, sequence);
            const KeyTiles tiles = KeyTiles::of<Config>(band, first, min(first + Config::kBlockM, sequence.q_len));
            const RowBlock rows(sequence, first + 64 * warpgroup, tile.head, Config::kPacked ? 0 : tile.batch);
            Softmax<Config> softmax;
            if (tiles.empty()) {
                store_zeros<Config>(params, rows);
                store_log_sum_exp<Config>(params, rows, softmax);
            } else {
                attend(softmax, band, tiles, rows);
                finish(softmax, rows);
            }
        }
        if (threadIdx.x % kWarpgroup == 0) wait_stores_read<0>();
    }

private:
    DEVICE void take_turn() const {
        if constexpr (Config::kTurns) named_sync(kFirstTurn + warpgroup, 2 * kWarpgroup);
    }

    DEVICE void pass_turn() const {
        if constexpr (Config::kTurns) named_arrive(kFirstTurn + (warpgroup + 1) % kConsumers, 2 * kWarpgroup);
    }

    // One arrival a warp, once all its lanes are past their last read.
    DEVICE static void release(Barrier empty) {
        if (lane_index() == 0) empty.arrive();
    }

    DEVICE void issue_scores() {
        wgmma::product<Element, Config::kBlockN, Config::kHeadDim / 16, wgmma::AlongRows<64>, wgmma::AlongRows<Config::kBlockN>>(
            s, pipeline.query(warpgroup), pipeline.key(pipeline.keys.stage), false);
        wgmma::commit();
    }

    DEVICE void issue_output() {
        wgmma::product<Element, Config::kValueDim, Config::kBlockN / 16, wgmma::OverRows<Config::kBlockN>>(
            o, p, pipeline.value(pipeline.values.stage), true);
        wgmma::commit();
    }

    DEVICE void release_key() {
        release(pipeline.key_empty[pipeline.keys.stage]);
        pipeline.keys.advance();
    }

    DEVICE void release_value() {
        release(pipeline.value_empty[pipeline.values.stage]);
        pipeline.values.advance();
    }

    DEVICE void await_key() const { pipeline.key_full[pipeline.keys.stage].wait(pipeline.keys.consumer()); }
    DEVICE void await_value() const { pipeline.value_full[pipeline.values.stage].wait(pipeline.values.consumer()); }

    // Scores of tile n (ready in s) to exponentials; the output's factors.
    template <bool kMasked>
    DEVICE float2 exponentials(Softmax<Config>& softmax, const Band<Config>& band, const RowBlock& rows, int n) {
        cap_scores<Config>(s, params.problem);
        if constexpr (kMasked) mask_scores<Config>(s, band, rows.own, n);
        return softmax.template update<kMasked>(s, params.problem.exponent_factor);
    }

    // Tile n: its scores and softmax, and the output of the tile after it.
    template <bool kMasked>
    DEVICE void step(Softmax<Config>& softmax, const Band<Config>& band, const RowBlock& rows, int n) {
        await_key();
        take_turn();
        wgmma::settle(p);
        wgmma::settle(o);
        wgmma::arrive();
        issue_scores();
        await_value();
        issue_output();
        pass_turn();
        wgmma::wait<1>();
        wgmma::settle(s);
        release_key();
        const float2 factor = exponentials<kMasked>(softmax, band, rows, n);
        wgmma::settle(s);
        wgmma::hold_wait(__float_as_uint(softmax.sum[0]) | __float_as_uint(softmax.sum[1]), pipeline.scratch());
        wgmma::wait<0>();
        wgmma::settle(o);
        wgmma::settle(p);
        release_value();
        if (__any_sync(0xffffffffu, factor.x != 1.f || factor.y != 1.f)) scale_rows(o, factor);
        wgmma::pack<Element>(p, s);
    }

    DEVICE void attend(Softmax<Config>& softmax, const Band<Config>& band, const KeyTiles& tiles, const RowBlock& rows) {
#pragma unroll
        for (int i = 0; i < Config::kValueDim / 2; ++i) o[i] = 0.f;
        int n = tiles.end - 1;
        pipeline.query_full[warpgroup].wait(pipeline.query_wraps);
        pipeline.query_wraps ^= 1u;
        await_key();
        wgmma::settle(s);
        wgmma::arrive();
        issue_scores();
        wgmma::wait<0>();
        wgmma::settle(s);
        release_key();
        exponentials<true>(softmax, band, rows, n);
        wgmma::pack<Element>(p, s);
        clear_beyond(rows.sequence.k_len - n * Config::kBlockN);

        --n;
        if constexpr (Config::kCausal || Config::kWindowRight) {
            for (; n >= max(tiles.full_end, tiles.begin); --n) step<true>(softmax, band, rows, n);
        }
        for (; n >= max(tiles.full_begin, tiles.begin); --n) step<false>(softmax, band, rows, n);
        if constexpr (Config::kWindowLeft) {
            for (; n >= tiles.begin; --n) step<true>(softmax, band, rows, n);
        }

        if constexpr (!Config::kOutOverQuery) release(pipeline.query_empty[warpgroup]);
        await_value();
        wgmma::settle(p);
        wgmma::settle(o);
        wgmma::arrive();
        issue_output();
        wgmma::wait<0>();
        wgmma::settle(o);
        release_value();
    }

    // A packed sequence's last tile holds the next sequence's values, which may be infinite: 0 times
    // them would be NaN. Every warpgroup clears them for itself; they write the same zeros.
    DEVICE void clear_beyond(int keys) {
        if constexpr (Config::kPacked) {
            if (keys >= Config::kBlockN) return;
            await_value();
            clear_rows<Config::kBlockN, Config::kValueDim>(pipeline.value(pipeline.values.stage), keys);
            fence_shared_for_async();
            named_sync(kFirstEpilogue + warpgroup, kWarpgroup);
        }
    }

    DEVICE void finish(Softmax<Config>& softmax, const RowBlock& rows) {
        scale_rows(o, softmax.finish());
        store_log_sum_exp<Config>(params, rows, softmax);
        const bool first_thread = threadIdx.x % kWarpgroup == 0;
        const int barrier = kFirstEpilogue + warpgroup;
        if (first_thread) wait_stores_read<0>();
        named_sync(barrier, kWarpgroup);
        store_out<Config>(params, out_map, rows, o, pipeline.out(warpgroup), barrier);
        if constexpr (Config::kOutOverQuery) {
            if (first_thread) wait_stores_read<0>();
            named_sync(barrier, kWarpgroup);
            release(pipeline.query_empty[warpgroup]);
        }
    }
};

template <class Config>
DEVICE void forward(const TensorMap& q, const TensorMap& k, const TensorMap& v, const TensorMap& out, const ForwardParams& params) {
    const ForwardPipeline<Config> pipeline;
    if (threadIdx.x == 0) {
        prefetch(q);
        prefetch(k);
        prefetch(v);
        prefetch(out);
        pipeline.init();
    }
    __syncthreads();
    const int warpgroup = warp_index() / 4;
    if (warpgroup == 0) {
        release_registers<Config::kProducerRegisters>();
        if (threadIdx.x == 0) ForwardProducer<Config>{q, k, v, params, pipeline}.run();
    } else {
        claim_registers<Config::kConsumerRegisters>();
        ForwardConsumer<Config>(out, params, pipeline, warpgroup - 1).run();
    }
}

}  // namespace danaus::attention
