// The backward pass of a chunk, one configuration. Constants: STATE (d_state), STAGES.
#include "ssd/gradient_columns.cuh"
#include "ssd/gradient_rows.cuh"

struct Config {
    static constexpr int kState = STATE, kStages = STAGES;
};

extern "C" __global__ void __launch_bounds__(384, 1)
    ssd_gradient(const __grid_constant__ danaus::TensorMap x, const __grid_constant__ danaus::TensorMap dy,
                 const __grid_constant__ danaus::TensorMap b, const __grid_constant__ danaus::TensorMap c,
                 const __grid_constant__ danaus::ssd::GradientParams params) {
    using namespace danaus;
    using namespace danaus::ssd;
    const GradientPipeline<Config> pipeline;
    if (threadIdx.x == 0) {
        prefetch(x);
        prefetch(dy);
        prefetch(b);
        prefetch(c);
        pipeline.init();
    }
    __syncthreads();
    const int warpgroup = warp_index() / 4;
    if (warpgroup == 0) {
        release_registers<24>();
        if (threadIdx.x == 0) produce<Config>(x, dy, b, c, params, pipeline);
    } else if (warpgroup == 1) {
        claim_registers<240>();
        RowConsumer<Config>(params, pipeline).run();
    } else {
        claim_registers<240>();
        ColumnConsumer<Config>(params, pipeline).run();
    }
}
