// The forward kernel of one configuration; constants are -D definitions, see forward.cuh.
#include "attention/forward.cuh"

struct Config {
    using Element = danaus::ELEMENT;
    static constexpr int kHeadDim = HEAD_DIM, kValueDim = HEAD_DIM;
    static constexpr int kBlockM = BLOCK_M, kBlockN = BLOCK_N, kStages = STAGES;
    static constexpr bool kCausal = CAUSAL, kWindowLeft = WINDOW_LEFT, kWindowRight = WINDOW_RIGHT;
    static constexpr bool kSoftcap = SOFTCAP, kPacked = PACKED;
    static constexpr bool kTurns = true, kOutOverQuery = OUT_OVER_QUERY, kLastFirst = CAUSAL;
    // The sum over warpgroups may not exceed what the kernel starts with.
    static constexpr int kProducerRegisters = kBlockM == 192 ? 32 : 24;
    static constexpr int kConsumerRegisters = kBlockM == 192 ? 160 : 240;
};

extern "C" __global__ void __launch_bounds__(2 * Config::kBlockM + 128, 1)
    attention_forward(const __grid_constant__ danaus::TensorMap q, const __grid_constant__ danaus::TensorMap k,
                      const __grid_constant__ danaus::TensorMap v, const __grid_constant__ danaus::TensorMap out,
                      const __grid_constant__ danaus::attention::ForwardParams params) {
    danaus::attention::forward<Config>(q, k, v, out, params);
}
