//! The step on the processor for f32 and bf16: the kernels of the convolution and of the recurrence, on the
//! states where they lie.

use super::rows::{self, Tokens};
use super::{Call, Mamba2Pool};
use crate::ops::conv1d::cpu as conv;
use crate::ops::ssd::arrays::slice;
use crate::ops::ssd::cpu::prologue::Prologue;
use crate::ops::ssd::cpu::rows::{Rows, Source, Target};
use crate::ops::ssd::cpu::{Core, step as recurrence};
use crate::ops::ssd::runs::Run;
use danaus_runtime::pool::Scratch;
use danaus_runtime::threads::{self, SharedMut};
use danaus_tensor::{DType, Element, Result, Tensor};
use half::bf16;

/// An element type of the kernels.
trait Narrow: Element {
    fn source(data: &[Self]) -> Source<'_>;
    fn target(data: &mut [Self]) -> Target;
    fn widen(self) -> f32;
}

impl Narrow for f32 {
    fn source(data: &[Self]) -> Source<'_> {
        Source::F32(data)
    }

    fn target(data: &mut [Self]) -> Target {
        Target::f32(data)
    }

    fn widen(self) -> f32 {
        self
    }
}

impl Narrow for bf16 {
    fn source(data: &[Self]) -> Source<'_> {
        Source::Bf16(data)
    }

    fn target(data: &mut [Self]) -> Target {
        Target::bf16(data)
    }

    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// Advances the states and writes `y`, which is zero before.
pub(super) fn step(call: &Call, pool: &mut Mamba2Pool, y: &mut Tensor) -> Result<()> {
    match y.dtype() {
        DType::BF16 => run::<bf16>(call, pool, y),
        _ => run::<f32>(call, pool, y),
    }
}

fn run<T: Narrow>(call: &Call, pool: &mut Mamba2Pool, y: &mut Tensor) -> Result<()> {
    let sizes = &call.sizes;
    let rows = rows::resolve(call, pool)?;
    let tokens = rows::gather::<T>(call, pool, &rows)?;
    let (count, channels, values) = (tokens.count(), sizes.channels(), sizes.width_out());
    let mixed = convolve(call, &tokens)?;
    let (scale, log_decay) = steps(call, &tokens)?;
    let d = skip(call)?;
    let part =
        |start: usize| Rows { data: T::source(&mixed[start.min(mixed.len())..]), stride: channels };
    let core = Core {
        shape: sizes.shape(count),
        runs: &tokens.runs,
        x: part(0),
        b: part(values),
        c: part(values + sizes.groups * sizes.d_state),
        log_decay: &log_decay,
        scale: &scale,
        d: d.as_deref(),
        z: call.z.as_ref().map(|_| Rows { data: T::source(&tokens.z), stride: values }),
        initial_states: None,
    };
    let mut out = vec![T::default(); count * values];
    let target = T::target(&mut out);
    let (heads, len) = (sizes.heads, sizes.head_dim * sizes.d_state);
    let states = SharedMut::new(pool.scan.as_slice_mut::<f32>()?);
    threads::for_each(rows.len() * heads, |task| {
        let (number, head) = (task / heads, task % heads);
        let (row, run) = (&rows[number], tokens.runs[number]);
        // SAFETY: a slot is written by one row, and read by no other one; every head has its own part.
        let state = unsafe { states.slice((row.to * heads + head) * len, len) };
        if row.from != row.to {
            // SAFETY: as above, and the two slots differ.
            state.copy_from_slice(unsafe { states.slice((row.from * heads + head) * len, len) });
        }
        let old = Run { len: row.replay, ..run };
        let new = Run { start: run.start + row.replay, len: run.len - row.replay, ..run };
        recurrence::walk(&core, old, head, state, target);
        if call.options.commit {
            recurrence::walk(&core, new, head, state, target);
        } else {
            let mut draft = Scratch::<f32>::new(len);
            draft.copy_from_slice(state);
            recurrence::walk(&core, new, head, &mut draft, target);
        }
    });
    let y = y.as_slice_mut::<T>()?;
    let new = sizes.seqlen * values;
    for (row, run) in rows.iter().zip(&tokens.runs) {
        let from = &out[(run.start + row.replay) * values..][..new];
        y[row.index * new..][..new].copy_from_slice(from);
    }
    rows::leave(call, pool, &rows, &tokens)
}

/// x, B and C of all tokens, `[tokens, channels]`.
fn convolve<T: Narrow>(call: &Call, tokens: &Tokens<T>) -> Result<Vec<T>> {
    let channels = call.sizes.channels();
    let history: Vec<f32> = tokens.history.iter().map(|input| input.widen()).collect();
    let conv = conv::Conv {
        runs: &tokens.runs,
        channels,
        width: call.sizes.width,
        x: Rows { data: T::source(&tokens.xbc), stride: channels },
        weight: call.weight.as_slice()?,
        bias: slice(&call.conv_bias)?,
        initial_states: Some(&history),
        silu: true,
    };
    let mut mixed = vec![T::default(); tokens.xbc.len()];
    conv::forward(&conv, T::target(&mut mixed));
    Ok(mixed)
}

/// Step sizes and log-decays, `[tokens, heads]` each.
fn steps<T: Narrow>(call: &Call, tokens: &Tokens<T>) -> Result<(Scratch<f32>, Scratch<f32>)> {
    let len = tokens.dt.len();
    let (mut scale, mut log_decay) = (Scratch::new(len), Scratch::new(len));
    let rates = call.a_log.exp()?.neg()?;
    let prologue = Prologue {
        dt: Rows { data: T::source(&tokens.dt), stride: call.sizes.heads },
        tokens: tokens.count(),
        a: rates.as_slice()?,
        dt_bias: slice(&call.dt_bias)?,
        steps: call.options.ssd().steps(),
    };
    prologue.forward(&mut scale, &mut log_decay);
    Ok((scale, log_decay))
}

/// D by head and column.
fn skip(call: &Call) -> Result<Option<Vec<f32>>> {
    let Some(d) = &call.d else { return Ok(None) };
    let each = if d.rank() == 1 { call.sizes.head_dim } else { 1 };
    Ok(Some(d.as_slice::<f32>()?.iter().flat_map(|&d| std::iter::repeat_n(d, each)).collect()))
}
