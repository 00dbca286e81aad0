// Attention forward from e4m3 operands; roles, turns and overlap as in forward.cuh.
//
//     x = c sq sk[n] q k^T,  p = e4m3(2^(x - r + 8)),  o = o 2^(r_old - r) sv[n - 1] / sv[n] + p v
//
// Scales of a tile cost nothing an element: those of q and k are part of the factor of the exponent, that
// of v is part of the factor that the output takes when a row's reference moves. Tiles of keys go upwards,
// as in the processor's reference, since p is rounded relative to the maximum so far.
#pragma once

#include "attention/epilogue.cuh"
#include "attention/fp8_pipeline.cuh"
#include "attention/fp8_softmax.cuh"
#include "attention/mask.cuh"

namespace danaus::attention {

template <class Config>
struct Fp8Consumer {
    using Storage = Fp8Storage<Config>;
    static constexpr int kConsumers = Storage::kConsumers;
    static constexpr int kFirstTurn = 1, kFirstEpilogue = kFirstTurn + kConsumers;  // named barriers

    const TensorMap& out_map;
    const Fp8Params& params;
    Fp8Pipeline<Config> pipeline;
    const int warpgroup;

    float s[Config::kBlockN / 2];
    u32 p[Config::kBlockN / 8];
    float o[Config::kValueDim / 2];
    float query_scale, value_scale;  // of the tile in o

    DEVICE Fp8Consumer(const TensorMap& out_map, const Fp8Params& params, const Fp8Pipeline<Config>& pipeline, int warpgroup)
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
            const RowBlock rows(sequence, first + 64 * warpgroup, tile.head, tile.batch);
            const i64 head = static_cast<i64>(tile.batch) * problem.heads + tile.head;
            query_scale = params.operands.q_scales[head * params.q_blocks + first / 64 + warpgroup];
            Fp8Softmax softmax;
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
        wgmma::fp8_product<Config::kBlockN, Config::kHeadDim / 32, typename Storage::Queries, typename Storage::Keys>(
            s, pipeline.query(warpgroup), pipeline.key(pipeline.keys.stage), false);
        wgmma::commit();
    }

    DEVICE void issue_output() {
        wgmma::fp8_product<Config::kValueDim, Config::kBlockN / 32, typename Storage::Values>(o, p, pipeline.value(pipeline.values.stage), true);
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

    // Scales of the key tile at hand: of keys and of values.
    DEVICE float2 scales() const {
        float2 pair;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(pipeline.scales(pipeline.keys.stage)) : "memory");
        return pair;
    }

    // Caps and masks the scores of tile n (ready in s); returns what makes exponents of them.
    template <bool kMasked>
    DEVICE float exponent_factor(const Band<Config>& band, const RowBlock& rows, int n, float key_scale) {
        float scale = query_scale * key_scale;
        if constexpr (Config::kSoftcap) {
#pragma unroll
            for (int i = 0; i < Config::kBlockN / 2; ++i) s[i] = tanh_unit(s[i] * (params.problem.score_factor * scale));
            scale = 1.f;
        }
        if constexpr (kMasked) mask_scores<Config>(s, band, rows.own, n);
        return params.problem.exponent_factor * scale;
    }

    // Tile n: its scores and softmax, and the output of the tile before it. The output is awaited when the
    // maximum is known, not after the exponentials: these take so long on the special-function unit that
    // rescaling and rounding fit beside them.
    template <bool kMasked>
    DEVICE void step(Fp8Softmax& softmax, const Band<Config>& band, const RowBlock& rows, int n) {
        await_key();
        take_turn();
        wgmma::settle(p);
        wgmma::settle(o);
        wgmma::arrive();
        issue_scores();
        await_value();
        issue_output();
        pass_turn();
        const float2 scale = scales();
        wgmma::wait<1>();
        wgmma::settle(s);
        release_key();
        const float c = exponent_factor<kMasked>(band, rows, n, scale.x);
        float2 factor = softmax.template move<kMasked>(s, c);
        const float change = value_scale / scale.y;
        factor.x *= change;
        factor.y *= change;
        value_scale = scale.y;
        wgmma::settle(s);
        wgmma::hold_wait(__float_as_uint(softmax.sum[0]) | __float_as_uint(softmax.sum[1]), pipeline.scratch());
        wgmma::wait<0>();
        wgmma::settle(o);
        wgmma::settle(p);
        release_value();
        scale_rows(o, factor);
        softmax.exponentials(s, c);
        wgmma::pack_fp8(p, s);
    }

    DEVICE void attend(Fp8Softmax& softmax, const Band<Config>& band, const KeyTiles& tiles, const RowBlock& rows) {
#pragma unroll
        for (int i = 0; i < Config::kValueDim / 2; ++i) o[i] = 0.f;
        int n = tiles.begin;
        pipeline.query_full[warpgroup].wait(pipeline.query_wraps);
        pipeline.query_wraps ^= 1u;
        await_key();
        wgmma::settle(s);
        wgmma::arrive();
        issue_scores();
        const float2 scale = scales();
        wgmma::wait<0>();
        wgmma::settle(s);
        release_key();
        const float c = exponent_factor<true>(band, rows, n, scale.x);
        softmax.template move<true>(s, c);
        softmax.exponentials(s, c);
        value_scale = scale.y;
        wgmma::pack_fp8(p, s);

        ++n;
        if constexpr (Config::kWindowLeft) {
            for (; n < min(tiles.full_begin, tiles.end); ++n) step<true>(softmax, band, rows, n);
        }
        for (; n < min(tiles.full_end, tiles.end); ++n) step<false>(softmax, band, rows, n);
        for (; n < tiles.end; ++n) step<true>(softmax, band, rows, n);

        release(pipeline.query_empty[warpgroup]);
        await_value();
        wgmma::settle(p);
        wgmma::settle(o);
        wgmma::arrive();
        issue_output();
        wgmma::wait<0>();
        wgmma::settle(o);
        release_value();
    }

    DEVICE void finish(Fp8Softmax& softmax, const RowBlock& rows) {
        const float2 factor = softmax.finish();
        scale_rows(o, {factor.x * value_scale, factor.y * value_scale});
        store_log_sum_exp<Config>(params, rows, softmax);
        const int barrier = kFirstEpilogue + warpgroup;
        if (threadIdx.x % kWarpgroup == 0) wait_stores_read<0>();
        named_sync(barrier, kWarpgroup);
        store_out<Config>(params, out_map, rows, o, pipeline.out(warpgroup), barrier);
    }
};

template <class Config>
DEVICE void fp8_forward(const TensorMap& out, const Fp8Params& params) {
    const Fp8Pipeline<Config> pipeline;
    if (threadIdx.x == 0) {
        prefetch(out);
        pipeline.init();
    }
    __syncthreads();
    const int warpgroup = warp_index() / 4;
    if (warpgroup == 0) {
        release_registers<Config::kProducerRegisters>();
        if (threadIdx.x == 0) Fp8Producer<Config>{params, pipeline}.run();
    } else {
        claim_registers<Config::kConsumerRegisters>();
        Fp8Consumer<Config>(out, params, pipeline, warpgroup - 1).run();
    }
}

}  // namespace danaus::attention
