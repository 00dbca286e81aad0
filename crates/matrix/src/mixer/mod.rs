//! Matrices that mix time: sequence mixers with their projections.

mod attention;
mod mamba2;
mod spec;

pub use attention::{Attention, AttentionConfig};
pub use mamba2::{Mamba2, Mamba2Config};
pub use spec::SPECS;

use crate::{LayerState, SeqBatch};
use danaus_tensor::{DType, Result, Tensor};

/// The widest layer a config may ask for: sizes computed from it stay within 64 bits.
pub const MAX_WIDTH: usize = 1 << 22;

/// A layer that mixes the tokens of each sequence: `[tokens, d_model]` to the same.
pub trait SequenceMixer: Send + Sync {
    /// Name used in configs.
    fn name(&self) -> &'static str;

    /// Whether a token depends on earlier ones only, so that there is a state and a step.
    fn is_causal(&self) -> bool;

    /// Mixes packed sequences from empty states, and adds `residual` where given.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    fn forward(&self, x: &Tensor, batch: &SeqBatch, residual: Option<&Tensor>) -> Result<Tensor>;

    /// A state that has seen nothing, for one sequence computed in `dtype`.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn init_state(&self, dtype: DType) -> Result<LayerState>;

    /// Mixes the next tokens of several sequences, one state each, and advances the states. A prompt
    /// is one call, a decoding step is a batch of single tokens.
    ///
    /// # Errors
    /// When shapes, dtypes or states do not fit.
    fn advance(
        &self,
        x: &Tensor,
        batch: &SeqBatch,
        states: &mut [&mut LayerState],
        residual: Option<&Tensor>,
    ) -> Result<Tensor>;

    /// The mixing matrices of one sequence, `[heads, tokens, tokens]`: what multiplies the values of
    /// each head. The oracle.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn dense(&self, x: &Tensor) -> Result<Tensor>;

    /// Arithmetic operations of the forward pass.
    fn flops(&self, batch: &SeqBatch) -> u64;
}

/// Refuses a number of states other than that of the sequences.
fn check_states(op: &'static str, batch: &SeqBatch, states: usize) -> Result<()> {
    if states == batch.len() {
        return Ok(());
    }
    let valid = format!("{}, one per sequence of the batch", batch.len());
    Err(danaus_tensor::Error::argument(op, "states", states, valid))
}

/// A state of the other kind.
fn foreign_state(op: &'static str) -> danaus_tensor::Error {
    danaus_tensor::Error::argument(op, "state", "a state of another mixer", "one from init_state")
}

#[cfg(test)]
mod tests;
