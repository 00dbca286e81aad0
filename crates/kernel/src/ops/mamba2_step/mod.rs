//! The decoding step of a Mamba-2 layer in one pass: short convolution with bias and silu, step sizes,
//! state update, skip connection and gate, on a paged pool of states, with replay for speculation.
//!
//! ```text
//! x, B, C = silu(conv(xBC));  d = clamp(softplus(dt + dt_bias));  A = -e^(A_log)
//! s_t = exp(A d_t) s_(t-1) + d_t x_t B_t^T        y_t = s_t C_t + D x_t   (* silu(z_t))
//! ```
//!
//! | tensor | shape |
//! | --- | --- |
//! | `xbc`, `dt`, `z`, `y` | `[batch, seqlen, channels]`, `[.., heads]`, `[.., heads * head_dim]` twice: the new tokens, parts of the input projection as they lie there |
//! | `conv_weight`, `conv_bias` | `[channels, width]` or `[channels, 1, width]`, `[channels]`; channels are x, B, C: `heads * head_dim + 2 groups * d_state` |
//! | `A_log`, `dt_bias`, `D` | `[heads]`; `D` also `[heads, head_dim]` |
//! | `slots`, `to_slots`, `accepted` | `[batch]`: where a row's state is read, where it is left, how much of the last draft to replay |
//! | `conv_states`, `dt_states` | `[slots, places, channels]`, `[slots, places, heads]`: rings of raw inputs |
//! | `scan_states`, `cursor` | `[slots, heads, head_dim, d_state]`; `[slots, 2]` i64: the place of the token behind the state, and the GPU's count of arrivals, 0 between calls |
//!
//! A slot holds **one** state and the raw inputs around it, a token a place of its rings. A call replays the `accepted` tokens of the previous draft from there (a convolution and a
//! state update each, without another state in memory), then takes the new ones. With `commit` the state
//! behind the last new token stays in the slot: plain decoding. Without, the state before the first new
//! token stays, and the new tokens remain a draft in the rings: the next call names how many of them it
//! accepts, rejected ones are overwritten, and no state is ever copied or restored. `seqlen` may be 0: the
//! call then only takes the accepted tokens in. `places` must be at least `width - 1 + accepted + seqlen`,
//! because the inputs that are read and the ones that are written lie beside each other.
//!
//! Rows with slot -1 are skipped and give zeros. With `to_slots` the source stays as it is, which is how
//! states are shared until somebody changes them; a slot may be written by one row only, and no row may
//! read what another one writes. New slots are zeros ([`Mamba2Pool::clear`]) or filled from a prompt
//! ([`Mamba2Pool::fill`]).
//!
//! A call gives the numbers of `causal_conv1d` and `ssd` one after the other: in f64, and on the processor
//! with the bits that these have at the invariant level; on a GPU within the rounding of the element type.
//! Several tokens in a call, and replayed ones, have the bits that they have one by one. On a GPU all of
//! `slots`, `to_slots`, `accepted` and the pool may lie there: the host reads nothing, and a captured call
//! replays with whatever the buffers hold. Source of the replay: the engine sheets of speculative decoding
//! for recurrent models (Wang, Paliotta, May, Rush and Dao, *The Mamba in the Llama*, 2024).

mod check;
mod cpu;
pub(crate) mod cuda;
mod pool;
mod reference;
mod rows;
mod spec;

pub use pool::{Mamba2Pool, PoolShape};
pub use spec::SPECS;

use crate::ops::conv1d;
use crate::ops::ssd::SsdOptions;
use crate::ops::ssd::arrays::{Held, plain, wide};
use check::Sizes;
use danaus_tensor::{DType, Result, Tensor, no_grad};

const OP: &str = "mamba2_step";

/// The new tokens.
#[derive(Clone, Copy)]
pub struct StepInputs<'a> {
    /// Inputs of the convolution.
    pub xbc: &'a Tensor,
    /// Raw step sizes.
    pub dt: &'a Tensor,
    /// The gate's input; without, y is not gated.
    pub z: Option<&'a Tensor>,
}

/// Parameters of the layer.
#[derive(Clone, Copy)]
pub struct StepParams<'a> {
    /// Taps.
    pub conv_weight: &'a Tensor,
    /// Added behind the taps.
    pub conv_bias: Option<&'a Tensor>,
    /// Added to dt.
    pub dt_bias: Option<&'a Tensor>,
    /// Logarithms of the decay rates.
    pub a_log: &'a Tensor,
    /// Skip connection.
    pub d: Option<&'a Tensor>,
}

/// Which slots the rows use; i32 or i64, here or beside the pool.
#[derive(Clone, Copy)]
pub struct StepRows<'a> {
    /// Slot of each row, or -1.
    pub slots: &'a Tensor,
    /// Where the state is left; the same slots without.
    pub to_slots: Option<&'a Tensor>,
    /// Tokens of the last draft to replay; none without.
    pub accepted: Option<&'a Tensor>,
}

/// How a call is to be computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOptions {
    /// Apply softplus to `dt + dt_bias`.
    pub dt_softplus: bool,
    /// Bounds of the step size, applied last.
    pub dt_limit: Option<(f64, f64)>,
    /// Keep the state behind the new tokens; otherwise the one before them.
    pub commit: bool,
}

impl StepOptions {
    fn ssd(&self) -> SsdOptions {
        let (dt_softplus, dt_limit) = (self.dt_softplus, self.dt_limit);
        SsdOptions { dt_softplus, dt_limit, chunk_size: None }
    }
}

/// A checked call: parameters in the type of states, everything readable by kernels.
struct Call<'a> {
    sizes: Sizes,
    options: StepOptions,
    xbc: Held,
    dt: Held,
    z: Option<Held>,
    weight: Tensor,
    conv_bias: Option<Tensor>,
    dt_bias: Option<Tensor>,
    a_log: Tensor,
    d: Option<Tensor>,
    rows: StepRows<'a>,
}

/// Advances the states of `rows` and returns `y` `[batch, seqlen, heads * head_dim]`. Has no gradient: use
/// [`ssd`](super::ssd) for training.
///
/// # Errors
/// Naming the argument whose shape, dtype or value does not fit. Slots and accepted counts that lie on a
/// GPU are checked there and reported by the next call that waits.
pub fn mamba2_step(
    inputs: &StepInputs,
    params: &StepParams,
    rows: &StepRows,
    pool: &mut Mamba2Pool,
    options: &StepOptions,
) -> Result<Tensor> {
    no_grad(|| {
        let sizes = Sizes::check(inputs, params, rows, pool, options)?;
        let states = wide(inputs.xbc.dtype());
        let cast = |tensor: Option<&Tensor>| {
            tensor.map(|tensor| plain(&tensor.to_dtype(states)?)).transpose()
        };
        let call = Call {
            options: *options,
            xbc: Held::new(inputs.xbc, 1)?,
            dt: Held::new(inputs.dt, 1)?,
            z: inputs.z.map(|z| Held::new(z, 1)).transpose()?,
            weight: plain(&conv1d::taps(OP, params.conv_weight, inputs.xbc.dtype())?)?,
            conv_bias: cast(params.conv_bias)?,
            dt_bias: cast(params.dt_bias)?,
            a_log: plain(&params.a_log.to_dtype(states)?)?,
            d: cast(params.d)?,
            rows: *rows,
            sizes,
        };
        pool.own()?;
        let shape = [call.sizes.batch, call.sizes.seqlen, call.sizes.width_out()];
        let device = inputs.xbc.device();
        let mut y = match device.is_cuda() {
            true => Tensor::empty(shape, inputs.xbc.dtype(), &device)?,
            false => Tensor::zeros(shape, inputs.xbc.dtype(), &device)?,
        };
        match (device.is_cuda(), inputs.xbc.dtype()) {
            (true, _) => cuda::step(&call, pool, &mut y)?,
            (false, DType::F64) => reference::step(&call, pool, &mut y)?,
            (false, _) => cpu::step(&call, pool, &mut y)?,
        }
        Ok(y)
    })
}

#[cfg(test)]
mod tests;
