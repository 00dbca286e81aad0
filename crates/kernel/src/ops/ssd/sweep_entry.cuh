// The walk over chunks of one configuration. Constants: STATE (d_state), OUTPUT, IMAGES, REVERSE, STAGES.
#include "ssd/sweep.cuh"

struct Config {
    static constexpr int kState = STATE, kStages = STAGES;
    static constexpr bool kOutput = OUTPUT, kImages = IMAGES, kReverse = REVERSE;
};

extern "C" __global__ void __launch_bounds__(384, 1)
    ssd_sweep(const __grid_constant__ danaus::TensorMap v, const __grid_constant__ danaus::TensorMap k,
              const __grid_constant__ danaus::TensorMap c, const __grid_constant__ danaus::ssd::SweepParams params) {
    danaus::ssd::sweep<Config>(v, k, c, params);
}
