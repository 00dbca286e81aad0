//! Structured state-space duality: the sequence mixer of Mamba-2, linear attention with scalar decay.
//!
//! Per head, with a state `s` of `head_dim x d_state` numbers (Dao and Gu, *Transformers are SSMs*,
//! ICML 2024):
//!
//! ```text
//! s_t = exp(log_decay_t) s_(t-1) + scale_t x_t B_t^T        y_t = s_t C_t + D x_t   (* silu(z_t))
//! ```
//!
//! [`ssd`] is Mamba-2's form, `scale = clamp(softplus(dt + dt_bias))` and `log_decay = A scale`;
//! [`ssd_core`] takes both directly and so covers RetNet, linear attention and gated variants.
//! [`ssd_step`] runs the recurrence itself for decoding.
//!
//! | tensor | shape |
//! | --- | --- |
//! | `x`, `z`, `y` | `[batch, seqlen, heads, head_dim]` |
//! | `dt`, `log_decay`, `scale` | `[batch, seqlen, heads]` |
//! | `A`, `dt_bias` | `[heads]` |
//! | `B`, `C` | `[batch, seqlen, groups, d_state]`, groups divide heads |
//! | `D` | `[heads]` or `[heads, head_dim]` |
//! | `initial_states`, `final_state` | `[batch, heads, head_dim, d_state]`, per sequence with `cu_seqlens` |
//! | `seq_idx` | `[batch, seqlen]`: the state is reset where it changes |
//! | `cu_seqlens` | `[sequences + 1]`, batch 1: every sequence has its own initial and final state |
//!
//! All of these may be given together, and all have gradients, also through the final states. f64 runs
//! the plain recurrence of [`mod@reference`]; f32 and bf16 run the chunked kernels of [`cpu`] with f32
//! arithmetic and f32 states. Results have the same bits at any number of threads. A packed sequence
//! has the bits it has alone unless the batch is so small that the kernel cuts it along time; chunked
//! and step results agree to rounding, not to the bit. At [`Level::Invariant`](danaus_tensor::Level)
//! forward runs the recurrence token by token, so that a sequence cut anywhere, with its state handed
//! over, has the bits of the whole and of `ssd_step`. GPUs serve the same calls; which kernels do is in
//! `cuda`.

mod api;
pub(crate) mod arrays;
pub mod config;
pub mod cpu;
pub(crate) mod cuda;
mod op;
pub mod reference;
pub mod runs;
mod step_op;

pub use api::{SPECS, SsdCoreInputs, SsdInputs, SsdStepInputs, ssd, ssd_core, ssd_step};
pub use op::SsdOptions;

#[cfg(test)]
mod tests;
