// The FP8 kernels of one configuration; constants are -D definitions, see fp8_forward.cuh.
#include "attention/fp8_forward.cuh"

struct Config {
    using Element = danaus::ELEMENT;  // of the output
    static constexpr int kHeadDim = HEAD_DIM, kValueDim = HEAD_DIM;
    static constexpr int kBlockM = BLOCK_M, kBlockN = BLOCK_N, kStages = STAGES;
    static constexpr bool kCausal = CAUSAL, kWindowLeft = WINDOW_LEFT, kWindowRight = WINDOW_RIGHT;
    static constexpr bool kSoftcap = SOFTCAP, kPacked = false;
    static constexpr bool kTurns = true, kLastFirst = CAUSAL;
    static constexpr int kProducerRegisters = kBlockM == 192 ? 32 : 24;
    static constexpr int kConsumerRegisters = kBlockM == 192 ? 160 : 240;
};

extern "C" __global__ void __launch_bounds__(2 * Config::kBlockM + 128, 1)
    attention_fp8(const __grid_constant__ danaus::TensorMap out, const __grid_constant__ danaus::attention::Fp8Params params) {
    danaus::attention::fp8_forward<Config>(out, params);
}
