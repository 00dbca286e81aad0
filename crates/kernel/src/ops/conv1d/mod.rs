//! Causal depthwise convolution over time, the short filter before every state-space scan.
//!
//! ```text
//! y_t = act(bias + sum over w of weight[:, w] x_(t - width + 1 + w)),   act = silu or none
//! ```
//!
//! | tensor | shape |
//! | --- | --- |
//! | `x`, `y` | `[batch, channels, seqlen]`, or `[batch, seqlen, channels]` with `channel_last` |
//! | `weight` | `[channels, width]` or `[channels, 1, width]`, width 1 to 8 |
//! | `initial_states`, `final_states` | `[batch, channels, width - 1]`, oldest input first |
//! | `seq_idx`, `cu_seqlens` | as in [`ssd`](super::ssd): sequences never mix |
//!
//! With `cu_seqlens` the states are per sequence. All of it has gradients, also through the final
//! states. The kernels are channel-last, where vectors run over channels and nothing is transposed; the
//! other layout is transposed on the way in and seen through a transposed view on the way out.
//!
//! [`causal_conv1d_update`] is the decoding step on a linear or circular state buffer, and
//! [`causal_conv1d_varlen_states`] cuts such buffers out of a packed prompt.

pub mod cpu;
pub(crate) mod cuda;
mod op;
pub mod reference;
mod update;

use super::ssd::arrays::wide;
use danaus_tensor::registry::{Arg, Args, Attr, Kind, OpSpec};
use danaus_tensor::{DType, Device, Error, Result, Tensor, apply};
use op::CausalConv1d;

pub use update::{causal_conv1d_update, causal_conv1d_varlen_states};

/// Tensors of [`causal_conv1d`].
#[derive(Clone, Copy)]
pub struct ConvInputs<'a> {
    /// The values.
    pub x: &'a Tensor,
    /// The taps.
    pub weight: &'a Tensor,
    /// `[channels]`.
    pub bias: Option<&'a Tensor>,
    /// Inputs before the first token; zero without.
    pub initial_states: Option<&'a Tensor>,
    /// Sequence numbers.
    pub seq_idx: Option<&'a Tensor>,
    /// Bounds of packed sequences.
    pub cu_seqlens: Option<&'a Tensor>,
}

/// How a call is to be computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConvOptions {
    /// Apply silu to the result.
    pub silu: bool,
    /// `x` is `[batch, seqlen, channels]`.
    pub channel_last: bool,
}

/// `[channels, width]`, whatever of both forms was given, in the type of parameters beside `dtype`.
pub(crate) fn taps(op: &'static str, weight: &Tensor, dtype: DType) -> Result<Tensor> {
    let weight = match weight.dims() {
        [_, _] => weight.clone(),
        [_, 1, _] => weight.squeeze(1)?,
        _ => {
            let expected = "[channels, width] or [channels, 1, width]";
            return Err(Error::shape(op, "weight", weight.shape(), expected));
        }
    };
    weight.to_dtype(wide(dtype))
}

/// The convolution: `(y, final_states)`.
///
/// # Errors
/// Naming the argument whose shape, dtype or value does not fit.
pub fn causal_conv1d(inputs: &ConvInputs, options: &ConvOptions) -> Result<(Tensor, Tensor)> {
    let op = CausalConv1d { silu: options.silu };
    let dtype = inputs.x.dtype();
    if inputs.x.rank() != 3 {
        let expected = "[batch, channels, seqlen], or [batch, seqlen, channels] with channel_last";
        return Err(Error::shape("causal_conv1d", "x", inputs.x.shape(), expected));
    }
    let x = if options.channel_last { inputs.x.clone() } else { inputs.x.transpose(1, 2)? };
    let weight = taps("causal_conv1d", inputs.weight, dtype)?;
    let cast = |tensor: Option<&Tensor>| tensor.map(|t| t.to_dtype(wide(dtype))).transpose();
    let (bias, initial) = (cast(inputs.bias)?, cast(inputs.initial_states)?);
    let arrays = [
        Some(&x),
        Some(&weight),
        bias.as_ref(),
        initial.as_ref(),
        inputs.seq_idx,
        inputs.cu_seqlens,
    ];
    let outputs = apply(op, &arrays)?;
    let [y, states] = &outputs[..] else {
        return Err(Error::internal("causal_conv1d has two outputs"));
    };
    let y = if options.channel_last { y.clone() } else { y.transpose(1, 2)? };
    Ok((y, states.clone()))
}

fn activation(args: &Args, op: &'static str) -> Result<bool> {
    match args.text("activation") {
        None | Some("none") => Ok(false),
        Some("silu" | "swish") => Ok(true),
        Some(other) => Err(Error::argument(op, "activation", other, "none, silu or swish")),
    }
}

const ACTIVATION: Attr = Attr::new("activation", Kind::Text, "none", "none, silu or swish");

/// Registry entries.
pub const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "causal_conv1d",
        summary: "causal depthwise convolution over time with bias and silu",
        inputs: &[
            Arg::float("x", "batch channels seqlen"),
            Arg::float("weight", "channels width"),
            Arg::float("bias", "channels").optional(),
            Arg::float("initial_states", "batch|sequences channels width-1").optional(),
            Arg::int("seq_idx", "batch seqlen").optional(),
            Arg::int("cu_seqlens", "sequences+1").optional(),
        ],
        attributes: &[
            ACTIVATION,
            Attr::new("channel_last", Kind::Bool, "false", "x and y are batch seqlen channels"),
        ],
        outputs: &["y", "final_states"],
        call: |args| {
            let inputs = ConvInputs {
                x: args.input("x")?,
                weight: args.input("weight")?,
                bias: args.optional("bias"),
                initial_states: args.optional("initial_states"),
                seq_idx: args.optional("seq_idx"),
                cu_seqlens: args.optional("cu_seqlens"),
            };
            let silu = activation(args, "causal_conv1d")?;
            let options = ConvOptions { silu, channel_last: args.bool("channel_last")? };
            let (y, states) = causal_conv1d(&inputs, &options)?;
            Ok(vec![Some(y), Some(states)])
        },
    },
    OpSpec {
        name: "causal_conv1d_update",
        summary: "decoding step of causal_conv1d on a linear or circular state buffer",
        inputs: &[
            Arg::float("x", "batch channels [seqlen]"),
            Arg::float("conv_state", "batch channels state_len"),
            Arg::float("weight", "channels width"),
            Arg::float("bias", "channels").optional(),
            Arg::int("cache_seqlens", "batch").optional(),
        ],
        attributes: &[ACTIVATION],
        outputs: &["y", "conv_state"],
        call: |args| {
            let (y, state) = causal_conv1d_update(
                args.input("x")?,
                args.input("conv_state")?,
                args.input("weight")?,
                args.optional("bias"),
                args.optional("cache_seqlens"),
                activation(args, "causal_conv1d_update")?,
            )?;
            Ok(vec![Some(y), Some(state)])
        },
    },
    OpSpec {
        name: "causal_conv1d_varlen_states",
        summary: "the last inputs of every packed sequence, as state buffers for decoding",
        inputs: &[Arg::float("x", "tokens channels"), Arg::int("cu_seqlens", "sequences+1")],
        attributes: &[Attr::new("state_len", Kind::Int, "4", "inputs a buffer holds, at least 1")],
        outputs: &["states"],
        call: |args| {
            let given = args.int("state_len")?.unwrap_or(4);
            let state_len = usize::try_from(given).map_err(|_| {
                Error::argument("causal_conv1d_varlen_states", "state_len", given, "at least 1")
            })?;
            let (x, cu_seqlens) = (args.input("x")?, args.input("cu_seqlens")?);
            Ok(vec![Some(causal_conv1d_varlen_states(x, cu_seqlens, state_len)?)])
        },
    },
];

/// Refuses tensors that the kernels cannot read.
fn on_cpu(op: &'static str, tensor: &Tensor) -> Result<()> {
    if tensor.device() == Device::Cpu {
        return Ok(());
    }
    Err(Error::not_on_cuda(op, "this operator"))
}

#[cfg(test)]
mod tests;
