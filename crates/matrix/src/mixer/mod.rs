//! Matrices that mix time: sequence mixers with their projections.

mod attention;
mod linear_attention;
mod mamba1;
mod mamba2;
mod rope;
mod spec;

pub use attention::{Attention, AttentionConfig};
pub use linear_attention::{LinearAttention, LinearAttentionConfig, LinearAttentionKind};
pub use mamba1::{Mamba1, Mamba1Config};
pub use mamba2::{Mamba2, Mamba2Config};
pub use rope::{Rope, RopeScaling};
pub use spec::SPECS;

use crate::state::RecurrentState;
use crate::{LayerState, SeqBatch};
use danaus_tensor::{DType, Device, Init, Param, ParamBuilder, Result, Tensor};

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

/// The states of recurrent layers, `(conv, scan)`, joined along their first dimension.
fn join_states(op: &'static str, states: &[&mut LayerState]) -> Result<(Tensor, Tensor)> {
    let mut joined = Vec::with_capacity(states.len());
    for state in states {
        let LayerState::Recurrent(state) = &**state else { return Err(foreign_state(op)) };
        joined.push(state);
    }
    RecurrentState::join(&joined)
}

/// Gives every layer its row of the joined states.
fn part_states(states: &mut [&mut LayerState], [conv, scan]: [Tensor; 2]) -> Result<()> {
    for (state, next) in states.iter_mut().zip(RecurrentState::part(conv, scan)?) {
        **state = LayerState::Recurrent(next);
    }
    Ok(())
}

/// `in_proj.bias` and `out_proj.bias` where `wanted`, starting at zero.
fn projection_biases(
    params: &ParamBuilder,
    wanted: bool,
    [inner, outer]: [usize; 2],
) -> Result<Option<(Param, Param)>> {
    let zeros = |name: &str, size: usize| {
        params.pp(name).param_no_decay("bias", [size], Init::Constant(0.0))
    };
    Ok(if wanted { Some((zeros("in_proj", inner)?, zeros("out_proj", outer)?)) } else { None })
}

/// A step size log-uniform in [1e-3, 1e-1], floored at 1e-4, taken back through softplus.
fn initial_dt_bias(uniform: f64) -> f64 {
    let (low, high) = (1e-3f64.ln(), 1e-1f64.ln());
    let dt = (low + uniform * (high - low)).exp().max(1e-4);
    dt + (-(-dt).exp_m1()).ln()
}

/// Values that read the mixing matrix off a scan: the columns of the identity for every head, at most 64
/// of them at a time, `[1, tokens, heads, columns]` each, in the dtype and on the device of `x`.
fn identity_columns(tokens: usize, heads: usize, x: &Tensor) -> Result<Vec<Tensor>> {
    let block = |start: usize| {
        let width = 64.min(tokens - start);
        let mut values = vec![0f64; tokens * heads * width];
        for column in 0..width {
            let row = (start + column) * heads;
            (row..row + heads).for_each(|at| values[at * width + column] = 1.0);
        }
        let values = Tensor::from_vec(values, [1, tokens, heads, width], &Device::Cpu)?;
        values.to_dtype(x.dtype())?.to_device(&x.device())
    };
    (0..tokens).step_by(64).map(block).collect()
}

/// A state of the other kind.
fn foreign_state(op: &'static str) -> danaus_tensor::Error {
    danaus_tensor::Error::argument(op, "state", "a state of another mixer", "one from init_state")
}

#[cfg(test)]
mod tests;
