// The kernels that quantise for one head dim and tile; constants are -D definitions.
#include "attention/fp8_quantize.cuh"

#define DANAUS_QUANTIZE(name, function, rows, measure)                                                                       \
    extern "C" __global__ void __launch_bounds__(danaus::attention::kQuantizeThreads)                                        \
        name(const __grid_constant__ danaus::attention::QuantizeParams params) {                                             \
        danaus::attention::function<danaus::ELEMENT, HEAD_DIM, rows, measure>(params);                                       \
    }

DANAUS_QUANTIZE(attention_quantize_q, quantize_rows, 64, false)
DANAUS_QUANTIZE(attention_quantize_k, quantize_rows, BLOCK_N, false)
DANAUS_QUANTIZE(attention_quantize_v, quantize_columns, BLOCK_N, false)
DANAUS_QUANTIZE(attention_largest_q, quantize_rows, 64, true)
DANAUS_QUANTIZE(attention_largest_k, quantize_rows, BLOCK_N, true)
DANAUS_QUANTIZE(attention_largest_v, quantize_columns, BLOCK_N, true)
