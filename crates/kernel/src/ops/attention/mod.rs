//! Exact softmax attention with tiles and an online softmax, forward and backward.
//!
//! For each query `i` of head `h` with keys `j` of head `h / (heads / kv_heads)`:
//!
//! ```text
//! s_ij = softmax_scale q_i . k_j      then softcap tanh(s / softcap)   then  - slope_h |i + Nk - Nq - j|
//!        then -inf where causality, window, lengths or the block mask hide the key
//! L_i  = ln(e^(sink_h) + sum_j e^(s_ij))                               (the sink is optional)
//! o_i  = sum_j keep_ij / (1 - p_drop) e^(s_ij - L_i) v_j
//! ```
//!
//! Shapes: q (batch, q_len, heads, head_dim), k (batch, k_len, kv_heads, head_dim), v (batch, k_len,
//! kv_heads, value_dim) -> out (batch, q_len, heads, value_dim) and lse (batch, heads, q_len) in f32
//! (f64 for f64 inputs). Packed sequences drop the batch axis: q (total_q, heads, head_dim), lse
//! (heads, total_q), bounds in `cu_seqlens`. Masks are aligned at the bottom right corner. A query
//! without keys gives 0, a log-sum-exp of -inf and no gradient. The log-sum-exp is differentiable.
//!
//! Memory beyond inputs and outputs does not grow with the product of the lengths: one value per row
//! and a few tiles per task. Rows are lanes of vectors, so softmax needs no work across lanes; the
//! query heads of a key head are neighbouring rows, so grouped heads share every loaded key. Results
//! have the same bits at any thread count.
//!
//! On GPUs (`cuda.rs`) the same contract holds, for head dims up to 256. Hopper kernels serve what language
//! models use; plain ones everything else. Products in eight
//! bits are in `fp8/`.
//!
//! Not here: dropout and other options in the cache form ([`attention_kvcache`]), biases other than
//! ALiBi.
//!
//! Papers: FlashAttention (NeurIPS 2022), FlashAttention-2 (ICLR 2024), FlashAttention-3 (NeurIPS 2024).

mod backward;
mod combine;
mod config;
pub(crate) mod cuda;
mod dropout;
#[cfg(target_arch = "x86_64")]
mod few_rows;
mod forward;
pub mod fp8;
mod gradient;
mod kvcache;
mod mask;
pub(crate) mod microkernel;
mod op;
mod options;
pub(crate) mod pack;
mod prepare;
mod problem;
mod reference;
mod rotary;
mod softmax;
mod spec;
mod tile_range;

pub use combine::attention_combine;
pub use fp8::{Fp8, Fp8Scales};
pub use kvcache::{
    CacheOptions, CacheTables, KvCache, NewKeys, attention_kvcache, cache_sequences,
};
pub use options::AttentionOptions;
pub use rotary::Rotary;
pub use spec::SPECS;

use danaus_tensor::{Error, Result, Tensor, apply};

/// Attention of a dense batch: q (batch, q_len, heads, head_dim), k and v (batch, k_len, kv_heads,
/// dim); returns `(out, lse)`.
///
/// # Errors
/// When shapes, dtypes or options do not fit; the message names the argument.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: &AttentionOptions,
) -> Result<(Tensor, Tensor)> {
    if let Some(eight) = &options.fp8 {
        return fp8::attention([q, k, v], eight, options);
    }
    call([Some(q), Some(k), Some(v)], [None, None], options)
}

/// Attention of sequences packed along the first axis: q (total_q, heads, head_dim), k and v
/// (total_k, kv_heads, dim); sequence b is `cu_seqlens[b]..cu_seqlens[b + 1]`. Returns `(out, lse)`.
///
/// # Errors
/// When shapes, dtypes, bounds or options do not fit; the message names the argument.
pub fn attention_varlen(
    [q, k, v]: [&Tensor; 3],
    cu_seqlens_q: &Tensor,
    cu_seqlens_k: &Tensor,
    options: &AttentionOptions,
) -> Result<(Tensor, Tensor)> {
    if options.fp8.is_some() {
        return Err(Error::unsupported("attention", "fp8 with cu_seqlens", "use a dense batch"));
    }
    call([Some(q), Some(k), Some(v)], [Some(cu_seqlens_q), Some(cu_seqlens_k)], options)
}

fn call(
    qkv: [Option<&Tensor>; 3],
    bounds: [Option<&Tensor>; 2],
    options: &AttentionOptions,
) -> Result<(Tensor, Tensor)> {
    let optional = [
        options.alibi_slopes.as_ref(),
        options.sinks.as_ref(),
        options.block_mask.as_ref(),
        options.keep.as_ref(),
        options.q_lens.as_ref(),
        options.k_lens.as_ref(),
    ];
    let inputs: Vec<Option<&Tensor>> = qkv.into_iter().chain(bounds).chain(optional).collect();
    let outputs = apply(op::AttentionOp(options.attributes()), &inputs)?;
    let [out, lse] = <[Tensor; 2]>::try_from(outputs)
        .map_err(|_| Error::internal("attention has two outputs"))?;
    Ok((out, lse))
}

#[cfg(test)]
mod tests;
