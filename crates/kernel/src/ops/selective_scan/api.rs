//! The public functions and their registry entries.

use super::op::SelectiveScan;
use super::problem::OP;
use crate::hook::pair;
use crate::ops::ssd::arrays::wide;
use danaus_tensor::registry::{Arg, Args, Attr, Kind, OpSpec};
use danaus_tensor::{DType, Error, Result, Tensor, apply};

/// Tensors of [`selective_scan`]; shapes are in the module's table.
#[derive(Clone, Copy)]
pub struct ScanInputs<'a> {
    /// The values.
    pub u: &'a Tensor,
    /// Raw step sizes.
    pub delta: &'a Tensor,
    /// Decay rates, not positive.
    pub a: &'a Tensor,
    /// What is written to the state.
    pub b: &'a Tensor,
    /// What is read from it.
    pub c: &'a Tensor,
    /// Skip connection.
    pub d: Option<&'a Tensor>,
    /// Gate: the output is multiplied by its silu.
    pub z: Option<&'a Tensor>,
    /// Added to `delta`.
    pub delta_bias: Option<&'a Tensor>,
    /// States before the first token; zero without.
    pub initial_states: Option<&'a Tensor>,
    /// Sequence numbers.
    pub seq_idx: Option<&'a Tensor>,
    /// Bounds of packed sequences.
    pub cu_seqlens: Option<&'a Tensor>,
}

impl<'a> ScanInputs<'a> {
    /// The tensors without which there is no call; the others start absent.
    pub fn new(
        u: &'a Tensor,
        delta: &'a Tensor,
        a: &'a Tensor,
        b: &'a Tensor,
        c: &'a Tensor,
    ) -> Self {
        let (d, z, delta_bias, initial_states, seq_idx, cu_seqlens) = Default::default();
        Self { u, delta, a, b, c, d, z, delta_bias, initial_states, seq_idx, cu_seqlens }
    }
}

/// How a call is to be computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// Apply softplus to `delta + delta_bias`.
    pub delta_softplus: bool,
    /// Arrays have their channels last.
    pub channel_last: bool,
}

/// Tensors of [`selective_state_update`]: those of [`selective_scan`] for one token, without the time
/// dimension, or for a few tokens with it, channels last.
#[derive(Clone, Copy)]
pub struct ScanStepInputs<'a> {
    /// `[batch, channels, d_state]`.
    pub state: &'a Tensor,
    /// `[batch, channels]` or `[batch, seqlen, channels]`.
    pub x: &'a Tensor,
    /// As `x`.
    pub dt: &'a Tensor,
    /// `[channels, d_state]`.
    pub a: &'a Tensor,
    /// `[batch, d_state]` or `[batch, groups, d_state]`; with seqlen behind batch where `x` has it.
    pub b: &'a Tensor,
    /// As `b`.
    pub c: &'a Tensor,
    /// `[channels]`.
    pub d: Option<&'a Tensor>,
    /// As `x`.
    pub z: Option<&'a Tensor>,
    /// `[channels]`.
    pub dt_bias: Option<&'a Tensor>,
}

/// B or C as `[batch, seqlen, groups, d_state]` in the arrays' type, or constant in the parameters'.
fn map(tensor: &Tensor, dtype: DType, channel_last: bool) -> Result<Tensor> {
    if tensor.rank() == 2 {
        return tensor.to_dtype(wide(dtype));
    }
    let tensor = match (tensor.rank(), channel_last) {
        (3, true) => tensor.unsqueeze(2)?,
        (3, false) => tensor.transpose(1, 2)?.unsqueeze(2)?,
        (4, false) => tensor.transpose(2, 3)?.transpose(1, 2)?,
        // The operator refuses other ranks.
        _ => tensor.clone(),
    };
    tensor.to_dtype(dtype)
}

/// The operator of Mamba-1: `(y, last_state)`.
///
/// # Errors
/// Naming the argument whose shape, dtype or value does not fit.
pub fn selective_scan(inputs: &ScanInputs, options: &ScanOptions) -> Result<(Tensor, Tensor)> {
    let dtype = inputs.u.dtype();
    let turned = |tensor: &Tensor| {
        if options.channel_last || tensor.rank() != 3 {
            tensor.to_dtype(dtype)
        } else {
            tensor.transpose(1, 2)?.to_dtype(dtype)
        }
    };
    if inputs.u.rank() != 3 {
        let expected = "[batch, channels, seqlen], or [batch, seqlen, channels] with channel_last";
        return Err(Error::shape(OP, "u", inputs.u.shape(), expected));
    }
    let (u, delta) = (turned(inputs.u)?, turned(inputs.delta)?);
    let z = inputs.z.map(turned).transpose()?;
    let b = map(inputs.b, dtype, options.channel_last)?;
    let c = map(inputs.c, dtype, options.channel_last)?;
    let small = |tensor: Option<&Tensor>| tensor.map(|t| t.to_dtype(wide(dtype))).transpose();
    let (a, d) = (small(Some(inputs.a))?, small(inputs.d)?);
    let (delta_bias, initial) = (small(inputs.delta_bias)?, small(inputs.initial_states)?);
    let arrays = [
        Some(&u),
        Some(&delta),
        a.as_ref(),
        Some(&b),
        Some(&c),
        d.as_ref(),
        z.as_ref(),
        delta_bias.as_ref(),
        initial.as_ref(),
        inputs.seq_idx,
        inputs.cu_seqlens,
    ];
    let op = SelectiveScan { delta_softplus: options.delta_softplus };
    let (y, last) = pair(apply(op, &arrays)?)?;
    Ok((if options.channel_last { y } else { y.transpose(1, 2)? }, last))
}

/// Advances a batch of states by one or a few tokens: `(y, state)`. The same computation as
/// [`selective_scan`] from `state`, with the same bits and gradients.
///
/// # Errors
/// Naming the argument whose shape or dtype does not fit.
pub fn selective_state_update(
    inputs: &ScanStepInputs,
    delta_softplus: bool,
) -> Result<(Tensor, Tensor)> {
    let single = inputs.x.rank() == 2;
    let timed = |tensor: &Tensor| if single { tensor.unsqueeze(1) } else { Ok(tensor.clone()) };
    let (u, delta) = (timed(inputs.x)?, timed(inputs.dt)?);
    let (b, c) = (timed(inputs.b)?, timed(inputs.c)?);
    let z = inputs.z.map(timed).transpose()?;
    let scan = ScanInputs {
        d: inputs.d,
        z: z.as_ref(),
        delta_bias: inputs.dt_bias,
        initial_states: Some(inputs.state),
        ..ScanInputs::new(&u, &delta, inputs.a, &b, &c)
    };
    let options = ScanOptions { delta_softplus, channel_last: true };
    let (y, state) = selective_scan(&scan, &options)?;
    Ok((if single { y.squeeze(1)? } else { y }, state))
}

const VALUES: &str = "batch channels seqlen";
const MAPS: &str = "batch [groups] d_state seqlen | channels d_state";
const STATES: &str = "batch|sequences channels d_state";

fn both((first, second): (Tensor, Tensor)) -> Vec<Option<Tensor>> {
    vec![Some(first), Some(second)]
}

fn call_scan(args: &Args) -> Result<Vec<Option<Tensor>>> {
    let inputs = ScanInputs {
        u: args.input("u")?,
        delta: args.input("delta")?,
        a: args.input("A")?,
        b: args.input("B")?,
        c: args.input("C")?,
        d: args.optional("D"),
        z: args.optional("z"),
        delta_bias: args.optional("delta_bias"),
        initial_states: args.optional("initial_states"),
        seq_idx: args.optional("seq_idx"),
        cu_seqlens: args.optional("cu_seqlens"),
    };
    let options = ScanOptions {
        delta_softplus: args.bool("delta_softplus")?,
        channel_last: args.bool("channel_last")?,
    };
    selective_scan(&inputs, &options).map(both)
}

fn call_update(args: &Args) -> Result<Vec<Option<Tensor>>> {
    let inputs = ScanStepInputs {
        state: args.input("state")?,
        x: args.input("x")?,
        dt: args.input("dt")?,
        a: args.input("A")?,
        b: args.input("B")?,
        c: args.input("C")?,
        d: args.optional("D"),
        z: args.optional("z"),
        dt_bias: args.optional("dt_bias"),
    };
    selective_state_update(&inputs, args.bool("dt_softplus")?).map(both)
}

/// Registry entries.
pub const SPECS: &[OpSpec] = &[
    OpSpec {
        name: OP,
        summary: "Mamba-1's state-space mixer: diagonal scan with a step size per channel and token",
        inputs: &[
            Arg::float("u", VALUES),
            Arg::float("delta", VALUES),
            Arg::float("A", "channels d_state"),
            Arg::float("B", MAPS),
            Arg::float("C", MAPS),
            Arg::float("D", "channels").optional(),
            Arg::float("z", VALUES).optional(),
            Arg::float("delta_bias", "channels").optional(),
            Arg::float("initial_states", STATES).optional(),
            Arg::int("seq_idx", "batch seqlen").optional(),
            Arg::int("cu_seqlens", "sequences+1").optional(),
        ],
        attributes: &[
            Attr::new(
                "delta_softplus",
                Kind::Bool,
                "false",
                "apply softplus to delta + delta_bias",
            ),
            Attr::new("channel_last", Kind::Bool, "false", "seqlen before groups and channels"),
        ],
        outputs: &["y", "last_state"],
        call: call_scan,
    },
    OpSpec {
        name: "selective_state_update",
        summary: "one or a few decoding steps of selective_scan on a batch of states",
        inputs: &[
            Arg::float("state", "batch channels d_state"),
            Arg::float("x", "batch [seqlen] channels"),
            Arg::float("dt", "batch [seqlen] channels"),
            Arg::float("A", "channels d_state"),
            Arg::float("B", "batch [seqlen] [groups] d_state"),
            Arg::float("C", "batch [seqlen] [groups] d_state"),
            Arg::float("D", "channels").optional(),
            Arg::float("z", "batch [seqlen] channels").optional(),
            Arg::float("dt_bias", "channels").optional(),
        ],
        attributes: &[Attr::new(
            "dt_softplus",
            Kind::Bool,
            "false",
            "apply softplus to dt + dt_bias",
        )],
        outputs: &["y", "state"],
        call: call_update,
    },
];
