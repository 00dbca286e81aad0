//! Selective scan: the sequence mixer of Mamba-1, a diagonal state-space model whose step size, input
//! and output maps depend on the token.
//!
//! Every channel has a state `s` of `d_state` numbers (Gu and Dao, *Mamba: linear-time sequence modeling
//! with selective state spaces*, 2023, algorithm 2):
//!
//! ```text
//! delta'_t = softplus(delta_t + delta_bias)                 (both optional)
//! s_t = exp(delta'_t A) * s_(t-1) + delta'_t u_t B_t        (elementwise over d_state)
//! y_t = <s_t, C_t> + D u_t      (* silu(z_t))
//! ```
//!
//! | tensor | shape | with `channel_last` |
//! | --- | --- | --- |
//! | `u`, `delta`, `z`, `y` | `[batch, channels, seqlen]` | `[batch, seqlen, channels]` |
//! | `B`, `C` per token | `[batch, d_state, seqlen]` or `[batch, groups, d_state, seqlen]` | `[batch, seqlen, d_state]` or `[batch, seqlen, groups, d_state]` |
//! | `B`, `C` constant | `[channels, d_state]` | the same |
//! | `A` | `[channels, d_state]`, not positive | the same |
//! | `D`, `delta_bias` | `[channels]` | the same |
//! | `initial_states`, `last_state` | `[batch, channels, d_state]`, per sequence with `cu_seqlens` | the same |
//! | `seq_idx`, `cu_seqlens` | as in [`ssd`](super::ssd): sequences never mix | the same |
//!
//! All of these may be given together, and all float inputs have gradients, also through the last
//! states. Channel `i` reads group `i / (channels / groups)` of B and C, which may differ in form.
//!
//! The kernels are channel-last, where vectors run over channels, the state of a channel never leaves
//! its lane, and nothing is transposed: packed models call them so. The other layout, which published
//! code uses, is transposed on the way in and seen through a transposed view on the way out.
//!
//! f64 runs the plain recurrence of [`mod@reference`]; f32 and bf16 run the kernels of [`cpu`] with f32
//! arithmetic and f32 states. A token's bits depend on its own sequence alone, and a prompt, its pieces
//! and its single steps give the same bits, at any number of threads. A NaN in `delta` is refused where
//! it is read; NaN elsewhere stays in its channel, or in its sequence if it is in B or C.

mod api;
pub mod cpu;
pub(crate) mod cuda;
mod op;
mod problem;
pub mod reference;

pub use api::{
    SPECS, ScanInputs, ScanOptions, ScanStepInputs, selective_scan, selective_state_update,
};

/// Sizes of one problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of the packed arrays: batch times seqlen.
    pub tokens: usize,
    /// `D`.
    pub channels: usize,
    /// `g`; divides `channels`.
    pub groups: usize,
    /// `n`.
    pub d_state: usize,
}

impl Shape {
    /// Channels that share one B and C.
    pub fn channels_per_group(&self) -> usize {
        self.channels / self.groups.max(1)
    }

    /// Elements of one sequence's state.
    pub fn state_len(&self) -> usize {
        self.channels * self.d_state
    }
}

#[cfg(test)]
mod tests;
