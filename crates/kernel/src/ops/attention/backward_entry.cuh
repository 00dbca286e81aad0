// The backward kernels of one configuration; constants are -D definitions, see backward.cuh.
#include "attention/backward.cuh"
#include "attention/backward_rows.cuh"

struct Config {
    using Element = danaus::ELEMENT;
    static constexpr int kHeadDim = HEAD_DIM;
    static constexpr int kBlockM = BLOCK_M, kBlockN = BLOCK_N;
    static constexpr int kStages = 2, kScoreStages = 2, kSumStages = 2;
    static constexpr bool kCausal = CAUSAL, kWindowLeft = WINDOW_LEFT, kWindowRight = WINDOW_RIGHT;
    static constexpr bool kSoftcap = SOFTCAP, kPacked = PACKED;
    static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
};

using danaus::TensorMap;
using danaus::attention::BackwardParams;

extern "C" __global__ void __launch_bounds__(384, 1)
    attention_backward(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                       const __grid_constant__ TensorMap grad_out, const __grid_constant__ TensorMap dk, const __grid_constant__ TensorMap dv,
                       const __grid_constant__ BackwardParams params) {
    danaus::attention::backward<Config>({q, k, v, grad_out, dk, dv}, params);
}

extern "C" __global__ void __launch_bounds__(256) attention_prepare_rows(const __grid_constant__ BackwardParams params) {
    danaus::attention::prepare_rows<Config>(params);
}

extern "C" __global__ void __launch_bounds__(256) attention_finish_rows(const __grid_constant__ BackwardParams params) {
    danaus::attention::finish_rows<Config>(params);
}
