// The kernels of one configuration of backward_wide.cuh; constants are -D definitions.
#include "attention/backward_rows.cuh"
#include "attention/backward_wide.cuh"

struct Config {
    using Element = danaus::ELEMENT;
    static constexpr int kHeadDim = HEAD_DIM;
    static constexpr int kBlockM = 64, kBlockN = 64;
    static constexpr bool kCausal = CAUSAL, kWindowLeft = WINDOW_LEFT, kWindowRight = WINDOW_RIGHT;
    static constexpr bool kSoftcap = SOFTCAP, kPacked = PACKED;
    static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
};

using danaus::TensorMap;
using danaus::attention::WideParams;

extern "C" __global__ void __launch_bounds__(384, 1)
    attention_backward_keys(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                            const __grid_constant__ TensorMap grad_out, const __grid_constant__ TensorMap dq, const __grid_constant__ TensorMap dk,
                            const __grid_constant__ TensorMap dv, const __grid_constant__ WideParams params) {
    danaus::attention::backward_keys<Config>({{q, k, v, grad_out, dk, dv}, dq}, params);
}

extern "C" __global__ void __launch_bounds__(384, 1)
    attention_backward_queries(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                               const __grid_constant__ TensorMap grad_out, const __grid_constant__ TensorMap dq, const __grid_constant__ TensorMap dk,
                               const __grid_constant__ TensorMap dv, const __grid_constant__ WideParams params) {
    danaus::attention::backward_queries<Config>({{q, k, v, grad_out, dk, dv}, dq}, params);
}

extern "C" __global__ void __launch_bounds__(256) attention_prepare_rows(const __grid_constant__ WideParams params) {
    danaus::attention::prepare_rows<Config>(params);
}
