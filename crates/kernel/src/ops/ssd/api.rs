//! The public functions and their registry entries.

use super::arrays::wide;
use super::op::{Ssd, SsdOptions};
use super::step_op::SsdStep;
use danaus_tensor::registry::{Arg, Args, Attr, Kind, OpSpec};
use danaus_tensor::{DType, Error, Result, Tensor, apply};

/// Tensors of [`ssd`]; shapes are in the module's table.
#[derive(Clone, Copy)]
pub struct SsdInputs<'a> {
    /// The values.
    pub x: &'a Tensor,
    /// Raw step sizes.
    pub dt: &'a Tensor,
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
    /// Added to `dt`.
    pub dt_bias: Option<&'a Tensor>,
    /// States before the first token; zero without.
    pub initial_states: Option<&'a Tensor>,
    /// Sequence numbers.
    pub seq_idx: Option<&'a Tensor>,
    /// Bounds of packed sequences.
    pub cu_seqlens: Option<&'a Tensor>,
}

impl<'a> SsdInputs<'a> {
    /// The tensors without which there is no call; the others start absent.
    pub fn new(x: &'a Tensor, dt: &'a Tensor, a: &'a Tensor, b: &'a Tensor, c: &'a Tensor) -> Self {
        let (d, z, dt_bias, initial_states, seq_idx, cu_seqlens) = Default::default();
        Self { x, dt, a, b, c, d, z, dt_bias, initial_states, seq_idx, cu_seqlens }
    }
}

/// Tensors of [`ssd_core`].
#[derive(Clone, Copy)]
pub struct SsdCoreInputs<'a> {
    /// The values.
    pub x: &'a Tensor,
    /// Logarithm of the decay before each token.
    pub log_decay: &'a Tensor,
    /// What is written to the state.
    pub b: &'a Tensor,
    /// What is read from it.
    pub c: &'a Tensor,
    /// Factor of each token's contribution.
    pub scale: &'a Tensor,
    /// States before the first token; zero without.
    pub initial_states: Option<&'a Tensor>,
    /// Sequence numbers.
    pub seq_idx: Option<&'a Tensor>,
    /// Bounds of packed sequences.
    pub cu_seqlens: Option<&'a Tensor>,
}

/// Tensors of [`ssd_step`]: those of [`ssd`] for one token, without the time dimension, or for a few
/// tokens with it.
#[derive(Clone, Copy)]
pub struct SsdStepInputs<'a> {
    /// `[batch, heads, head_dim]`.
    pub x: &'a Tensor,
    /// `[batch, heads]`.
    pub dt: &'a Tensor,
    /// `[heads]`.
    pub a: &'a Tensor,
    /// `[batch, groups, d_state]`.
    pub b: &'a Tensor,
    /// `[batch, groups, d_state]`.
    pub c: &'a Tensor,
    /// `[heads]` or `[heads, head_dim]`.
    pub d: Option<&'a Tensor>,
    /// As `x`.
    pub z: Option<&'a Tensor>,
    /// `[heads]`.
    pub dt_bias: Option<&'a Tensor>,
    /// `[batch, heads, head_dim, d_state]`.
    pub state: &'a Tensor,
}

/// Casts an optional tensor on the tape.
fn cast(tensor: Option<&Tensor>, dtype: DType) -> Result<Option<Tensor>> {
    tensor.map(|tensor| tensor.to_dtype(dtype)).transpose()
}

fn pair(mut outputs: Vec<Tensor>) -> Result<(Tensor, Tensor)> {
    match (outputs.pop(), outputs.pop()) {
        (Some(second), Some(first)) => Ok((first, second)),
        _ => Err(Error::internal("an operator of two outputs returned fewer")),
    }
}

fn call(op: Ssd, arrays: [Option<&Tensor>; 11]) -> Result<(Tensor, Tensor)> {
    // x, B, C, z share the type of x; everything small is f32 (f64 beside f64).
    let narrow = arrays[0].map_or(DType::F32, Tensor::dtype);
    let mut owned = Vec::with_capacity(arrays.len());
    for (index, tensor) in arrays.into_iter().enumerate() {
        owned.push(match index {
            0 | 3 | 4 | 6 => cast(tensor, narrow)?,
            9 | 10 => tensor.cloned(),
            _ => cast(tensor, wide(narrow))?,
        });
    }
    let inputs: Vec<Option<&Tensor>> = owned.iter().map(Option::as_ref).collect();
    pair(apply(op, &inputs)?)
}

/// The operator of Mamba-2: `(y, final_state)`.
///
/// # Errors
/// Naming the argument whose shape, dtype or value does not fit.
pub fn ssd(inputs: &SsdInputs, options: &SsdOptions) -> Result<(Tensor, Tensor)> {
    let SsdInputs { x, dt, a, b, c, d, z, dt_bias, initial_states, seq_idx, cu_seqlens } = *inputs;
    let required = [Some(x), Some(dt), Some(a), Some(b), Some(c)];
    let [x, dt, a, b, c] = required;
    let arrays = [x, dt, a, b, c, d, z, dt_bias, initial_states, seq_idx, cu_seqlens];
    call(Ssd { options: *options, core: false }, arrays)
}

/// The recurrence with decays and scales given: `(y, final_state)`.
///
/// # Errors
/// Naming the argument whose shape, dtype or value does not fit.
pub fn ssd_core(inputs: &SsdCoreInputs, chunk_size: Option<usize>) -> Result<(Tensor, Tensor)> {
    let options = SsdOptions { chunk_size, ..SsdOptions::default() };
    let SsdCoreInputs { x, log_decay, b, c, scale, initial_states, seq_idx, cu_seqlens } = *inputs;
    let [x, scale, log_decay, b, c] = [x, scale, log_decay, b, c].map(Some);
    let absent = None;
    let arrays =
        [x, scale, log_decay, b, c, absent, absent, absent, initial_states, seq_idx, cu_seqlens];
    call(Ssd { options, core: true }, arrays)
}

/// Advances states by one or a few tokens: `(y, state)`. Has no gradient; `chunk_size` has no effect.
///
/// # Errors
/// Naming the argument whose shape or dtype does not fit.
pub fn ssd_step(inputs: &SsdStepInputs, options: &SsdOptions) -> Result<(Tensor, Tensor)> {
    let narrow = inputs.x.dtype();
    let single = inputs.x.rank() == 3;
    let timed = |tensor: &Tensor, dtype: DType| -> Result<Tensor> {
        let tensor = tensor.to_dtype(dtype)?;
        if single { tensor.unsqueeze(1) } else { Ok(tensor) }
    };
    let heads_by_dim = |d: &Tensor| -> Result<Tensor> {
        let d = d.to_dtype(wide(narrow))?;
        let Some(&head_dim) = inputs.x.dims().last() else { return Ok(d) };
        let heads = d.dims().first().copied().unwrap_or(0);
        if d.rank() == 1 { d.unsqueeze(1)?.broadcast_to(vec![heads, head_dim]) } else { Ok(d) }
    };
    let owned = [
        Some(timed(inputs.x, narrow)?),
        Some(timed(inputs.dt, wide(narrow))?),
        cast(Some(inputs.a), wide(narrow))?,
        Some(timed(inputs.b, narrow)?),
        Some(timed(inputs.c, narrow)?),
        inputs.d.map(heads_by_dim).transpose()?,
        inputs.z.map(|z| timed(z, narrow)).transpose()?,
        cast(inputs.dt_bias, wide(narrow))?,
        cast(Some(inputs.state), wide(narrow))?,
    ];
    let arrays: Vec<Option<&Tensor>> = owned.iter().map(Option::as_ref).collect();
    let (y, state) = pair(apply(SsdStep { options: *options }, &arrays)?)?;
    Ok((if single { y.squeeze(1)? } else { y }, state))
}

const PER_TOKEN: &str = "batch seqlen heads";
const VALUES: &str = "batch seqlen heads head_dim";
const KEYS: &str = "batch seqlen groups d_state";
const STATES: &str = "batch|sequences heads head_dim d_state";

const CHUNK_SIZE: Attr =
    Attr::new("chunk_size", Kind::Int, "", "upper bound on the chunk length, at least 1");
const DT_SOFTPLUS: Attr =
    Attr::new("dt_softplus", Kind::Bool, "false", "apply softplus to dt + dt_bias");
const DT_LIMIT: Attr =
    Attr::new("dt_limit", Kind::Floats, "", "low,high: bounds of the step size, 0 <= low <= high");

fn options(args: &Args, op: &'static str, with_chunk: bool) -> Result<SsdOptions> {
    let dt_limit = match args.floats("dt_limit")?.as_deref() {
        None => None,
        Some(&[low, high]) => Some((low, high)),
        Some(other) => {
            let given = format!("{other:?}");
            return Err(Error::argument(op, "dt_limit", given, "two numbers: low,high"));
        }
    };
    let chunk_size = if with_chunk { chunk_size(args, op)? } else { None };
    Ok(SsdOptions { dt_softplus: args.bool("dt_softplus")?, dt_limit, chunk_size })
}

fn chunk_size(args: &Args, op: &'static str) -> Result<Option<usize>> {
    let Some(given) = args.int("chunk_size")? else { return Ok(None) };
    let size = usize::try_from(given).ok().filter(|&size| size > 0);
    size.map(Some).ok_or_else(|| Error::argument(op, "chunk_size", given, "at least 1"))
}

fn both((first, second): (Tensor, Tensor)) -> Vec<Option<Tensor>> {
    vec![Some(first), Some(second)]
}

/// Registry entries.
pub const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "ssd",
        summary: "Mamba-2's state-space mixer: chunked scan with scalar decay per head",
        inputs: &[
            Arg::float("x", VALUES),
            Arg::float("dt", PER_TOKEN),
            Arg::float("A", "heads"),
            Arg::float("B", KEYS),
            Arg::float("C", KEYS),
            Arg::float("D", "heads [head_dim]").optional(),
            Arg::float("z", VALUES).optional(),
            Arg::float("dt_bias", "heads").optional(),
            Arg::float("initial_states", STATES).optional(),
            Arg::int("seq_idx", "batch seqlen").optional(),
            Arg::int("cu_seqlens", "sequences+1").optional(),
        ],
        attributes: &[DT_SOFTPLUS, DT_LIMIT, CHUNK_SIZE],
        outputs: &["y", "final_state"],
        call: |args| {
            let inputs = SsdInputs {
                x: args.input("x")?,
                dt: args.input("dt")?,
                a: args.input("A")?,
                b: args.input("B")?,
                c: args.input("C")?,
                d: args.optional("D"),
                z: args.optional("z"),
                dt_bias: args.optional("dt_bias"),
                initial_states: args.optional("initial_states"),
                seq_idx: args.optional("seq_idx"),
                cu_seqlens: args.optional("cu_seqlens"),
            };
            ssd(&inputs, &options(args, "ssd", true)?).map(both)
        },
    },
    OpSpec {
        name: "ssd_core",
        summary: "chunked scan with scalar decay, decays and scales given per token",
        inputs: &[
            Arg::float("x", VALUES),
            Arg::float("log_decay", PER_TOKEN),
            Arg::float("B", KEYS),
            Arg::float("C", KEYS),
            Arg::float("scale", PER_TOKEN),
            Arg::float("initial_states", STATES).optional(),
            Arg::int("seq_idx", "batch seqlen").optional(),
            Arg::int("cu_seqlens", "sequences+1").optional(),
        ],
        attributes: &[CHUNK_SIZE],
        outputs: &["y", "final_state"],
        call: |args| {
            let inputs = SsdCoreInputs {
                x: args.input("x")?,
                log_decay: args.input("log_decay")?,
                b: args.input("B")?,
                c: args.input("C")?,
                scale: args.input("scale")?,
                initial_states: args.optional("initial_states"),
                seq_idx: args.optional("seq_idx"),
                cu_seqlens: args.optional("cu_seqlens"),
            };
            ssd_core(&inputs, chunk_size(args, "ssd_core")?).map(both)
        },
    },
    OpSpec {
        name: "ssd_step",
        summary: "one or a few decoding steps of ssd on its state",
        inputs: &[
            Arg::float("x", "batch [seqlen] heads head_dim"),
            Arg::float("dt", "batch [seqlen] heads"),
            Arg::float("A", "heads"),
            Arg::float("B", "batch [seqlen] groups d_state"),
            Arg::float("C", "batch [seqlen] groups d_state"),
            Arg::float("D", "heads [head_dim]").optional(),
            Arg::float("z", "batch [seqlen] heads head_dim").optional(),
            Arg::float("dt_bias", "heads").optional(),
            Arg::float("state", "batch heads head_dim d_state"),
        ],
        attributes: &[DT_SOFTPLUS, DT_LIMIT],
        outputs: &["y", "state"],
        call: |args| {
            let inputs = SsdStepInputs {
                x: args.input("x")?,
                dt: args.input("dt")?,
                a: args.input("A")?,
                b: args.input("B")?,
                c: args.input("C")?,
                d: args.optional("D"),
                z: args.optional("z"),
                dt_bias: args.optional("dt_bias"),
                state: args.input("state")?,
            };
            ssd_step(&inputs, &options(args, "ssd_step", false)?).map(both)
        },
    },
];
